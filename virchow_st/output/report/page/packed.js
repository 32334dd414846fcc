// What virchow_st/output/report/codes.py packs, and the colours of values.
const FACTOR_STEPS = 255; // of a factor, evenly spaced in its square root
const PALETTE = read("palette").map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** The bytes of an element: base64 of what zlib packed. */
async function unpacked(id) {
  const text = atob($(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Steps of a factor, which are packed as differences. */
async function stepsOf(id) {
  const codes = await unpacked(id);
  for (let i = 1; i < codes.length; i++) codes[i] += codes[i - 1]; // modulo 256, as bytes are
  return codes;
}

/** Whole numbers, which are packed as four planes of bytes. */
async function numbersOf(id) {
  const bytes = await unpacked(id), n = bytes.length / 4;
  return Uint32Array.from({ length: n }, (_, i) =>
    bytes[i] + (bytes[n + i] << 8) + (bytes[2 * n + i] << 16) + (bytes[3 * n + i] << 24 >>> 0));
}

/** Running sums of numbers of either sign. */
async function summed(id) {
  const values = Int32Array.from(await numbersOf(id), (v) => (v & 1 ? -((v + 1) / 2) : v / 2));
  for (let i = 1; i < values.length; i++) values[i] += values[i - 1];
  return values;
}

/** Σ weight · factor, UMIs per bin, of factors whose last steps stand for `tops`. */
function weighted(tops, steps, weights) {
  const values = new Float32Array(steps[0].length);
  for (const [k, codes] of steps.entries()) {
    if (!weights[k]) continue;
    const of = Float32Array.from({ length: 256 }, (_, i) => weights[k] * tops[k] * (i / FACTOR_STEPS) ** 2);
    for (let i = 0; i < codes.length; i++) values[i] += of[codes[i]];
  }
  return values;
}

/** Weights of one factor by itself. */
const alone = (tops, k) => tops.map((_, i) => Number(i === k));

/** The end of a colour scale, which this share of the values does not exceed. */
function upperEnd(values, share = 0.995) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.floor(share * (sorted.length - 1))] || 1;
}
