// All genes: maps computed from factors and loadings.
const ALL = read("all-genes");
const ALL_SLIDES = read("all-slides");
const SCORED_UM = ["2", "4", "8", "16"];
const MOST_FOUND = 200; // genes listed at a time

const all = { slide: 0, chosen: null, values: null, limit: 1, found: [], active: -1, loaded: new Map() };
const allSlide = () => ALL_SLIDES[all.slide];
const score = (gene, name, um) => ALL.scores[um][name][gene];

/** Loadings of one gene, one number per factor. */
let loadingCodes = null;
async function loadingsOf(gene) {
  loadingCodes ??= unpacked("loadings");
  const bytes = await loadingCodes;
  const n = bytes.length / 2, factors = n / ALL.ids.length;
  return Float64Array.from({ length: factors }, (_, k) => {
    const code = bytes[gene * factors + k] + 256 * bytes[n + gene * factors + k];
    return code ? Math.exp(ALL.low + ALL.step * (code - 1)) : 0;
  });
}

/** The factors of a slide: where its bins lie in the picture, and their steps. */
function factorsOf(s) {
  if (!all.loaded.has(s)) all.loaded.set(s, readFactors(s));
  return all.loaded.get(s);
}

async function readFactors(s) {
  const slide = ALL_SLIDES[s], bits = await unpacked(`tissue-${s}`);
  const places = [];
  for (let i = 0; i < slide.rows * slide.cols; i++) if (bits[i >> 3] & (128 >> (i & 7))) places.push(i);
  const steps = await Promise.all(slide.tops.map((_, k) => stepsOf(`factor-${s}-${k}`)));
  return { places: Uint32Array.from(places), steps };
}

