// The slide: H&E below, two maps above it, each cut to its side of the divider. Every layer covers
// the same area, which is 1 wide in the viewer's coordinates; rows go down.
const WHATS = ["observed", "predicted"];
const NAMES = { he: "H&E", observed: "Observed", predicted: "Predicted" };
const SCALES = [16, 8, 4, 2]; // µm; levels of a map's pyramid from the coarsest
const STEPS = 254; // of a map's palette, as virchow_st/report/layers.py draws it
const UNIT_UM = 8; // colour limits are UMIs per 8 µm × 8 µm

const state = { slide: 0, gene: 0, scale: 8, left: "observed", right: "predicted", opacity: 1, split: 0.5 };
const layers = { he: null, observed: null, predicted: null }; // each {key, item, before}

document.querySelector(".viewer").hidden = false; // before the viewer measures its place
const viewer = OpenSeadragon({
  element: $("osd"),
  drawer: "canvas", // the one that can draw bins as squares and H&E smoothly
  showNavigationControl: false,
  visibilityRatio: 0.5,
  minZoomImageRatio: 0.5,
  maxZoomPixelRatio: 24,
  animationTime: 0.5,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  imageLoaderLimit: 4,
});

const slideNow = () => SLIDES[state.slide];
const entryOf = (gene) => slideNow().genes.find((entry) => entry.gene === gene);
const scalesOf = (entry) => SCALES.filter((scale) => String(scale) in entry.tops);

/** The scale wanted, or the nearest coarser one that is in the page for this gene. */
function scaleNow() {
  const there = scalesOf(entryOf(state.gene));
  return there.filter((scale) => scale >= state.scale).at(-1) ?? there.at(-1);
}

/* Layers */

/** A pyramid whose tiles are data in the page; `find(level, column, row)` gives an element's id. */
function pyramid(key, width, height, tile, levels, type, find) {
  return new OpenSeadragon.TileSource({
    width, height,
    tileSize: tile,
    minLevel: 0,
    maxLevel: levels - 1,
    getTileUrl: (level, x, y) => [key, level, x, y].join("/"),
    hasTransparency: () => type === "png",
    downloadTileStart(job) {
      const [level, x, y] = job.src.split("/").slice(-3).map(Number);
      const image = new Image();
      image.onload = () => {
        const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        job.finish(context, null, "context2d");
      };
      image.onerror = () => job.fail(`${job.src}: the picture in this page is damaged`, null);
      image.src = `data:image/${type};base64,${$(find(level, x, y)).textContent}`;
    },
    downloadTileAbort() {},
  });
}

function imageSource() {
  const s = state.slide, slide = slideNow();
  const width = (slide.width * slide.binUm) / slide.umPerPx;
  const height = (slide.height * slide.binUm) / slide.umPerPx;
  return pyramid(`he/${s}`, width, height, slide.tile, slide.levels, "jpeg",
    (level, x, y) => `he-${s}-${level}-${x}-${y}`);
}

const mapId = (what, scale) => `map-${state.slide}-${state.gene}-${scale}-${what}`;

function mapSource(what) {
  const slide = slideNow(), finest = scaleNow();
  const scales = SCALES.filter((scale) => scale >= finest);
  const ids = scales.map((scale) => mapId(what, scale));
  const width = (slide.width * slide.binUm) / finest, height = (slide.height * slide.binUm) / finest;
  return pyramid(mapId(what, finest), width, height, Math.max(width, height), scales.length, "png",
    (level) => ids[level]);
}

/** Put a layer in the place of an earlier one, which stays until the new one can be seen. */
function setLayer(name, key, source) {
  const old = layers[name];
  if (old?.key === key) return;
  const layer = { key, item: null, before: old ? [old.item, ...old.before] : [] };
  layers[name] = layer;
  viewer.addTiledImage({
    tileSource: source,
    x: 0, y: 0, width: 1,
    index: name === "he" ? 0 : undefined,
    success({ item }) {
      if (layers[name] !== layer) { // another was chosen while this one loaded
        viewer.world.removeItem(item);
        return;
      }
      layer.item = item;
      item.addHandler("fully-loaded-change", () => settle(layer));
      if (name === "he") viewer.viewport.goHome(true);
      cut();
      settle(layer);
    },
  });
}

