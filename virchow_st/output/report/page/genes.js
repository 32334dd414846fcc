"use strict";

// The data of the page: the scores of the genes, and the slides with their genes in the same order.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const GENES = read("gene-data");
const SLIDES = read("slide-data");
const $ = (id) => document.getElementById(id);

/** A number rounded for reading, or a dash if it is undefined. */
function digits(value, n = 3) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(n);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

/** UMIs to three significant digits. */
function umis(value) {
  return value === 0 ? "0" : Number(value.toPrecision(value >= 100 ? 4 : 3)).toString();
}

/** Radio buttons that look like one bar; `choices` are [value, text] each. */
function segments(fieldset, name, choices, chosen, change) {
  for (const [value, text] of choices) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name, value, checked: value === chosen });
    input.addEventListener("change", () => change(value));
    label.append(input, text);
    fieldset.append(label);
  }
}

/* The table of genes */
const table = {
  scale: "8",
  sort: "pcc",
  isDown: true,
  show: () => {}, // set by the viewer: shows a gene on the slide

  value(gene, column, scale = table.scale) {
    if (column === "label") return gene.label;
    return gene.figures[scale]?.[GENES.columns.indexOf(column)] ?? null;
  },

  fill() {
    const sign = table.isDown ? -1 : 1;
    const order = GENES.genes.map((gene, index) => [table.value(gene, table.sort), index]);
    order.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return (typeof a === "string" ? a.localeCompare(b) : a - b) * sign || i - j;
    });
    const rows = order.map(([, index]) => {
      const gene = GENES.genes[index];
      const row = document.createElement("tr");
      const name = row.insertCell();
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = gene.label;
      button.title = `${gene.id}: show on the slide`;
      button.addEventListener("click", () => table.show(index));
      name.append(button);
      for (const column of GENES.columns) {
        const cell = row.insertCell();
        cell.textContent = digits(table.value(gene, column));
        cell.classList.toggle("minor", GENES.subordinate.includes(column));
        cell.classList.toggle("first", GENES.first.includes(column));
      }
      return row;
    });
    $("gene-table").tBodies[0].replaceChildren(...rows);
    for (const button of document.querySelectorAll("#gene-table [data-sort]")) {
      const head = button.parentElement;
      const isSorted = button.dataset.sort === table.sort;
      if (isSorted) head.setAttribute("aria-sort", table.isDown ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  },

  start() {
    const scales = ["2", "4", "8", "16"].map((scale) => [scale, `${scale} µm`]);
    segments($("table-scale"), "table-scale", scales, table.scale, (scale) => {
      table.scale = scale;
      table.fill();
    });
    for (const button of document.querySelectorAll("#gene-table [data-sort]")) {
      const column = button.dataset.sort;
      button.addEventListener("click", () => {
        table.isDown = column === table.sort ? !table.isDown : column !== "label";
        table.sort = column;
        table.fill();
      });
    }
    table.fill();
  },
};

table.start();
