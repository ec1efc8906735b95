"use strict";
// Draw every chart, and redraw it when the width or the color scheme changes.

const DRAW = { bars: drawBars, shares: drawShares, timeline: drawTimeline, lines: drawLines, histogram: drawHistogram,
  graph: drawGraph, table: drawTable };

function drawAll() {
  for (const host of document.querySelectorAll("[data-chart]")) {
    const chart = report.charts[Number(host.dataset.chart)];
    DRAW[chart.kind](host, chart);
  }
}

drawAll();
let pending = 0;
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return;
  lastWidth = innerWidth;
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(drawAll);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
