"use strict";
// Spans over time on a canvas: thousands of them stay smooth when zooming and dragging.

const ROW = 30, AXIS = 22;

function drawTimeline(host, chart) {
  const end = Math.max(...chart.spans.map((span) => span.start + span.duration), 1e-9);
  const depth = Math.max(0, ...chart.spans.map((span) => span.depth)) + 1;
  const height = AXIS + depth * ROW + 4;
  const canvas = make("canvas", { height, style: `height: ${height}px`, "aria-label": "timeline of one run" });
  host.replaceChildren(canvas);
  const view = { canvas, spans: chart.spans, end, from: 0, to: end, height };
  paintTimeline(view);
  attachTimeline(view);
}

function paintTimeline(view) {
  const { canvas, height } = view, width = canvas.clientWidth, ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, height);
  const place = (time) => ((time - view.from) / (view.to - view.from)) * width;
  paintTimeAxis(pen, view, place, width);
  const colours = {};
  let edge = [];
  for (const span of view.spans) {
    const left = place(span.start), right = place(span.start + span.duration);
    if (right < 0 || left > width) continue;
    // Spans narrower than a third of a pixel are merged with their neighbor.
    if (right - left < 0.34 && edge[span.depth] !== undefined && left - edge[span.depth] < 0.34) continue;
    edge[span.depth] = right;
    colours[span.category] ??= solid(colour(span.category));
    paintSpan(pen, span, Math.max(0, left), Math.min(width, right), colours[span.category]);
  }
}

function paintTimeAxis(pen, view, place, width) {
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "left";
  for (const [value, text] of ticks(view.from, view.to, "s", Math.max(2, Math.floor(width / 120)))) {
    const at = Math.round(place(value)) + 0.5;
    pen.strokeStyle = solid("--grid");
    pen.beginPath();
    pen.moveTo(at, 0);
    pen.lineTo(at, view.height);
    pen.stroke();
    pen.fillStyle = solid("--faint");
    if (at < width - 40) pen.fillText(text, at + 4, 11);
  }
}

function paintSpan(pen, span, left, right, fill) {
  const top = AXIS + span.depth * ROW, size = right - left;
  pen.fillStyle = fill;
  pen.fillRect(left, top, Math.max(0.4, size - (size > 3 ? 1 : 0)), ROW - 3);
  if (size < 46) return;
  pen.fillStyle = readable(fill);
  pen.font = "11px system-ui, sans-serif";
  pen.fillText(shorten(span.name, Math.floor((size - 10) / 6.2)), left + 5, top + 17);
}

/** Black or white, whichever is more readable on a #rrggbb color (relative luminance of WCAG 2). */
function readable(fill) {
  const [red, green, blue] = [1, 3, 5].map((at) => {
    const part = parseInt(fill.slice(at, at + 2), 16) / 255;
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 ? "#111110" : "#ffffff";
}

function attachTimeline(view) {
  const { canvas } = view;
  let grabbed = null;
  const timeAt = (event) => view.from + (event.offsetX / canvas.clientWidth) * (view.to - view.from);
  const show = (from, to) => {
    const length = Math.min(view.end, Math.max(to - from, view.end * 1e-5));
    view.from = Math.max(0, Math.min(from, view.end - length));
    view.to = view.from + length;
    paintTimeline(view);
  };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const time = timeAt(event), factor = Math.exp(event.deltaY * 0.0015);
    show(time - (time - view.from) * factor, time + (view.to - time) * factor);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    grabbed = { x: event.offsetX, from: view.from, to: view.to };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => { grabbed = null; });
  canvas.addEventListener("pointermove", (event) => {
    if (grabbed) {
      const moved = ((grabbed.x - event.offsetX) / canvas.clientWidth) * (grabbed.to - grabbed.from);
      show(grabbed.from + moved, grabbed.to + moved);
      return;
    }
    const span = spanAt(view, timeAt(event), Math.floor((event.offsetY - AXIS) / ROW));
    if (span) showTooltip(event, span.name, [span.category, ...span.details]);
    else hideTooltip();
  });
  canvas.addEventListener("pointerleave", hideTooltip);
  canvas.addEventListener("dblclick", () => show(0, view.end));
}

function spanAt(view, time, depth) {
  const slack = ((view.to - view.from) / view.canvas.clientWidth) * 1.5;
  let best = null, distance = slack;
  for (const span of view.spans) {
    if (span.depth !== depth) continue;
    const away = Math.max(span.start - time, time - span.start - span.duration, 0);
    if (away < distance) [best, distance] = [span, away];
    if (away === 0) return span;
  }
  return best;
}
