// The slide: H&E below, two maps above it, each cut to its side of the divider. Every layer covers
// the same area, which is 1 wide in the viewer's coordinates; rows go down.
const WHATS = ["observed", "predicted"];
const NAMES = { he: "H&E", observed: "Observed", predicted: "Predicted" };
const SCALES = [16, 8, 4, 2]; // µm; levels of a map's pyramid from the coarsest
const STEPS = 254; // of a map's palette, as virchow_st/output/report/layers.py draws it
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

function imageSource(s = state.slide) {
  const slide = SLIDES[s];
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
