// Cells of the test slide, coloured by a gene or a factor over the H&E.
//
// The bins of all cells are painted once per choice into a picture of one pixel per 2 µm bin, and halved
// until it is small; while the reader moves, the canvas draws the one that fits what is seen.
const CELLS = read("cells");
const CELL_SLIDE = 0; // cells belong to a run's only test slide
const LONGEST_SMALL = 1024; // of the smallest picture, px
const BORDERS_FROM = 5; // screen px per bin from which lines separate the cells

const cells = {
  data: null, // what loadCells returns
  choice: null, // {gene} as an index in its list, or {factor}
  what: "predicted",
  predicted: null, observed: null, // UMIs per bin of each cell, or null
  limit: 1,
  pictures: [], // from the finest on
  over: -1, kept: -1, // the cell under the pointer, and the one that was clicked
  opacity: 1,
  viewer: null,
  bins: CELLS.rows * CELLS.cols,
};
const HAS_FACTORS = CELLS.tops.length > 0;

async function loadCells() {
  const streams = ["cell", "row", "col"].map((name) => summed(`cell-run-${name}`));
  const plain = ["cell-run-length", "cell-bins", "cell-area", "cell-class"].map(numbersOf);
  const factors = CELLS.tops.map((_, k) => stepsOf(`cell-factor-${k}`));
  const [cell, row, col] = await Promise.all(streams);
  const [length, n, area, classes] = await Promise.all(plain);
  const names = JSON.parse(new TextDecoder().decode(await unpacked("cell-names")));
  const labels = new Uint32Array(cells.bins); // cell + 1 of each bin
  for (let i = 0; i < cell.length; i++) {
    const at = row[i] * CELLS.cols + col[i];
    labels.fill(cell[i] + 1, at, at + length[i]);
  }
  return { cell, row, col, length, n, area, classes, names, labels, factors: await Promise.all(factors) };
}

/* Values */

/** UMIs per bin of each cell: predicted, and observed where the page has them. */
async function valuesOf(choice) {
  const { n, factors } = cells.data;
  if (choice.factor !== undefined) {
    return { predicted: weighted(CELLS.tops, factors, alone(CELLS.tops, choice.factor)), observed: null, entry: null };
  }
  const entry = entryOfCells(choice.gene);
  let predicted;
  if (HAS_FACTORS) predicted = weighted(CELLS.tops, factors, await loadingsOf(choice.gene));
  else predicted = weighted([entry.top], [await stepsOf(`cell-predicted-${entry.gene}`)], [1]);
  if (!entry) return { predicted, observed: null, entry };
  const umisOf = await numbersOf(`cell-observed-${entry.gene}`);
  return { predicted, observed: Float32Array.from(umisOf, (count, i) => (n[i] ? count / n[i] : 0)), entry };
}

/** What the page has of a gene's observed UMIs; of a run with factors, genes are those of all. */
function entryOfCells(gene) {
  if (!HAS_FACTORS) return CELLS.genes.find((entry) => entry.gene === gene);
  return CELLS.genes.find((entry) => GENES.genes[entry.gene].id === ALL.ids[gene]);
}

const cellLabels = () => (HAS_FACTORS ? ALL.labels : CELLS.genes.map((entry) => GENES.genes[entry.gene].label));
const labelOfCells = (gene) => (HAS_FACTORS ? ALL.labels[gene] : GENES.genes[gene].label);

