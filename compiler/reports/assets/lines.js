"use strict";
// Charts with two axes: lines and histograms.

const MARGIN = { left: 74, right: 18, top: 22, bottom: 40 };

/** An SVG with grid and axes; `x` and `y` map values to pixels. `bounds` is [xLow, xHigh, yLow, yHigh]. */
function plane(host, bounds, options) {
  const width = host.clientWidth, height = 240;
  const [xLow, xHigh, yLow, yHigh] = bounds;
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const part = (value, low, high) => options.log ? Math.log(value / low) / (Math.log(high / low) || 1) : (value - low) / (high - low || 1);
  const marks = options.log ? powers : ticks;
  const x = (value) => MARGIN.left + part(value, xLow, xHigh) * (right - MARGIN.left);
  const y = (value) => bottom - part(value, yLow, yHigh) * (bottom - MARGIN.top);
  const svg = make("svg:svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const [value, text] of marks(yLow, yHigh, options.yUnit, 4))
    svg.append(
      make("svg:line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
      make("svg:text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, text));
  for (const [value, text] of marks(xLow, xHigh, options.xUnit, Math.max(2, Math.floor(width / 110))))
    svg.append(make("svg:text", { class: "tick", x: x(value), y: bottom + 17, "text-anchor": "middle" }, text));
  svg.append(
    make("svg:line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
    make("svg:text", { class: "tick", x: right, y: height - 6, "text-anchor": "end" }, options.xLabel),
    make("svg:text", { class: "tick", x: 0, y: 10 }, options.yLabel));
  return { svg, x, y, right, bottom };
}

/** Powers of ten from `low` to `high`, and a function that formats them; at most three times `wanted`. */
function powers(low, high, unit, wanted) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const step = Math.max(1, Math.ceil((last - first + 1) / (3 * wanted)));
  const values = [];
  for (let power = first; power <= last; power += step) values.push([10 ** power, format(10 ** power, unit)]);
  return values;
}

function drawMarks(area, marks, unit) {
  const taken = [];
  for (const mark of marks) {
    const beyond = area.x(mark.value) > area.right;
    const at = Math.min(area.x(mark.value), area.right);
    const level = taken.filter((other) => Math.abs(other - at) < 34).length;
    taken.push(at);
    area.svg.append(
      make("svg:line", { class: "mark", x1: at, x2: at, y1: MARGIN.top - 6 + 12 * level, y2: area.bottom }),
      make("svg:text", { class: "tick", x: beyond ? at - 4 : at + 4, y: MARGIN.top - 2 + 12 * level,
        "text-anchor": beyond ? "end" : "start" }, beyond ? `${mark.label} ${format(mark.value, unit)} \u2192` : mark.label));
  }
}

/** [low, high] with a margin: points on an edge are hard to see, and a single value has no span. */
function widened([low, high], room) {
  const span = (high - low) || Math.abs(high) * 0.1 || 1;
  return high > low && !room ? [low, high] : [low - span * (room || 1), high + span * (room || 1)];
}

/** Labels next to points, if there are few; labels that would overlap another are only shown in the tooltip. */
function nameSpots(area, points, labels) {
  if (points.length > 12) return;
  const taken = [];
  points.forEach(([px, py], at) => {
    const text = shorten(labels[at] || "", 24), width = text.length * 6.2;
    const left = area.x(px) + 8 + width > area.right ? area.x(px) - 8 - width : area.x(px) + 8;
    const top = area.y(py) + 9;  // below: fronts rise to the right
    if (taken.some((other) => Math.abs(other.top - top) < 13 && left < other.left + other.width && other.left < left + width)) return;
    taken.push({ left, top, width });
    area.svg.append(make("svg:text", { class: "tick", x: left, y: top + 4 }, text));
  });
}

function drawLines(host, chart) {
  const points = chart.series.flatMap((series) => series.points);
  const xs = [...points.map(([value]) => value), ...(chart.points ? chart.marks.map((mark) => mark.value) : [])], ys = points.map(([, value]) => value);
  const yLow = chart.y_from_zero ? Math.min(0, ...ys) : Math.min(...ys);
  const room = chart.points ? 0.08 : 0;
  const bounds = chart.log ? [Math.min(...xs), Math.max(...xs), Math.min(...ys) / 1.5, Math.max(...ys) * 1.5] : [...widened([Math.min(...xs), Math.max(...xs)], room), ...(chart.y_from_zero ? [yLow, Math.max(...ys)] : widened([yLow, Math.max(...ys)], room))];
  const area = plane(host, bounds, {
    xUnit: chart.x_unit, yUnit: chart.y_unit, xLabel: chart.x_label, yLabel: chart.y_label, log: chart.log });
  chart.series.forEach((series, index) => {
    const stroke = series.category ? colour(series.category) : `var(--c${index % 8})`;
    let path = "";
    series.points.forEach(([px, py], at) => {
      if (chart.steps && at) path += `H${area.x(px)}`;
      path += `${at ? "L" : "M"}${area.x(px)},${area.y(py)}`;
    });
    if (chart.area && index === 0 && path)
      area.svg.append(make("svg:path", { class: "area", d: `${path}V${area.y(yLow)}H${area.x(series.points[0][0])}Z`, fill: stroke }));
    if (!chart.points || series.line) area.svg.append(make("svg:path", { d: path, fill: "none", stroke, "stroke-width": 2, "stroke-linejoin": "round" }));
    const radius = series.points.length > 60 && !chart.points ? 0 : room ? 4 : 2.6;
    series.points.forEach(([px, py], at) => {
      const name = (index === 0 && chart.labels[at]) || series.name;
      const spot = make("svg:g", {},
        make("svg:circle", { cx: area.x(px), cy: area.y(py), r: 8, fill: "transparent" }),
        make("svg:circle", { cx: area.x(px), cy: area.y(py), r: radius, fill: stroke }));
      area.svg.append(hover(spot, name, [`${format(px, chart.x_unit)}: ${format(py, chart.y_unit)}`]));
    });
  });
  drawMarks(area, chart.marks, chart.x_unit);
  if (room && chart.labels.length) nameSpots(area, chart.series[0].points, chart.labels);
  host.replaceChildren(area.svg);
  if (chart.series.length > 1)
    host.append(make("ul", { class: "legend" }, chart.series.map((series, index) => make("li", {},
      make("span", { class: "swatch",
        style: `background: ${series.category ? colour(series.category) : `var(--c${index % 8})`}` }), series.name))));
}

function drawHistogram(host, chart) {
  const values = [...chart.values].sort((a, b) => a - b);
  // Outliers would squeeze the rest into one bar: the last bar includes everything beyond the end of the axis.
  const at = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
  const low = values[0], median = at(0.5);
  const reach = Math.max(at(0.75), Math.min(at(0.99), median + 4 * Math.max(at(0.75) - low, 0.1 * median)));
  const high = Math.max(reach, low * (1 + 1e-9) + 1e-12);
  const count = Math.max(1, Math.min(40, Math.ceil(Math.sqrt(values.length) * 1.5)));
  const size = (high - low) / count, bins = new Array(count).fill(0);
  for (const value of values) bins[Math.min(count - 1, Math.max(0, Math.floor((value - low) / size)))] += 1;
  const area = plane(host, [low, high, 0, Math.max(...bins)], {
    xUnit: chart.unit, yUnit: "", xLabel: chart.label, yLabel: "runs" });
  bins.forEach((bin, index) => {
    const from = low + index * size, left = area.x(from), top = area.y(bin);
    const last = index === count - 1 && values[values.length - 1] > high;
    const to = last ? values[values.length - 1] : from + size;
    const bar = make("svg:rect", { x: left + 0.5, y: top, width: Math.max(1, area.x(from + size) - left - 1),
      height: Math.max(0, area.bottom - top), rx: 1.5, fill: "var(--accent)" });
    area.svg.append(hover(bar, `${bin} of ${values.length}`, [`${format(from, chart.unit)} to ${format(to, chart.unit)}`]));
  });
  drawMarks(area, chart.marks, chart.unit);
  host.replaceChildren(area.svg);
}
