"""Multi-scale Poisson deviance on a GPU from sparse counts, with the Triton kernels.

No function waits for the GPU, and few kernels are launched: for batches of the usual size a launch
takes longer than the kernel itself.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales, N non-zeros,
P programs.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from virchow_st.models.losses.base import Counts
from virchow_st.types import BIN_UM, Array

_LEAST_SIDE = 8  # smallest number of rows of a strip, see `kernels.poisson_triton`
_BINS_PER_THREAD = 8
_CHUNK = 512  # counts that a program processes at a time


@cache
def missing() -> str:
    """Describe what Triton lacks on this machine; an empty string if it can build its kernels.

    Triton compiles the kernels itself, but builds the launcher from C code that includes Python's
    headers, so it needs a C compiler and these headers.
    """
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler; install gcc or clang"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not (Path(sysconfig.get_path("include", scheme)) / "Python.h").exists():
        return "Triton finds no Python.h; install Python's headers (python3-dev)"
    if torch.cuda.is_available() and (has := torch.cuda.get_device_capability()) < (7, 0):
        return f"Triton needs a GPU of compute capability 7.0; this one has {has[0]}.{has[1]}"
    return ""


def fused_half_deviance(
    output_BGRC: Tensor,
    counts: Counts,
    mask_BRC: Tensor,
    n_bins_S: Tensor,
    scales_um: Sequence[int],
) -> Tensor:
    """Half the Poisson deviance per bin at each scale, from sparse counts on a GPU.

    The result equals `virchow_st.models.losses.poisson.half_deviance` of the dense counts.

    Args:
        output_BGRC: (B, G, R, C) log λ, float32 or float64; R and C are powers of two.
        counts: Sparse UMI counts of the same shape, on the CPU or on the device of the output.
        mask_BRC: (B, R, C) bool, True = tissue.
        n_bins_S: (S,) number of bins that the sum of each scale is divided by.
        scales_um: Sides of the bins in increasing order, µm.

    Returns:
        (S,) losses in the dtype of the output.
    """
    assert tuple(output_BGRC.shape) == counts.shape, f"{tuple(output_BGRC.shape)} {counts.shape}"
    lists = [_on(output_BGRC.device, x) for x in (counts.start, counts.position, counts.count)]
    return _Fused.apply(output_BGRC, *lists, mask_BRC, n_bins_S, tuple(scales_um))


def tissue_bins(mask_BRC: Tensor, scales_um: Sequence[int]) -> Tensor:
    """Number of bins of each scale that contain tissue, at least 1; (S,) int32 on the device."""
    B, R, C = mask_BRC.shape
    layout = _layout(R, C, tuple(scales_um))
    n_bins_S = torch.zeros(len(scales_um), dtype=torch.int32, device=mask_BRC.device)
    count = _kernels().count_tissue_bins[(B * R // layout["SIDE"],)]
    with torch.cuda.device_of(mask_BRC):
        count(_bytes(mask_BRC), n_bins_S, **layout)
    return n_bins_S.clamp_(min=1)


class _Fused(torch.autograd.Function):
    """Autograd function; it saves decoder output and indexed counts, and recomputes the rates."""

    @staticmethod
    def forward(
        ctx: Any,
        output_BGRC: Tensor,
        start: Tensor,
        position_N: Tensor,
        count_N: Tensor,
        mask_BRC: Tensor,
        n_bins_S: Tensor,
        scales_um: tuple[int, ...],
    ) -> Tensor:
        output_BGRC, mask_BRC = output_BGRC.contiguous(), _bytes(mask_BRC)
        B, G, R, C = output_BGRC.shape
        layout = _layout(R, C, scales_um)
        n_programs = B * G * R // layout["SIDE"]
        bits = output_BGRC.new_empty((B * G, R * C // 32), dtype=torch.int32)
        umi_N = output_BGRC.new_empty(len(count_N))
        index = bits, torch.empty_like(bits), umi_N, torch.empty_like(umi_N)
        sums_SP = output_BGRC.new_empty((len(scales_um), n_programs))
        with torch.cuda.device_of(output_BGRC):  # Triton launches on the current device
            _kernels().index_counts[(B * G,)](
                start, position_N, count_N, *index,
                WORDS=R * C // 32, CHUNK=_CHUNK, enable_fp_fusion=True,
            )  # fmt: skip
            _kernels().half_deviances[(n_programs,)](
                output_BGRC, mask_BRC, start, *index, sums_SP, G, n_programs, R, **layout
            )
        ctx.save_for_backward(output_BGRC, mask_BRC, start, *index, n_bins_S)
        ctx.layout = layout
        return (sums_SP.sum(1, dtype=torch.float64) / n_bins_S).to(output_BGRC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor | None, ...]:
        output_BGRC, *inputs, n_bins_S = ctx.saved_tensors
        _, G, R, C = output_BGRC.shape
        weights_S = (grad_S / n_bins_S).to(output_BGRC.dtype).contiguous()
        gradient_BGRC = torch.empty_like(output_BGRC)
        n_programs = output_BGRC.numel() // (ctx.layout["SIDE"] * C)
        with torch.cuda.device_of(output_BGRC):
            _kernels().half_deviance_gradient[(n_programs,)](
                output_BGRC, *inputs, weights_S, gradient_BGRC, G, R, **ctx.layout
            )
        return gradient_BGRC, None, None, None, None, None, None


@cache
def _kernels() -> ModuleType:
    """Import the Triton kernels on first use; a machine without a GPU need not have Triton."""
    from virchow_st.kernels import poisson_triton

    return poisson_triton


@cache
def _layout(R: int, C: int, scales_um: tuple[int, ...]) -> dict[str, Any]:
    """Compile-time arguments of the kernels for maps of R × C bins, such as the strip size."""
    sides = [scale // BIN_UM for scale in scales_um]
    if min(R, C) < sides[-1] or any(n & (n - 1) for n in (R, C)) or R * C < 32:
        raise ValueError(
            f"output: expected sides that are powers of two and hold bins of {scales_um[-1]} µm; "
            f"got {R} × {C} bins"
        )
    side = min(max(sides[-1], _LEAST_SIDE), R, C)
    n_threads = side * C // _BINS_PER_THREAD
    return {
        "C": C,
        "SIDE": side,
        "LEVELS": sides[-1].bit_length(),
        "SCALES": sum(sides),  # bit mask: sides are powers of two, and bit l is level l
        "num_warps": min(max(n_threads // 32, 1), 16),
        "enable_fp_fusion": True,
    }


def _on(device: torch.device, x: Array | Tensor) -> Tensor:
    """Copy to a device without waiting for it; pinned memory is used for copies to a GPU."""
    here = torch.as_tensor(x)
    if device.type == "cuda" and here.device.type == "cpu":
        here = here.pin_memory()
    return here.to(device, non_blocking=True)


def _bytes(mask: Tensor) -> Tensor:
    return mask.contiguous().view(torch.uint8)