async function showCells(choice) {
  cells.choice = choice;
  const found = await valuesOf(choice);
  if (cells.choice !== choice) return; // another was chosen meanwhile
  Object.assign(cells, found);
  const known = (values) => values.filter((_, i) => cells.data.n[i]);
  cells.limit = upperEnd(known(found.predicted));
  if (found.observed) cells.limit = Math.max(cells.limit, upperEnd(known(found.observed), 0.98));
  if (!found.observed) cells.what = "predicted";
  for (const input of document.querySelectorAll("#cells-what input")) {
    input.disabled = input.value === "observed" && !found.observed;
    input.checked = input.value === cells.what;
  }
  const isGene = choice.gene !== undefined;
  const label = isGene ? labelOfCells(choice.gene) : `factor ${choice.factor + 1}`;
  $("cells-gene").value = isGene ? label : "";
  $("cells-factor").value = isGene ? "" : String(choice.factor);
  const per64 = 16; // bins of 4 µm²
  $("cells-middle").textContent = umis((cells.limit * per64) / 2);
  $("cells-limit").textContent = `≥ ${umis(cells.limit * per64)}`;
  $("cells-unit").textContent = `UMIs per 64 µm² of ${label}`;
  $("cells-scores").textContent = found.entry
    ? `${label}: PCC over cells ${digits(found.entry.pcc)} (ceiling ${digits(found.entry.ceiling)})` : label;
  $("cells-in-file").textContent = !isGene || found.observed ? "" :
    "It has observed UMIs only of the panel's genes.";
  paintCells();
  readCell();
}

/* Drawing */

/** The colour of each cell as a canvas holds it, 0 where it has no scored bin. */
function coloursOfCells() {
  const values = cells[cells.what], { n } = cells.data;
  const packed = new Uint32Array(PALETTE.map(([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0));
  return Uint32Array.from(values, (value, i) =>
    n[i] ? packed[Math.min(255, Math.floor((256 * value) / cells.limit))] : 0);
}

function paintCells() {
  const { cell, row, col, length } = cells.data, colours = coloursOfCells();
  const image = new ImageData(CELLS.cols, CELLS.rows), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < cell.length; i++) {
    const at = row[i] * CELLS.cols + col[i];
    pixels.fill(colours[cell[i]], at, at + length[i]);
  }
  const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), { width, height });
  let at = canvasOf(CELLS.cols, CELLS.rows);
  at.getContext("2d").putImageData(image, 0, 0);
  cells.pictures = [at];
  while (Math.max(at.width, at.height) > LONGEST_SMALL) {
    const half = canvasOf(Math.ceil(at.width / 2), Math.ceil(at.height / 2));
    half.getContext("2d").drawImage(at, 0, 0, at.width / 2, at.height / 2);
    cells.pictures.push(half);
    at = half;
  }
  drawCells();
}

/** Where bin (0, 0) begins on the screen, and px per bin. */
function placeOfCells() {
  const item = cells.viewer.world.getItemAt(0);
  if (!item) return null;
  const { x: width } = item.getContentSize();
  const [first, last] = [0, width].map((x) => item.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, 0), true));
  return { x: first.x, y: first.y, side: (last.x - first.x) / SLIDES[CELL_SLIDE].width };
}

function drawCells() {
  const canvas = $("cells-canvas"), place = placeOfCells();
  if (!place || !cells.pictures.length) return;
  const dense = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * dense), height = Math.round(canvas.clientHeight * dense);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, width, height);
  const level = Math.min(cells.pictures.length - 1, Math.max(0, Math.floor(-Math.log2(place.side * dense))));
  const picture = cells.pictures[level], side = place.side * 2 ** level;
  context.imageSmoothingEnabled = place.side < 1;
  context.globalAlpha = cells.opacity;
  context.drawImage(picture, place.x, place.y, picture.width * side, picture.height * side);
  context.globalAlpha = 1;
  if (place.side >= BORDERS_FROM) strokeBorders(context, place, canvas);
  for (const cell of new Set([cells.over, cells.kept])) if (cell >= 0) strokeCell(context, place, cell);
}

/** Lines between bins of different cells, in what is seen. */
function strokeBorders(context, { x, y, side }, canvas) {
  const { labels } = cells.data, { rows, cols } = CELLS;
  const within = (value, n) => Math.min(Math.max(value, 0), n);
  const [top, bottom] = [-y / side, (canvas.clientHeight - y) / side].map((v) => within(Math.floor(v), rows));
  const [left, right] = [-x / side, (canvas.clientWidth - x) / side].map((v) => within(Math.floor(v) + 1, cols));
  context.beginPath();
  for (let row = top; row < Math.min(bottom + 1, rows); row++) {
    for (let col = Math.max(left - 1, 0); col < right; col++) {
      const own = labels[row * cols + col];
      edges(context, x + col * side, y + row * side, side,
        col > 0 && labels[row * cols + col - 1] !== own, row > 0 && labels[(row - 1) * cols + col] !== own);
    }
  }
  context.lineWidth = 1;
  context.strokeStyle = "#ffffffb0";
  context.stroke();
}