/** Remove what stood in a layer's place before it, once it is there itself or need not be. */
function settle(layer) {
  if (!layer?.item || !(layer.item.getFullyLoaded() || layer.item.getOpacity() === 0)) return;
  for (const item of layer.before.splice(0)) if (item) viewer.world.removeItem(item);
}

/** Cut both maps to the sides on which they are wanted. */
function cut() {
  for (const what of WHATS) {
    const item = layers[what]?.item;
    if (!item) continue;
    const sides = ["left", "right"].filter((side) => state[side] === what);
    item.setOpacity(sides.length ? state.opacity : 0);
    const { x: width, y: height } = item.getContentSize();
    const container = viewer.viewport.getContainerSize();
    const divider = new OpenSeadragon.Point(state.split * container.x, 0);
    const at = Math.min(Math.max(item.viewerElementToImageCoordinates(divider).x, 0), width);
    if (sides.length !== 1) item.setClip(null);
    else if (sides[0] === "left") item.setClip(new OpenSeadragon.Rect(0, 0, at, height));
    else item.setClip(new OpenSeadragon.Rect(at, 0, width - at, height));
    if (sides.length === 1 && (sides[0] === "left" ? at : width - at) === 0) item.setOpacity(0);
    settle(layers[what]);
  }
}

/* What stands around the picture */

function show() {
  const entry = entryOf(state.gene), scale = scaleNow(), gene = GENES.genes[state.gene];
  setLayer("he", `he/${state.slide}`, imageSource());
  for (const what of WHATS) {
    if (layers[what]?.key !== mapId(what, scale)) setLayer(what, mapId(what, scale), mapSource(what));
  }
  for (const input of document.querySelectorAll("#scale input")) {
    input.disabled = !(input.value in entry.tops);
    input.checked = Number(input.value) === scale;
  }
  for (const input of document.querySelectorAll("#gene-list input")) {
    input.checked = Number(input.value) === state.gene;
  }
  const limit = entry.limit * (scale / UNIT_UM) ** 2;
  $("middle").textContent = umis(limit / 2);
  $("limit").textContent = `≥ ${umis(limit)}`;
  $("unit").textContent = `UMIs per ${scale} µm bin of ${gene.label}`;
  $("note").textContent = scale === state.scale ? "" :
    `${gene.label} is in this file from ${scale} µm up; see below which genes are at ${state.scale} µm.`;
  const figure = (name) => digits(table.value(gene, name, String(scale)));
  $("gene-scores").textContent = `${gene.label} at ${scale} µm: PCC ${figure("pcc")} ` +
    `(ceiling ${figure("pcc_ceiling")}), SSIM ${figure("ssim")} (null ${figure("ssim_shuffled")})`;
  $("left-name").textContent = sideName("left");
  $("right-name").textContent = sideName("right");
  for (const label of $("gene-list").children) {
    const of = GENES.genes[Number(label.control.value)];
    label.lastChild.textContent = digits(table.value(of, "pcc", String(scale)), 2);
  }
  $("gene-order").textContent = `PCC at ${scale} µm`;
  readLevels();
  if (pointed) point(pointed.clone());
  tellWhatIsThere();
  cut();
}

function sideName(side) {
  const what = state[side];
  return what === "he" ? NAMES.he : `${NAMES[what]}, ${scaleNow()} µm`;
}

function moveCurtain(split) {
  state.split = Math.min(Math.max(split, 0), 1);
  $("curtain").style.left = `${state.split * 100}%`;
  $("curtain").setAttribute("aria-valuenow", Math.round(state.split * 100));
  cut();
}

