"use strict";

// Figures name these colours; the page replaces them by its own, which differ in dark mode.
const STAND_INS = { "#000000": "--ink", "#dddddd": "--grid", "#0072B2": "--blue" };
const PRINT_WIDTH = 680;
const LINE = 16;  // pixels

function drawPlots(width) {
  const style = getComputedStyle(document.documentElement);
  for (const source of document.querySelectorAll("script[data-plot]")) {
    let text = source.textContent;
    for (const [standIn, name] of Object.entries(STAND_INS)) {
      text = text.replaceAll(`"${standIn}"`, JSON.stringify(style.getPropertyValue(name).trim()));
    }
    const figure = JSON.parse(text);
    const box = document.getElementById(source.dataset.plot);
    const narrow = box.clientWidth < 560;
    if (narrow) fitNarrow(figure, box.clientWidth);
    if (width) Object.assign(figure.layout, { width, autosize: false });
    Plotly.react(box, figure.data, figure.layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: narrow ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg" },
    });
  }
}

function wrap(text, width) {
  return text.replace(new RegExp(`(.{1,${width}})(\\s|$)`, "g"), "$1<br>").slice(0, -4);
}

// Names beside the plot would leave no room for it.
function fitNarrow(figure, width) {
  const layout = figure.layout;
  for (const axis of [layout.xaxis, layout.yaxis]) {
    if (axis.title.text) axis.title.text = wrap(axis.title.text, 34);
  }
  if (layout.yaxis.ticktext) nameAbove(layout, width);
  for (const trace of figure.data) {
    if (trace.type === "heatmap") letterHeatMap(trace, layout);
  }
}

// Names of rows stand above them; layout.meta.room is the share of a row that is free there.
function nameAbove(layout, width) {
  const names = layout.yaxis.ticktext.map((text) => wrap(text.replaceAll("<br>", " "), Math.floor(width / 8)));
  const paper = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim();
  const lines = Math.max(...names.map((text) => text.split("<br>").length));
  const rowHeight = (LINE * lines + 8) / layout.meta.room;
  layout.height = Math.max(layout.height, 170 + rowHeight * names.length);
  layout.yaxis.showticklabels = false;
  layout.yaxis.ticks = "";
  layout.annotations = names.map((text, row) => ({
    text, x: 0, xref: "paper", xanchor: "left", y: layout.yaxis.tickvals[row] - 0.5, yanchor: "top",
    align: "left", showarrow: false, font: { size: 12 }, bgcolor: paper,
  }));
}

// Long names become letters, explained below; the scale lies above the cells.
function letterHeatMap(trace, layout) {
  trace.colorbar = {
    ...trace.colorbar, orientation: "h", thickness: 10, y: 1.02, yanchor: "bottom", title: { side: "top",
      text: trace.colorbar.title.text.replace("<br>", " ") },
  };
  layout.height += 60;
  if (Math.max(...trace.x.map((name) => name.length)) <= 8) return;
  const letters = trace.x.map((_, place) => String.fromCodePoint(65 + place));
  for (const axis of [layout.xaxis, layout.yaxis]) {
    Object.assign(axis, { tickvals: letters.map((_, place) => place), ticktext: letters });
  }
  layout.xaxis.title = { text: trace.x.map((name, place) => `${letters[place]}: ${name}`).join("<br>"), standoff: 12 };
  layout.xaxis.title.font = { size: 12 };
  layout.height += 17 * letters.length;
}

function sortValue(cell) {
  const value = cell.dataset.value;
  if (!value) return cell.textContent.trim();
  return value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value);
}

function sortBy(header) {
  const body = header.closest("table").tBodies[0];
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const sign = descending ? -1 : 1;
  const missing = (value) => value === "–" || Number.isNaN(value);
  const keyed = [...body.rows].map((row) => [sortValue(row.cells[header.cellIndex]), row]);
  keyed.sort(([a], [b]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);  // at the end in both directions
    if (typeof a === "number" && typeof b === "number") return sign * (a < b ? -1 : a > b);
    return sign * String(a).localeCompare(String(b), "en", { numeric: true });
  });
  body.append(...keyed.map(([, row]) => row));
}

function filterRows(part) {
  const words = part.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  const select = part.querySelector("select");
  const rows = [...part.querySelectorAll("tbody tr")];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const inGroup = !select || !select.value || row.dataset.group === select.value;
    row.hidden = !(inGroup && words.every((word) => text.includes(word)));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  part.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
}

for (const header of document.querySelectorAll("th[data-key]")) {
  header.querySelector("button").addEventListener("click", () => sortBy(header));
}
for (const part of document.querySelectorAll(".searchable")) {
  for (const control of part.querySelectorAll("input, select")) {
    control.addEventListener("input", () => filterRows(part));
  }
  const input = part.querySelector("input");
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    input.value = "";
    filterRows(part);
  });
  filterRows(part);  // a browser that goes back keeps what was typed
}
drawPlots();
matchMedia("screen and (prefers-color-scheme: dark)").addEventListener("change", () => drawPlots());
let closed = [];  // on paper nothing can be opened
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
  drawPlots(PRINT_WIDTH);
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
  drawPlots();
});
