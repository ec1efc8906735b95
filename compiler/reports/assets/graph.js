"use strict";
// Nodes in levels from left to right, scrollable; a click on one marks its row in a table.

const BOX = { width: 168, height: 40, across: 36, down: 26, top: 40 };

function drawGraph(host, chart) {
  const x = (node) => 4 + node.level * (BOX.width + BOX.across);
  const y = (node) => BOX.top + node.slot * (BOX.height + BOX.down);
  const width = Math.max(0, ...chart.nodes.map(x)) + BOX.width + 8;
  const height = Math.max(0, ...chart.nodes.map(y)) + BOX.height + 12;
  const svg = make("svg:svg", { width, height, viewBox: `0 0 ${width} ${height}`, style: `width: ${width}px`, role: "img" });
  const nodes = new Map(chart.nodes.map((node) => [node.id, node]));
  for (const [from, to] of chart.edges) svg.append(edge(from, to, nodes.get(from), nodes.get(to), x, y));
  for (const node of chart.nodes) svg.append(box(node, x(node), y(node)));
  const left = host.firstChild ? host.firstChild.scrollLeft : 0;
  host.replaceChildren(make("div", { class: "graph" }, svg));
  host.firstChild.scrollLeft = left;
}

/** An edge; edges that skip levels pass above their nodes. */
function edge(from, to, source, target, x, y) {
  const left = x(source) + BOX.width, right = x(target), top = y(source) + BOX.height / 2, end = y(target) + BOX.height / 2;
  const span = target.level - source.level;
  const bend = span > 1 ? -(BOX.height / 2 + Math.min(6 + 2 * span, 16)) * 4 / 3 : 0;
  const reach = Math.max(BOX.across / 2, bend ? BOX.across : (right - left) / 2);
  const marked = from === picked || to === picked;
  return make("svg:path", { class: marked ? "edge picked" : "edge", "data-ids": `${from} ${to}`,
    d: `M${left},${top}C${left + reach},${top + bend} ${right - reach},${end + bend} ${right},${end}` });
}

function box(node, left, top) {
  const group = make("svg:g", { class: node.id === picked ? "node picked" : "node", "data-ids": node.id, tabindex: 0,
    transform: `translate(${left},${top})` },
    make("svg:rect", { class: "box", width: BOX.width, height: BOX.height, rx: 5 }),
    make("svg:rect", { width: 5, height: BOX.height, rx: 2.5, fill: colour(node.category) }),
    make("svg:text", { x: 12, y: 17 }, fitted(node.label, BOX.width - 18)),
    make("svg:text", { class: "tick", x: 12, y: 32 }, fitted(node.text, BOX.width - 18)));
  group.addEventListener("click", () => showRow(node.id));
  group.addEventListener("keydown", (event) => { if (event.key === "Enter") showRow(node.id); });
  return hover(group, node.label, node.details);
}

function showRow(id) {
  pick(id);
  document.querySelector(`tr[data-ids="${id}"]`)?.scrollIntoView({ block: "nearest" });
}

function showNode(id) {
  pick(id);
  const node = document.querySelector(`g[data-ids="${id}"]`), frame = node?.closest(".graph");
  if (!frame) return;
  const inside = node.getBoundingClientRect(), outside = frame.getBoundingClientRect();
  frame.scrollBy(inside.left - outside.left - (outside.width - inside.width) / 2,
    inside.top - outside.top - (outside.height - inside.height) / 2);
}