/** Paint values (or null) of places in a picture of cols × rows bins. */
function paint(canvas, cols, rows, places, valueAt, limit) {
  canvas.width = cols;
  canvas.height = rows;
  canvas.classList.toggle("squares", cols < 600);
  const image = new ImageData(cols, rows);
  for (let i = 0; i < places.length; i++) {
    const value = valueAt(i);
    if (value === null) continue;
    const colour = PALETTE[Math.min(255, Math.floor((256 * value) / limit))];
    image.data.set(colour, 4 * places[i]);
    image.data[4 * places[i] + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/* What is shown */

async function showGene(gene) {
  all.chosen = { gene };
  const [slide, s] = [allSlide(), all.slide];
  const [factors, weights] = await Promise.all([factorsOf(s), loadingsOf(gene)]);
  if (all.chosen.gene !== gene || all.slide !== s) return; // another was chosen meanwhile
  all.values = weighted(slide.tops, factors.steps, weights);
  const seen = await observedOf(gene);
  if (all.chosen.gene !== gene || all.slide !== s) return;
  all.observed = seen;
  all.limit = seen?.limit ?? upperEnd(all.values);
  const label = ALL.labels[gene];
  $("all-title").replaceChildren(Object.assign(document.createElement("i"), { textContent: label }));
  $("all-detail").textContent = label === ALL.ids[gene] ? "" : ALL.ids[gene];
  $("all-predicted-name").textContent = `Predicted, ${slide.scaleUm} µm`;
  paintBoth(factors, label);
  $("all-no-observed").textContent = seen ? "" :
    "To limit the size of this file, it has observed counts only of the panel's genes, those of the table above.";
  $("all-observed-frame").hidden = false;
  fillScores(gene);
  markFactor();
}

async function showFactor(k) {
  all.chosen = { factor: k };
  const [slide, s] = [allSlide(), all.slide];
  const factors = await factorsOf(s);
  if (all.chosen.factor !== k || all.slide !== s) return;
  all.values = weighted(slide.tops, factors.steps, alone(slide.tops, k));
  all.observed = null;
  all.limit = upperEnd(all.values);
  $("all-title").textContent = `Factor ${k + 1}`;
  const names = slide.leading[k].map((label) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
    button.addEventListener("click", () => choose(ALL.labels.indexOf(label)));
    return button;
  });
  $("all-detail").replaceChildren("Leading genes: ", ...names.flatMap((name, i) => i ? [", ", name] : [name]));
  $("all-predicted-name").textContent = `Predicted UMIs of all genes, ${slide.scaleUm} µm`;
  paintBoth(factors, `factor ${k + 1}`);
  $("all-no-observed").textContent = "";
  $("all-observed-frame").hidden = true;
  $("all-scores").parentElement.hidden = true;
  all.active = -1;
  mark();
  markFactor();
}

function paintBoth(factors, label) {
  const slide = allSlide(), um = slide.scaleUm;
  paint($("all-predicted"), slide.cols, slide.rows, factors.places, (i) => all.values[i], all.limit);
  $("all-predicted").setAttribute("aria-label", `Predicted map of ${label} at ${um} µm`);
  const seen = all.observed, canvas = $("all-observed");
  canvas.hidden = !seen;
  if (seen) {
    const at = (i) => seen.at(Math.floor(factors.places[i] / slide.cols), factors.places[i] % slide.cols);
    paint(canvas, slide.cols, slide.rows, factors.places, at, all.limit);
    canvas.setAttribute("aria-label", `Observed map of ${label} at ${um} µm`);
  }
  $("all-middle").textContent = umis(all.limit / 2);
  $("all-limit").textContent = `≥ ${umis(all.limit)}`;
  $("all-unit").textContent = `UMIs per ${um} µm bin of ${label}`;
  $("all-readout").textContent = "Point at a map to read a bin.";
}

/** Observed counts of a gene of the panel, from the picture that the viewer above shows. */
async function observedOf(gene) {
  const g = GENES.genes.findIndex((other) => other.id === ALL.ids[gene]), um = allSlide().scaleUm;
  const entry = SLIDES[all.slide].genes.find((other) => other.gene === g);
  if (!entry || !(um in entry.tops)) return null;
  const { width, rows } = await inflate(`map-${all.slide}-${g}-${um}-observed`);
  const at = (row, col) => {
    const step = rows[row * (1 + width) + 1 + col];
    return step ? entry.tops[um] * ((step - 1) / STEPS) ** 2 : null;
  };
  return { at, limit: entry.limit * (um / UNIT_UM) ** 2 };
}

function fillScores(gene) {
  const rows = SCORED_UM.map((um) => {
    const row = document.createElement("tr");
    const of = (name) => score(gene, name, um);
    const q = of("q_value");
    const mean = of("mean"); // of a gene that the test slides did not measure, there is none
    const texts = [`${um} µm`, mean === null ? "not measured" : umis(mean), digits(of("pcc")), digits(of("pcc_ceiling")),
      digits(of("pcc_null")), q === null ? "–" : q < 0.001 ? "< 0.001" : digits(q)];
    for (const [i, text] of texts.entries()) {
      const cell = row.insertCell();
      cell.textContent = text;
      if (i) cell.className = "number";
    }
    return row;
  });
  $("all-scores").tBodies[0].replaceChildren(...rows);
  $("all-scores").parentElement.hidden = false;
}

/* The search */

const byUmis = ALL.ids.map((_, gene) => gene);
byUmis.sort((a, b) => (score(b, "mean", "8") ?? 0) - (score(a, "mean", "8") ?? 0) || a - b);
const NEEDLES = ALL.ids.map((id, gene) => [ALL.labels[gene].toLowerCase(), id.toLowerCase()]);

/** Genes whose symbol or id has the text: exact, then beginning with it, then anywhere; by UMIs. */
function matching(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return byUmis;
  const ranks = [[], [], []];
  for (const gene of byUmis) {
    const names = NEEDLES[gene];
    if (names.includes(wanted)) ranks[0].push(gene);
    else if (names.some((name) => name.startsWith(wanted))) ranks[1].push(gene);
    else if (names.some((name) => name.includes(wanted))) ranks[2].push(gene);
  }
  return ranks.flat();
}

function find() {
  const found = matching($("all-find").value);
  all.found = found.slice(0, MOST_FOUND);
  all.active = -1;
  const more = found.length > MOST_FOUND ? `, the first ${MOST_FOUND} are listed` : "";
  $("all-found").textContent = `${found.length.toLocaleString("en")} ${found.length === 1 ? "gene" : "genes"}, most UMIs first; PCC at 8 µm${more}`;
  $("all-list").replaceChildren(...all.found.map((gene, i) => {
    const item = document.createElement("li");
    const name = document.createElement("span"), value = document.createElement("span");
    name.textContent = ALL.labels[gene];
    value.textContent = digits(score(gene, "pcc", "8"), 2);
    item.append(name, value);
    item.id = `all-option-${i}`;
    item.title = ALL.ids[gene];
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", "false");
    item.addEventListener("click", () => activate(i));
    return item;
  }));
  mark();
}

/** Choose the i-th gene of the list. */
function activate(i) {
  if (!all.found.length) return;
  all.active = Math.min(Math.max(i, 0), all.found.length - 1);
  showGene(all.found[all.active]);
  mark();
}

function mark() {
  for (const item of $("all-list").querySelectorAll("[aria-selected=true]")) item.setAttribute("aria-selected", "false");
  $("all-find").removeAttribute("aria-activedescendant");
  if (all.active < 0) all.active = all.found.indexOf(all.chosen?.gene ?? -1);
  const item = $("all-list").children[all.active];
  if (!item) return;
  item.setAttribute("aria-selected", "true");
  $("all-find").setAttribute("aria-activedescendant", item.id);
  const list = $("all-list"); // not scrollIntoView, which would move the page too
  if (item.offsetTop < list.scrollTop + list.offsetTop) list.scrollTop = item.offsetTop - list.offsetTop;
  const below = item.offsetTop + item.offsetHeight - list.offsetTop - list.clientHeight;
  if (below > list.scrollTop) list.scrollTop = below;
}

/** Choose a gene that is not in the list of found ones: the search gives way. */
function choose(gene) {
  $("all-find").value = ALL.labels[gene];
  find();
  activate(all.found.indexOf(gene));
}

function searchKey(event) {
  const page = 10, to = {
    ArrowDown: all.active + 1, ArrowUp: all.active - 1, Enter: Math.max(all.active, 0),
    PageDown: all.active + page, PageUp: all.active - page,
  }[event.key];
  if (event.key === "Escape") {
    $("all-find").value = "";
    find();
  } else if (to !== undefined) activate(to);
  else return;
  event.preventDefault();
}

/* The factors */

async function listFactors() {
  const s = all.slide, slide = allSlide();
  const total = slide.umis.reduce((sum, value) => sum + value, 0) || 1;
  const order = slide.umis.map((_, k) => k).sort((a, b) => slide.umis[b] - slide.umis[a] || a - b);
  const buttons = order.map((k) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const head = document.createElement("span"), number = document.createElement("span");
    const share = document.createElement("span"), leading = document.createElement("span");
    number.textContent = `Factor ${k + 1}`;
    share.textContent = `${((100 * slide.umis[k]) / total).toFixed(1)} %`;
    leading.textContent = slide.leading[k].slice(0, 6).join(", ");
    leading.className = "leading";
    head.append(number, share);
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    canvas.setAttribute("aria-hidden", "true");
    button.append(head, canvas, leading);
    button.dataset.factor = k;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      showFactor(k);
      document.querySelector(".all-stage").scrollIntoView({ block: "nearest" });
    });
    return button;
  });
  $("factor-list").replaceChildren(...buttons);
  const factors = await factorsOf(s);
  for (const button of buttons) {
    if (all.slide !== s) return;
    drawSmall(button.querySelector("canvas"), slide, factors, Number(button.dataset.factor));
    await new Promise(requestAnimationFrame); // leave the page its keys meanwhile
  }
}