/** The left and the upper side of a bin. */
function edges(context, x, y, side, left, upper) {
  if (left) { context.moveTo(x, y); context.lineTo(x, y + side); }
  if (upper) { context.moveTo(x, y); context.lineTo(x + side, y); }
}

/** The outline of one cell's bins, whose runs lie side by side. */
function strokeCell(context, { x, y, side }, wanted) {
  const { cell, row, col, length, labels } = cells.data, { rows, cols } = CELLS;
  const is = (r, c) => r >= 0 && r < rows && c >= 0 && c < cols && labels[r * cols + c] === wanted + 1;
  context.beginPath();
  for (let i = firstRun(cell, wanted); i < cell.length && cell[i] === wanted; i++) {
    for (let c = col[i]; c < col[i] + length[i]; c++) {
      const r = row[i], px = x + c * side, py = y + r * side;
      edges(context, px, py, side, !is(r, c - 1), !is(r - 1, c));
      edges(context, px + side, py, side, !is(r, c + 1), false);
      edges(context, px, py + side, side, false, !is(r + 1, c));
    }
  }
  for (const [width, colour] of [[4, "#000000a0"], [2, "#20e0d0"]]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}

/** The first run of a cell, as runs are sorted by cell. */
function firstRun(cell, wanted) {
  let low = 0, high = cell.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (cell[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* Reading a cell */

/** The cell at a place of the viewer, or -1. */
function cellAt({ x, y }) {
  const place = placeOfCells();
  if (!place || !cells.data) return -1;
  const col = Math.floor((x - place.x) / place.side), row = Math.floor((y - place.y) / place.side);
  if (row < 0 || col < 0 || row >= CELLS.rows || col >= CELLS.cols) return -1;
  return cells.data.labels[row * CELLS.cols + col] - 1;
}

function readCell() {
  const i = cells.over >= 0 ? cells.over : cells.kept;
  if (i < 0) {
    $("cells-readout").textContent = "Point at a cell to read it; click to keep it.";
    return;
  }
  const { names, classes, area, n } = cells.data, group = CELLS.classes[classes[i]];
  const parts = [`${names[i]}${group ? ` (${group})` : ""}, ${area[i]} µm²: `];
  if (!n[i]) parts.push("no scored bin");
  else {
    parts.push("predicted ", umis(Number((cells.predicted[i] * n[i]).toPrecision(2))));
    if (cells.observed) parts.push(", observed ", String(Math.round(cells.observed[i] * n[i])));
    parts.push(` UMIs in its ${n[i]} scored bins`);
  }
  $("cells-readout").replaceChildren(...parts.map((text, k) => Object.assign(
    document.createElement(/^[\d.–-]/.test(text) ? "b" : "span"), { textContent: text, className: k ? "" : "name" })));
}

function lookAtCell(wanted) {
  const text = wanted.trim(), { names, cell, row, col } = cells.data;
  const i = text ? names.findIndex((name) => name === text) : -1;
  cells.kept = i;
  $("cells-status").textContent = text && i < 0 ? "No cell has this name." : "";
  if (i >= 0) {
    const run = firstRun(cell, i), item = cells.viewer.world.getItemAt(0);
    const scale = item.getContentSize().x / SLIDES[CELL_SLIDE].width;
    const around = 32; // bins
    cells.viewer.viewport.fitBounds(item.imageToViewportRectangle(
      (col[run] - around) * scale, (row[run] - around) * scale, 2 * around * scale, 2 * around * scale));
  }
  readCell();
  drawCells();
}

/* Start */

/** The viewer of this section, with the H&E of the viewer above. */
function openCells() {
  const viewerOf = OpenSeadragon({
    element: $("cells-osd"), drawer: "canvas", showNavigationControl: false, visibilityRatio: 0.5,
    minZoomImageRatio: 0.5, maxZoomPixelRatio: 24, animationTime: 0.5,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    tileSources: [imageSource(CELL_SLIDE)],
  });
  viewerOf.addHandler("update-viewport", drawCells);
  for (const event of ["open", "animation", "resize"]) {
    viewerOf.addHandler(event, () => drawScaleBar(viewerOf, SLIDES[CELL_SLIDE], $("cells-scale-bar")));
  }
  viewerOf.addHandler("canvas-key", (event) => {
    if (["r", "f"].includes(event.originalEvent.key.toLowerCase())) event.preventDefaultAction = true;
  });
  viewerOf.addHandler("canvas-click", (event) => {
    if (!event.quick) return; // the end of a drag
    const cell = cellAt(event.position);
    cells.kept = cell === cells.kept ? -1 : cell;
    readCell();
    drawCells();
  });
  const point = (cell) => {
    if (cell === cells.over) return;
    cells.over = cell;
    readCell();
    drawCells();
  };
  $("cells-osd").addEventListener("pointermove", (event) => {
    const { left, top } = $("cells-osd").getBoundingClientRect();
    point(cellAt({ x: event.clientX - left, y: event.clientY - top }));
  });
  $("cells-osd").addEventListener("pointerleave", () => point(-1));
  const zoom = (factor) => viewerOf.viewport.zoomBy(factor) && viewerOf.viewport.applyConstraints();
  $("cells-in").addEventListener("click", () => zoom(1.5));
  $("cells-out").addEventListener("click", () => zoom(1 / 1.5));
  $("cells-home").addEventListener("click", () => viewerOf.viewport.goHome());
  return viewerOf;
}

async function showFirstCells() {
  $("cells-status").textContent = "Reading the cells …";
  cells.viewer = openCells();
  cells.data = await loadCells();
  const labels = cellLabels();
  $("cells-genes").replaceChildren(...labels.map((label) => new Option(label)));
  $("cells-gene").addEventListener("input", (event) => {
    const at = labels.indexOf(event.target.value);
    if (at >= 0) showCells({ gene: HAS_FACTORS ? at : CELLS.genes[at].gene });
  });
  $("cells-find").addEventListener("input", (event) => lookAtCell(event.target.value));
  $("cells-opacity").addEventListener("input", (event) => {
    cells.opacity = event.target.value / 100;
    drawCells();
  });
  segments($("cells-what"), "cells-what", ["predicted", "observed"].map((what) => [what, NAMES[what]]), cells.what, (what) => {
    cells.what = what;
    paintCells();
  });
  $("cells-factor-choice").hidden = !HAS_FACTORS;
  if (HAS_FACTORS) {
    const { leading } = ALL_SLIDES[CELL_SLIDE];
    $("cells-factor").replaceChildren(new Option("–", ""), ...CELLS.tops.map((_, k) =>
      new Option(`${k + 1}: ${leading[k].slice(0, 3).join(", ")}`, k)));
    $("cells-factor").addEventListener("change", (event) => {
      if (event.target.value !== "") showCells({ factor: Number(event.target.value) });
    });
  }
  const first = HAS_FACTORS ? ALL.ids.indexOf(GENES.genes[0].id) : CELLS.genes[0]?.gene ?? -1;
  if (first >= 0) await showCells({ gene: first });
  else if (HAS_FACTORS) await showCells({ factor: 0 });
  $("cells-status").textContent = "";
}

function startCells() {
  if (!("DecompressionStream" in window)) {
    $("cells-in-file").textContent = "This browser is too old to read the cells in this file.";
    return;
  }
  document.querySelector(".cells").hidden = false;
  // Megabytes: read when a reader comes near them.
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    showFirstCells();
  }, { rootMargin: "600px" });
  watch.observe($("cells-section"));
}

startCells();
