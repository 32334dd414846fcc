"""Multi-scale Poisson deviance and its gradient on a GPU, in Triton; the log-rates are read once.

The definitions, including clamp and mask, are those of `virchow_st.kernels.poisson`.

One program computes a strip of a map: SIDE whole rows, where SIDE is the side of the coarsest bin
and at least 8 bins (16 µm). The strip is contiguous in memory and is held as N = C/SIDE blocks of
SIDE × SIDE bins, so that every coarser bin lies within a block, and a block of 8 × 8 within a
warp. Rates and the sums at all scales stay in registers. Only integers are added atomically, so
equal inputs give bit-identical results.

The counts stay sparse. For every 32 bins `index_counts` writes one word with a bit set where there
is a count, and the number of the map's counts before that word; it also writes the counts and
their logarithms in order of position. This takes 8 bytes per 32 bins plus 8 per count, where a
dense map takes 128 bytes per 32 bins. A bin finds its count from its bit and the number of bits set
before it. All other logarithms are computed for coarser bins only, because the kernel would
otherwise be limited by arithmetic instead of memory bandwidth.

Triton is part of torch's CUDA builds for Linux only, so this module must not be imported where it
is absent; `virchow_st.models.losses.fused_gpu` launches the kernels. With ``TRITON_INTERPRET=1`` in
the environment they run in NumPy, on CPU tensors.

Shape suffixes: M maps, N blocks, R = C = bins per side at 2 µm, S scales; sizes are powers of two.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE

_MIN_LOG_RATE = tl.constexpr(MIN_LOG_RATE)
_MAX_LOG_RATE = tl.constexpr(MAX_LOG_RATE)
_TINY = tl.constexpr(float(np.finfo(np.float32).tiny))


@triton.jit
def index_counts(
    start: tl.tensor,
    position: tl.tensor,
    count: tl.tensor,
    bits: tl.tensor,
    before: tl.tensor,
    umi: tl.tensor,
    log_umi: tl.tensor,
    WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Index the counts of each map by position; one program per map.

    Args:
        start: (M + 1,) int64 index of each map's first count in ``position`` and ``count``.
        position: (n,) uint16, or int16 of the same bits, ``row * C + col`` in any order, without
            repeats within a map.
        count: (n,) UMIs, > 0.
        bits: (M, WORDS) int32, output: bit ``p % 32`` of word ``p // 32`` is set if position p has
            a count.
        before: (M, WORDS) int32, output: number of the map's counts before the word.
        umi, log_umi: (n,) float32 or float64, output: each map's counts by increasing position,
            and their logarithms.
        WORDS: R·C / 32.
        CHUNK: Number of counts processed at a time, a power of two.
    """
    m = tl.program_id(0).to(tl.int64)
    first = tl.load(start + m)
    last = tl.load(start + m + 1)
    bits += m * WORDS
    before += m * WORDS
    word = tl.arange(0, WORDS)
    tl.store(bits + word, tl.zeros([WORDS], tl.int32))
    tl.debug_barrier()  # threads of the program read what its other threads wrote
    for begin in range(first, last, CHUNK):
        at = begin + tl.arange(0, CHUNK)
        p = tl.load(position + at, mask=at < last, other=0).to(tl.int32) & 0xFFFF
        tl.atomic_or(bits + p // 32, 1 << p % 32, mask=at < last, sem="relaxed")
    tl.debug_barrier()
    n_set = _popcount(tl.load(bits + word))
    tl.store(before + word, tl.cumsum(n_set, 0) - n_set)
    tl.debug_barrier()
    for begin in range(first, last, CHUNK):
        at = begin + tl.arange(0, CHUNK)
        p = tl.load(position + at, mask=at < last, other=0).to(tl.int32) & 0xFFFF
        k = tl.load(count + at, mask=at < last, other=1).to(umi.dtype.element_ty)
        place = tl.load(before + p // 32) + _popcount(_lower_bits(tl.load(bits + p // 32), p))
        tl.store(umi + first + place, k, mask=at < last)
        tl.store(log_umi + first + place, tl.log(k), mask=at < last)


@triton.jit(do_not_specialize=["n_genes", "n_strips"])
def half_deviances(
    log_rate: tl.tensor,
    mask: tl.tensor,
    start: tl.tensor,
    bits: tl.tensor,
    before: tl.tensor,
    umi: tl.tensor,
    log_umi: tl.tensor,
    out: tl.tensor,
    n_genes: tl.tensor,
    n_strips: tl.tensor,
    R: tl.constexpr,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    LEVELS: tl.constexpr,
    SCALES: tl.constexpr,
) -> None:
    """Half the Poisson deviance summed over the bins of a strip, per scale; one program per strip.

    Args:
        log_rate: (M, R, C) float32 or float64, log λ of 2 µm bins; clamped before use.
        mask: (B, R, C) uint8, 1 in tissue; map m belongs to patch ``m // n_genes``.
        start: (M + 1,) int64 index of each map's first count.
        bits, before, umi, log_umi: From `index_counts`; counts outside the mask are ignored.
        out: (S, n_strips) dtype of ``log_rate``, output: ``Σ K·log(K/Λ) - K + Λ``.
        n_genes: Number of maps per patch.
        n_strips: M·R / SIDE, the number of programs.
        SIDE: Rows of a strip.
        LEVELS: Number of levels; level 0 is the 2 µm bins, each further level sums 2 × 2 bins of
            the level before.
        SCALES: Bit mask of the levels to compute.
    """
    strip = tl.program_id(0)
    rate, k, surprise = _rate_and_counts(
        log_rate, mask, start, bits, before, umi, log_umi, strip, n_genes, R, C, SIDE
    )
    N: tl.constexpr = C // SIDE
    out += strip
    if SCALES & 1:
        tl.store(out, _total(surprise + (rate - k), N, SIDE))
        out += n_strips
    for level in tl.static_range(1, LEVELS):
        rate = _pool(rate, N, SIDE >> level)
        k = _pool(k, N, SIDE >> level)
        if (SCALES >> level) & 1:
            ratio = tl.where(k > 0, k, 1.0) / tl.where(k > 0, rate, 1.0)
            tl.store(out, _total(k * tl.log(ratio) + (rate - k), N, SIDE >> level))
            out += n_strips


@triton.jit(do_not_specialize=["n_genes"])
def half_deviance_gradient(
    log_rate: tl.tensor,
    mask: tl.tensor,
    start: tl.tensor,
    bits: tl.tensor,
    before: tl.tensor,
    umi: tl.tensor,
    log_umi: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    n_genes: tl.tensor,
    R: tl.constexpr,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    LEVELS: tl.constexpr,
    SCALES: tl.constexpr,
) -> None:
    """Gradient of the weighted sum of `half_deviances` over scales, with respect to log λ.

    The gradient of a 2 µm bin is ``Σ_s w_s·λ·(1 - K_s/Λ_s)``, where K_s and Λ_s are the count and
    rate of the bin of scale s that contains it. The same expression is used where the clamp is
    active, so that a diverged log-rate still has a gradient that pulls it back.

    Args:
        weights: (S,) w_s, in the dtype of ``log_rate``.
        out: (M, R, C) output, dtype of ``log_rate``.

    The other arguments are those of `half_deviances`.
    """
    strip = tl.program_id(0)
    rate, k, _ = _rate_and_counts(
        log_rate, mask, start, bits, before, umi, log_umi, strip, n_genes, R, C, SIDE
    )
    N: tl.constexpr = C // SIDE
    gradient = tl.zeros_like(rate)
    if SCALES & 1:
        gradient += tl.load(weights) * (rate - k)
        weights += 1
    share = tl.zeros_like(rate)  # Σ_s w_s·(1 - K_s/Λ_s) over the coarser scales
    coarse_rate = rate
    for level in tl.static_range(1, LEVELS):
        coarse_rate = _pool(coarse_rate, N, SIDE >> level)
        k = _pool(k, N, SIDE >> level)
        if (SCALES >> level) & 1:
            # Without tissue K = Λ = 0; the value there is multiplied by a rate of 0.
            unexplained = 1.0 - k / tl.where(coarse_rate > _TINY, coarse_rate, _TINY)
            share += _spread(tl.load(weights) * unexplained, N, SIDE >> level, SIDE)
            weights += 1
    gradient += rate * share
    tl.store(out + strip.to(tl.int64) * (SIDE * C) + _bins(C, SIDE), gradient)


@triton.jit
def count_tissue_bins(
    mask: tl.tensor,
    out: tl.tensor,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    LEVELS: tl.constexpr,
    SCALES: tl.constexpr,
) -> None:
    """Count the bins of each scale that contain tissue; one program per strip of each patch.

    Args:
        mask: (B, R, C) uint8, 1 in tissue.
        out: (S,) int32, incremented.
        SIDE, LEVELS, SCALES: As in `half_deviances`.
    """
    strip = tl.program_id(0).to(tl.int64)
    tissue = tl.load(mask + strip * (SIDE * C) + _bins(C, SIDE)).to(tl.int32)
    N: tl.constexpr = C // SIDE
    for level in tl.static_range(LEVELS):
        if level > 0:
            tissue = _pool(tissue, N, SIDE >> level)
        if (SCALES >> level) & 1:
            tl.atomic_add(out, _total((tissue > 0).to(tl.int32), N, SIDE >> level), sem="relaxed")
            out += 1


@triton.jit
def _bins(C: tl.constexpr, SIDE: tl.constexpr) -> tl.tensor:
    """Offsets of the bins of each block, (N, SIDE, SIDE), within their strip of SIDE rows."""
    block = tl.arange(0, C // SIDE)[:, None, None]
    row = tl.arange(0, SIDE)[None, :, None]
    col = tl.arange(0, SIDE)[None, None, :]
    return row * C + block * SIDE + col


@triton.jit
def _rate_and_counts(
    log_rate: tl.tensor,
    mask: tl.tensor,
    start: tl.tensor,
    bits: tl.tensor,
    before: tl.tensor,
    umi: tl.tensor,
    log_umi: tl.tensor,
    strip: tl.tensor,
    n_genes: tl.tensor,
    R: tl.constexpr,
    C: tl.constexpr,
    SIDE: tl.constexpr,
) -> tl.tensor:
    """λ, k and ``k·log(k/λ)`` of a strip's bins, 0 outside tissue, each (N, SIDE, SIDE)."""
    m = (strip // (R // SIDE)).to(tl.int64)  # int32 offsets would overflow at 8 GB of log-rates
    patch = (strip // (R // SIDE) // n_genes).to(tl.int64)
    p = strip % (R // SIDE) * (SIDE * C) + _bins(C, SIDE)  # position in the map
    x = tl.load(log_rate + m * (R * C) + p)
    tissue = tl.load(mask + patch * (R * C) + p).to(x.dtype)
    # Comparisons with NaN are False, so NaN passes through and shows in the loss.
    x = tl.where(x > _MAX_LOG_RATE, _MAX_LOG_RATE, x)
    x = tl.where(x < _MIN_LOG_RATE, _MIN_LOG_RATE, x)
    word = tl.load(bits + m * (R * C // 32) + p // 32)
    has_counts = (word >> p % 32 & 1) == 1
    place = tl.load(before + m * (R * C // 32) + p // 32) + _popcount(_lower_bits(word, p))
    first = tl.load(start + m)
    k = tl.load(umi + first + place, mask=has_counts, other=0.0) * tissue
    log_k = tl.load(log_umi + first + place, mask=has_counts, other=0.0)
    return tl.exp(x) * tissue, k, tl.where(k > 0, k * (log_k - x), 0.0)


@triton.jit
def _pool(x: tl.tensor, N: tl.constexpr, SIDE: tl.constexpr) -> tl.tensor:
    """(N, 2·SIDE, 2·SIDE) to (N, SIDE, SIDE): sums of 2 × 2 bins."""
    return tl.sum(tl.sum(tl.reshape(x, [N, SIDE, 2, SIDE, 2]), 4), 2)


@triton.jit
def _spread(x: tl.tensor, N: tl.constexpr, SIDE: tl.constexpr, WIDE: tl.constexpr) -> tl.tensor:
    """(N, SIDE, SIDE) to (N, WIDE, WIDE): repeat each value over the bins that it covers."""
    F: tl.constexpr = WIDE // SIDE
    x = tl.reshape(x, [N, SIDE, 1, SIDE, 1])
    return tl.reshape(tl.broadcast_to(x, [N, SIDE, F, SIDE, F]), [N, WIDE, WIDE])


@triton.jit
def _total(x: tl.tensor, N: tl.constexpr, SIDE: tl.constexpr) -> tl.tensor:
    return tl.sum(tl.reshape(x, [N * SIDE * SIDE]), 0)


@triton.jit
def _lower_bits(word: tl.tensor, p: tl.tensor) -> tl.tensor:
    """Bits of a word that belong to positions before p."""
    return word & ((1 << p % 32) - 1)


@triton.jit
def _popcount(word: tl.tensor) -> tl.tensor:
    """Number of bits set in int32 words (Hacker's Delight, § 5-1); LLVM recognises the idiom."""
    x = word.to(tl.uint32, bitcast=True)
    x = x - (x >> 1 & 0x55555555)
    x = (x & 0x33333333) + (x >> 2 & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101 >> 24).to(tl.int32)