/** A map of a factor, averaged to at most 160 pixels a side. */
function drawSmall(canvas, slide, factors, k) {
  const side = Math.ceil(Math.max(slide.rows, slide.cols) / 160);
  const cols = Math.ceil(slide.cols / side), rows = Math.ceil(slide.rows / side);
  const sums = new Float32Array(rows * cols), counts = new Float32Array(rows * cols);
  const values = weighted(slide.tops, factors.steps, alone(slide.tops, k));
  for (let i = 0; i < values.length; i++) {
    const row = Math.floor(factors.places[i] / slide.cols), col = factors.places[i] % slide.cols;
    const at = Math.floor(row / side) * cols + Math.floor(col / side);
    sums[at] += values[i];
    counts[at] += 1;
  }
  const every = [...sums.keys()];
  paint(canvas, cols, rows, every, (i) => (counts[i] ? sums[i] / counts[i] : null), upperEnd(values));
}

function markFactor() {
  for (const button of document.querySelectorAll("#factor-list button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.factor) === all.chosen.factor));
  }
}

/* Reading a bin */

async function readAll(event) {
  const canvas = event.currentTarget, slide = allSlide();
  const { left, top, width, height } = canvas.getBoundingClientRect();
  const col = Math.floor(((event.clientX - left) / width) * slide.cols);
  const row = Math.floor(((event.clientY - top) / height) * slide.rows);
  const factors = await factorsOf(all.slide);
  const um = slide.scaleUm, side = um / SLIDES[all.slide].binUm;
  const place = `bin row ${slide.row0 + row * side}, column ${slide.col0 + col * side}`;
  const i = placeOf(factors.places, row * slide.cols + col);
  if (i < 0) {
    $("all-readout").textContent = `${place}: no tissue, or not predicted`;
    return;
  }
  const parts = [`${place}: predicted `, umis(Number(all.values[i].toPrecision(2)))];
  if (all.observed) parts.push(", observed ", String(Math.round(all.observed.at(row, col) ?? 0)));
  parts.push(` UMIs in this ${um} µm bin`);
  $("all-readout").replaceChildren(...parts.map((text, n) => {
    const part = document.createElement(n % 2 ? "b" : "span");
    part.textContent = text;
    return part;
  }));
}

/** Index of a place in the sorted places, or -1. */
function placeOf(places, wanted) {
  let low = 0, high = places.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (places[middle] === wanted) return middle;
    if (places[middle] < wanted) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
}

async function showSlide() {
  $("all-status").textContent = "Reading the factors …";
  const um = allSlide().scaleUm;
  $("all-in-file").textContent = um === 8 ? "" : `To limit the size of this file, it has factors at ${um} µm.`;
  listFactors();
  const { gene, factor } = all.chosen ?? { gene: byUmis[0] };
  await (factor === undefined ? showGene(gene) : showFactor(factor));
  mark();
  $("all-status").textContent = "";
}

function startAll() {
  if (!("DecompressionStream" in window)) {
    $("all-in-file").textContent = "This browser is too old to read the factors in this file.";
    return;
  }
  document.querySelector(".all").hidden = false;
  for (const [i, slide] of ALL_SLIDES.entries()) $("all-slide").add(new Option(slide.name, i));
  $("all-slide-choice").hidden = ALL_SLIDES.length === 1;
  $("all-slide").addEventListener("change", (event) => {
    all.loaded.delete(all.slide); // one slide in memory at a time
    all.slide = Number(event.target.value);
    showSlide();
  });
  $("all-find").addEventListener("input", find);
  $("all-find").addEventListener("keydown", searchKey);
  for (const canvas of document.querySelectorAll(".all-maps canvas")) canvas.addEventListener("pointermove", readAll);
  find();
  // The factors are megabytes: read when a reader comes near them.
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    showSlide();
  }, { rootMargin: "600px" });
  watch.observe($("all-genes-section"));
}

startAll();
