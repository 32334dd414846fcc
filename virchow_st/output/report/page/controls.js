// The controls around the image, and their events.
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
    input.disabled = !entryOf(Number(input.value));
  }
  const limit = entry.limit * (scale / UNIT_UM) ** 2;
  $("middle").textContent = umis(limit / 2);
  $("limit").textContent = `≥ ${umis(limit)}`;
  $("unit").textContent = `UMIs per ${scale} µm bin of ${gene.label}`;
  $("note").textContent = scale === state.scale ? "" :
    `${gene.label} has no map at ${state.scale} µm in this file, only from ${scale} µm on; the note below lists the genes at ${state.scale} µm.`;
  const score = (name) => digits(table.value(gene, name, String(scale)));
  $("gene-scores").textContent = `${gene.label} at ${scale} µm: PCC ${score("pcc")} ` +
    `(ceiling ${score("pcc_ceiling")}), SSIM ${score("ssim")} (null ${score("ssim_shuffled")})`;
  $("left-name").textContent = sideName("left");
  $("right-name").textContent = sideName("right");
  for (const label of $("gene-list").children) {
    const of = GENES.genes[Number(label.control.value)];
    label.lastChild.textContent = digits(table.value(of, "pcc", String(scale)), 2);
  }
  $("gene-order").textContent = `PCC at ${scale} µm`;
  readMaps();
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
function drawScaleBar(of = viewer, slide = slideNow(), bar = $("scale-bar")) {
  const width = of.viewport.getContainerSize().x;
  const umPerPx = (slide.width * slide.binUm * of.viewport.getBounds(true).width) / width;
  const most = (umPerPx * width) / 4;
  const power = 10 ** Math.floor(Math.log10(most));
  const um = [5, 2, 1].map((n) => n * power).find((n) => n <= most);
  bar.querySelector("i").style.width = `${um / umPerPx}px`;
  bar.querySelector("span").textContent = um >= 1000 ? `${um / 1000} mm` : `${um} µm`;
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
    parts.push(`To limit the size of this file, it has maps at 2 and 4 µm only for ${names(fine)}:` +
      ` ${fine.length} of ${all.length} genes, from the top of the list.`);
  }
  if (without.length) {
    const which = without.length > 20 ? `${without.length} genes` : names(without);
    parts.push(`Not on the slide: ${which}.`);
  }
  if (slide.umPerPx > 1) parts.push(`H&E is at ${slide.umPerPx} µm per pixel.`);
  if (parts.length) parts.push("vst report --genes NAME,… includes the genes you name.");
  $("in-file").textContent = parts.join(" ");
}

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
    // Bins are drawn as squares; H&E, and maps drawn smaller than their pixels, are smoothed.
    const zoom = tiledImage.viewportToImageZoom(viewer.viewport.getZoom(true));
    context.imageSmoothingEnabled = tiledImage === layers.he?.item || zoom < 1;
  });
  viewer.addHandler("canvas-key", (event) => {
    // Rotating or mirroring would make rows and columns disagree with their names.
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
    $("note").textContent = `${GENES.genes[gene].label} has no map in this file; the note below lists what it contains.`;
    return;
  }
  state.gene = gene;
  show();
  document.querySelector("#gene-list :checked").closest("label").scrollIntoView({ block: "nearest" });
}

function startGenes() {
  const shown = new Set(SLIDES.flatMap((slide) => slide.genes.map((entry) => entry.gene)));
  for (const [index, gene] of GENES.genes.entries()) {
    if (!shown.has(index)) continue;
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
