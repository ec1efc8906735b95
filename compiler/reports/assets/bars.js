"use strict";
// Horizontal bars, and one bar divided among categories.

function drawBars(host, chart) {
  const width = host.clientWidth, rowHeight = 24;
  const texts = chart.bars.map((bar) => bar.text || format(bar.value, chart.unit));
  const labelWidth = Math.min(340, width * 0.34, widest(chart.bars.map((bar) => bar.label)) + 12);
  const space = Math.max(24, width - labelWidth - widest(texts) - 12);
  const most = Math.max(...chart.bars.map((bar) => bar.value), 1e-30);
  const height = chart.bars.length * rowHeight;
  const svg = make("svg:svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  chart.bars.forEach((bar, index) => {
    const top = index * rowHeight, length = Math.max(1.5, (bar.value / most) * space);
    const label = fitted(bar.label, labelWidth - 10);
    const row = make("svg:g", { class: "row" },
      make("svg:rect", { class: "hit", x: 0, y: top, width, height: rowHeight }),
      make("svg:text", { x: labelWidth - 10, y: top + 16, "text-anchor": "end" }, label),
      make("svg:rect", { x: labelWidth, y: top + 4, width: length, height: rowHeight - 8, rx: 2.5, fill: colour(bar.category) }),
      make("svg:text", { class: "soft", x: labelWidth + length + 8, y: top + 16 }, texts[index]));
    svg.append(hover(row, bar.label, [bar.text, bar.category, ...bar.details].filter(Boolean)));
  });
  const categories = [...new Set(chart.bars.map((bar) => bar.category))].filter((each) => report.categories.includes(each));
  const legend = categories.length > 1
    ? make("ul", { class: "legend" }, categories.map((name) => make("li", {},
      make("span", { class: "swatch", style: `background: ${colour(name)}` }), name))) : "";
  host.replaceChildren(svg, legend);
}

function drawShares(host, chart) {
  const entries = Object.entries(chart.values);
  const total = entries.reduce((sum, [, value]) => sum + value, 0) || 1;
  const strip = make("div", { class: "strip" }, entries.map(([name, value]) =>
    hover(make("span", { style: `flex: ${value / total} 1 0; background: ${colour(name)}` }), name,
      [`${format(value, chart.unit)}, ${format(value / total, "%")}`])));
  const legend = make("ul", { class: "legend" }, entries.map(([name, value]) =>
    make("li", {}, make("span", { class: "swatch", style: `background: ${colour(name)}` }), name,
      make("span", { class: "soft" }, `${format(value, chart.unit)}  ${format(value / total, "%")}`))));
  host.replaceChildren(strip, legend);
}
