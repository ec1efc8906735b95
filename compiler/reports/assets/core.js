"use strict";
// Shared by all charts: data, elements, numbers, scales, colors, the tooltip.

const report = JSON.parse(document.getElementById("data").textContent);

/** An element with attributes and children; names of SVG elements have the prefix "svg:". */
function make(name, attributes = {}, ...children) {
  const svg = name.startsWith("svg:");
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
}

function threeDigits(value) {
  const size = Math.abs(value);
  return value.toFixed(size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
}

const SCALES = {
  s: [[1, "s"], [1e-3, "ms"], [1e-6, "us"], [1e-9, "ns"]],
  B: [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]],
  "1/s": [[1e12, "TFLOP/s"], [1e9, "GFLOP/s"], [1e6, "MFLOP/s"], [1e3, "kFLOP/s"], [1, "FLOP/s"]],
  "": [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]],
};

/** [factor, name] of the unit that suits a value. */
function scaleOf(value, unit) {
  if (unit === "%") return [0.01, "%"];
  const scales = SCALES[unit];
  return scales.find(([factor]) => Math.abs(value) >= factor * 0.9995) ?? scales[scales.length - 1];
}

function format(value, unit = "") {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  if (value === 0) return unit === "%" ? "0.0 %" : "0";
  if (unit === "%") return `${(100 * value).toFixed(1)} %`;
  const [factor, name] = scaleOf(value, unit);
  const whole = factor === 1 && unit === "B" && Number.isInteger(value);
  // A scale of 0.0003 is not 0.00, and 0.987 is not 0.99.
  const rounded = Math.abs(value) < 1e-4 ? value.toExponential(2) : Number(value.toPrecision(4));
  const plain = factor === 1 && unit === "" ? rounded : null;
  return `${whole ? value : plain ?? threeDigits(value / factor)} ${name}`.trim();
}

/** Round positions on an axis from `low` to `high`, and a function that formats them. */
function ticks(low, high, unit, wanted = 5) {
  const [factor, name] = scaleOf(Math.max(Math.abs(low), Math.abs(high)), unit);
  const span = (high - low) / factor || 1;
  const power = 10 ** Math.floor(Math.log10(span / wanted));
  const step = power * ([1, 2, 5, 10].find((each) => span / (power * each) <= wanted) ?? 10);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const values = [];
  for (let value = Math.ceil(low / factor / step - 1e-9) * step; value <= high / factor + step * 1e-6; value += step)
    values.push([value * factor, `${value.toFixed(digits)}${name ? ` ${name}` : ""}`]);
  return values;
}

function colour(category) {
  const index = report.categories.indexOf(category);
  return `var(--c${index < 0 ? 10 : Math.min(index, 10)})`;
}

/** A color in the canvas's format, in the current color scheme. */
function solid(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name.replace(/^var\(|\)$/g, "")).trim();
}

/** `text` shortened in the middle to at most `length` characters. */
function shorten(text, length) {
  if (text.length <= length) return text;
  const head = Math.ceil((length - 1) * 0.6);
  return `${text.slice(0, head)}…${text.slice(text.length - (length - 1 - head))}`;
}

const pen = document.createElement("canvas").getContext("2d");

function setPen() {
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
}

/** Width in pixels of the longest of some chart labels. */
function widest(texts) {
  setPen();
  return Math.max(0, ...texts.map((text) => pen.measureText(text).width));
}

/** `text` shortened in the middle to at most `width` pixels in the font of chart labels. */
function fitted(text, width) {
  setPen();
  let length = text.length;
  while (length > 3 && pen.measureText(shorten(text, length)).width > width) length -= 1;
  return shorten(text, length);
}

/** The id of the marked row and node. */
let picked = null;

/** Mark the rows and nodes with an id, and their edges. */
function pick(id) {
  picked = id;
  for (const element of document.querySelectorAll("[data-ids]"))
    element.classList.toggle("picked", element.dataset.ids.split(" ").includes(String(id)));
}

const tooltip = document.getElementById("tooltip");

function showTooltip(event, title, lines) {
  tooltip.replaceChildren(make("b", {}, title), ...lines.map((line) => make("div", {}, line)));
  tooltip.hidden = false;
  const box = tooltip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const below = event.clientY + 16;
  tooltip.style.left = `${Math.max(8, left)}px`;
  tooltip.style.top = `${below + box.height < innerHeight - 8 ? below : Math.max(8, event.clientY - box.height - 12)}px`;
}

function hideTooltip() {
  tooltip.hidden = true;
}

function hover(element, title, lines) {
  element.addEventListener("pointermove", (event) => showTooltip(event, title, lines));
  element.addEventListener("pointerleave", hideTooltip);
  return element;
}
