"use strict";
// A table that is sortable by its headings and searchable.

function drawTable(host, chart) {
  if (host.dataset.drawn) return;
  host.dataset.drawn = "yes";
  const state = { key: chart.sort_by || null, descending: true, text: "" };
  const count = make("span", { class: "count" });
  const search = make("input", { type: "search", placeholder: "search", "aria-label": "search the table",
    oninput: (event) => { state.text = event.target.value.toLowerCase(); fill(); } });
  const heads = chart.columns.map((column) => make("th", { class: column.number ? "number" : null, scope: "col" },
    make("button", { onclick: () => {
      state.descending = state.key === column.key ? !state.descending : column.number;
      state.key = column.key;
      fill();
    } }, column.label)));
  const body = make("tbody");
  const fill = () => {
    const shown = chart.rows.filter((row) =>
      chart.columns.some((column) => String(row[column.key] ?? "").toLowerCase().includes(state.text)));
    if (state.key) shown.sort((a, b) => order(a[state.key], b[state.key], state.descending));
    body.replaceChildren(...shown.map((row) => line(chart, row)));
    heads.forEach((head, index) => head.setAttribute("aria-sort",
      chart.columns[index].key !== state.key ? "none" : state.descending ? "descending" : "ascending"));
    count.textContent = `${shown.length} of ${chart.rows.length}`;
  };
  fill();
  host.replaceChildren(make("div", { class: "tools" }, search, count),
    make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, heads)), body)));
}

/** A row that shows its details below when it is clicked, or Enter is pressed on it. */
function line(chart, row) {
  const details = row[chart.details_key];
  const id = row[chart.id_key];
  const element = make("tr", { "data-ids": id, ...(details ? { tabindex: 0, "aria-expanded": "false" } : {}) },
    chart.columns.map((column, index) => cell(chart, row, column, index)));
  element.classList.toggle("opens", Boolean(details));
  element.classList.toggle("picked", id !== undefined && id === picked);
  if (!details) return element;
  const toggle = () => {
    const open = element.getAttribute("aria-expanded") === "true";
    element.setAttribute("aria-expanded", String(!open));
    if (open) { element.nextSibling.remove(); return; }
    element.after(make("tr", { class: "details" }, make("td", { colspan: chart.columns.length }, make("dl", {},
      details.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])))));
  };
  const chosen = () => {
    toggle();
    if (id !== undefined) showNode(id);
  };
  element.addEventListener("click", chosen);
  element.addEventListener("keydown", (event) => { if (event.key === "Enter") chosen(); });
  return element;
}

/** Missing values come last in either direction. */
function order(a, b, descending) {
  const missing = (value) => value === null || value === undefined;
  if (missing(a) || missing(b)) return Number(missing(a)) - Number(missing(b));
  const sign = descending ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
}

function cell(chart, row, column, index) {
  const value = row[column.key];
  if (column.number) {
    const bar = column.bar && typeof value === "number"
      ? make("span", { class: "share" }, make("span", { style: `width: ${Math.min(100, 100 * value)}%` })) : null;
    return make("td", { class: "number" }, typeof value === "string" ? value : format(value, column.unit), bar);
  }
  const swatch = column.key === chart.category_key
    ? make("span", { class: "swatch", style: `background: ${colour(value)}` }) : null;
  const place = index === 0 ? "first" : index === chart.columns.length - 1 ? "last" : null;
  return make("td", { class: place, title: index === 0 ? String(value) : null }, swatch, value ?? "-");
}
