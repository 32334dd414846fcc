"""``vst bench metrics``: each kernel against its reference, and the time to score a patch."""

from __future__ import annotations

from functools import partial

import numpy as np

from virchow_st.bench.limits import bytes_of, copy_rate
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.kernels.table import TABLE, Pair, draw_patch
from virchow_st.metrics.accumulate import ScaleAccumulator
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.types import PATCH_POSITIONS, SCALES_UM

_MAP_BYTES = 4 * PATCH_POSITIONS


def measure(
    progress: Progress = SILENT,
    *,
    n_genes: int = 50,
    rounds: int = 5,
    pairs: tuple[Pair, ...] = TABLE,
) -> list[Table]:
    """Measure every pair of `virchow_st.kernels.table`, and the accumulators at every scale.

    Args:
        progress: Receives notes, warnings and step counts.
        n_genes: Number of genes of the scored patch.
        rounds: Timed passes; the best time is used.
        pairs: Kernels to measure.

    Raises:
        AssertionError: A kernel differs from its reference by more than the table allows.
    """
    copied = copy_rate(_MAP_BYTES)
    rows = []
    for done, pair in enumerate(pairs, 1):
        rows.append(_time_pair(pair, copied, rounds))
        progress.step(done, len(pairs), "kernels", pair.name)
    kernels = Table(
        "Kernels against the plain NumPy, SciPy or scikit-image code that each must equal",
        ["kernel", "ours, ms", "reference, ms", "ratio", "share of memcpy"],
        rows,
        [
            f"share of memcpy: of the {copied / 1e9:.1f} GB/s at which one thread copies maps of "
            f"{_MAP_BYTES / 1e3:.0f} kB, the rate at which a kernel goes through its arguments; "
            "above 100 % where it need not read all of them, or finds them in a cache."
        ],
    )
    progress.note("metrics: scoring patches at every scale")
    return [kernels, _time_accumulators(n_genes, rounds)]


def _time_pair(pair: Pair, copied: float, rounds: int) -> list[Cell]:
    inputs = pair.make_inputs(np.random.default_rng(0))
    ours, reference = partial(pair.kernel, *inputs), partial(pair.reference, *inputs)
    _check_equal(pair, ours(), reference())
    ours_s, reference_s = interleaved(ours, reference, rounds=rounds)
    share = bytes_of(*inputs) / ours_s / copied
    return [pair.name, 1e3 * ours_s, 1e3 * reference_s, reference_s / ours_s, share]


def _check_equal(pair: Pair, ours: object, reference: object) -> None:
    """Compare the results of a kernel and its reference: one or several arrays or numbers."""
    if not isinstance(ours, tuple):
        ours, reference = (ours,), (reference,)
    for got, want in zip(ours, reference, strict=True):  # type: ignore[call-overload]
        np.testing.assert_allclose(
            got, want, rtol=pair.tolerance, atol=pair.tolerance, err_msg=pair.name
        )


def _time_accumulators(n_genes: int, rounds: int) -> Table:
    """Seconds to score a patch with `ScaleAccumulator`, with the shuffled null, at each scale."""
    rng = np.random.default_rng(0)
    rate, counts, tissue_mask = draw_patch(rng, n_genes)
    shuffled = draw_patch(rng, n_genes)[0]
    train_rate = counts.mean((1, 2), dtype=np.float64)
    accumulators = [ScaleAccumulator(n_genes, scale, train_rate) for scale in SCALES_UM]
    seconds = interleaved(
        *(partial(a.update, rate, counts, tissue_mask, shuffled) for a in accumulators),
        rounds=rounds,
    )
    rows: list[list[Cell]] = [
        [f"{scale} µm", 1e3 * s] for scale, s in zip(SCALES_UM, seconds, strict=True)
    ]
    return Table(
        "Scoring a patch, every score of metrics.json",
        ["scale", "ms per patch"],
        [*rows, ["all four", 1e3 * sum(seconds)]],
        [f"{n_genes} genes, with the shuffled null; one pass, memory independent of the patches."],
    )