/** A bar of 1, 2 or 5 × 10ⁿ µm, at most a quarter of the picture wide. */
function drawScaleBar() {
  const slide = slideNow();
  const width = viewer.viewport.getContainerSize().x;
  const umPerPx = (slide.width * slide.binUm * viewer.viewport.getBounds(true).width) / width;
  const most = (umPerPx * width) / 4;
  const power = 10 ** Math.floor(Math.log10(most));
  const um = [5, 2, 1].map((n) => n * power).find((n) => n <= most);
  $("scale-bar").querySelector("i").style.width = `${um / umPerPx}px`;
  $("scale-bar").querySelector("span").textContent = um >= 1000 ? `${um / 1000} mm` : `${um} µm`;
}

/* Reading a bin: the palette's indices, from the same PNG that is shown */

const levelsOf = new Map(); // id → Promise of {width, indices}

async function inflate(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const width = view.getUint32(16);
  const packed = [];
  for (let at = 8; at < bytes.length; ) {
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IDAT") packed.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const stream = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
  return { width, rows: new Uint8Array(await new Response(stream).arrayBuffer()) };
}

function readLevels() {
  if (!("DecompressionStream" in window)) return;
  const ids = WHATS.map((what) => mapId(what, scaleNow()));
  for (const id of levelsOf.keys()) if (!ids.includes(id)) levelsOf.delete(id);
  for (const id of ids) if (!levelsOf.has(id)) levelsOf.set(id, inflate(id));
}

async function readBin(position) {
  const slide = slideNow(), scale = scaleNow();
  const { x, y } = viewer.viewport.viewerElementToViewportCoordinates(position);
  const umWide = slide.width * slide.binUm, umHigh = slide.height * slide.binUm;
  const xUm = x * umWide, yUm = y * umWide;
  if (xUm < 0 || yUm < 0 || xUm >= umWide || yUm >= umHigh) return "";
  const row = Math.floor(yUm / scale), col = Math.floor(xUm / scale);
  const top = entryOf(state.gene).tops[String(scale)];
  const found = [];
  for (const what of WHATS) {
    const map = await levelsOf.get(mapId(what, scale));
    if (!map) return "";
    const index = map.rows[row * (1 + map.width) + 1 + col]; // a row begins with its filter byte
    const value = top * ((index - 1) / STEPS) ** 2;
    if (index === 0) found.push(null);
    else found.push(what === "observed" ? String(Math.round(value)) : umis(Number(value.toPrecision(2))));
  }
  const [arrayRow, arrayCol] = [yUm, xUm].map((um) => Math.floor(um / slide.binUm));
  const place = `bin row ${arrayRow + slide.row0}, column ${arrayCol + slide.col0}`;
  if (found[0] === null) return `${place}: no tissue, or not scored`;
  return [`${place}: observed `, found[0], `, predicted `, found[1], ` UMIs in this ${scale} µm bin`];
}

let pointed = null; // where the mouse was last, in pixels of the picture
async function point(position) {
  pointed = position;
  const parts = await readBin(position);
  if (position !== pointed) return; // the mouse has moved on
  const shown = [].concat(parts).map((part, i) => {
    const element = document.createElement(i % 2 ? "b" : "span");
    element.textContent = part;
    return element;
  });
  $("readout").replaceChildren(...shown);
}

/** Which genes this file has maps of, and at which scales. */
function tellWhatIsThere() {
  const slide = slideNow();
  const all = slide.genes.map((entry) => entry.gene);
  const fine = slide.genes.filter((entry) => "2" in entry.tops).map((entry) => entry.gene);
  const names = (genes) => genes.map((gene) => GENES.genes[gene].label).join(", ");
  const without = GENES.genes.map((_, gene) => gene).filter((gene) => !all.includes(gene));
  const parts = [];
  if (fine.length < all.length) {
    parts.push(`To keep this file small, maps at 2 and 4 µm are in it for ${names(fine)} only` +
      ` (${fine.length} of ${all.length} genes, the strongest by PCC × mean at 8 µm).`);
  }
  if (without.length) {
    const which = without.length > 20 ? `${without.length} genes` : names(without);
    parts.push(`Not on the slide: ${which}.`);
  }
  if (slide.umPerPx > 1) parts.push(`H&E is at ${slide.umPerPx} µm per pixel.`);
  if (parts.length) parts.push("vst report --genes NAME,… puts the genes you name in.");
  $("in-file").textContent = parts.join(" ");
}

/* Controls */

function start() {
  for (const [i, slide] of SLIDES.entries()) $("slide-select").add(new Option(slide.name, i));
  $("slide-choice").hidden = SLIDES.length === 1;
  $("slide-select").addEventListener("change", (event) => {
    state.slide = Number(event.target.value);
    if (!entryOf(state.gene)) state.gene = slideNow().genes[0].gene;
    show();
  });
  segments($("scale"), "scale", [2, 4, 8, 16].map((n) => [String(n), `${n} µm`]), "8", (scale) => {
    state.scale = Number(scale);
    show();
  });
  for (const side of ["left", "right"]) {
    segments($(side), side, Object.entries(NAMES), state[side], (what) => {
      state[side] = what;
      show();
    });
  }
  $("opacity").addEventListener("input", (event) => {
    state.opacity = event.target.value / 100;
    cut();
  });
  startGenes();
  startCurtain();
  const zoom = (factor) => {
    viewer.viewport.zoomBy(factor);
    viewer.viewport.applyConstraints();
  };
  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  $("home").addEventListener("click", () => viewer.viewport.goHome());
  for (const event of ["open", "animation", "resize"]) {
    viewer.addHandler(event, () => { cut(); drawScaleBar(); });
  }
  viewer.addHandler("tile-drawing", ({ tiledImage, context }) => {
    // Bins are squares; a map drawn smaller than it is, and H&E, are smoothed.
    const zoom = tiledImage.viewportToImageZoom(viewer.viewport.getZoom(true));
    context.imageSmoothingEnabled = tiledImage === layers.he?.item || zoom < 1;
  });
  viewer.addHandler("canvas-key", (event) => {
    // Rotated or mirrored, rows and columns would no longer be what they are called.
    if (["r", "f"].includes(event.originalEvent.key.toLowerCase())) event.preventDefaultAction = true;
  });
  $("osd").addEventListener("pointermove", (event) => {
    const { left, top } = $("osd").getBoundingClientRect();
    point(new OpenSeadragon.Point(event.clientX - left, event.clientY - top));
  });
  table.show = (gene) => {
    chooseGene(gene);
    $("slide").scrollIntoView();
  };
  show();
  moveCurtain(0.5);
}

function chooseGene(gene) {
  if (!entryOf(gene)) {
    $("note").textContent = `${GENES.genes[gene].label} has no map in this file; see below what is.`;
    return;
  }
  state.gene = gene;
  show();
  document.querySelector("#gene-list :checked").closest("label").scrollIntoView({ block: "nearest" });
}

function startGenes() {
  for (const [index, gene] of GENES.genes.entries()) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "gene", value: index });
    input.addEventListener("change", () => chooseGene(index));
    const name = document.createElement("span");
    name.textContent = gene.label;
    label.append(input, name, document.createElement("span"));
    label.title = gene.id;
    $("gene-list").append(label);
  }
  $("find").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const label of $("gene-list").children) {
      const gene = GENES.genes[Number(label.control.value)];
      label.hidden = !`${gene.label} ${gene.id}`.toLowerCase().includes(wanted);
    }
  });
}

function startCurtain() {
  const curtain = $("curtain");
  curtain.addEventListener("pointerdown", (event) => {
    curtain.setPointerCapture(event.pointerId);
    curtain.focus();
    event.preventDefault();
  });
  curtain.addEventListener("pointermove", (event) => {
    if (!curtain.hasPointerCapture(event.pointerId)) return;
    const { left, width } = $("osd").getBoundingClientRect();
    moveCurtain((event.clientX - left) / width);
  });
  curtain.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.1 : 0.02;
    const to = {
      ArrowLeft: state.split - step, ArrowDown: state.split - step,
      ArrowRight: state.split + step, ArrowUp: state.split + step,
      Home: 0, End: 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    moveCurtain(to);
  });
}

start();
