// The bin under the mouse, read from the PNGs that are shown: some browsers alter what a canvas
// returns, to prevent tracking.
const readings = new Map(); // id → Promise of {width, rows} of the maps shown

/** Width and rows of palette indices of a map's PNG; each row begins with its filter, none. */
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

function readMaps() {
  if (!("DecompressionStream" in window)) return;
  const ids = WHATS.map((what) => mapId(what, scaleNow()));
  for (const id of readings.keys()) if (!ids.includes(id)) readings.delete(id);
  for (const id of ids) if (!readings.has(id)) readings.set(id, inflate(id));
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
    const map = await readings.get(mapId(what, scale));
    if (!map) return "";
    const index = map.rows[row * (1 + map.width) + 1 + col];
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
