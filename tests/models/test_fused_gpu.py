"""The Triton kernels: in Triton's interpreter, on a GPU where there is one, and as machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from virchow_st.models.losses import build_objective, fused, fused_gpu, poisson
from virchow_st.models.losses.scales import tissue_bins
from virchow_st.types import SCALES_UM

triton = pytest.importorskip("triton")

CASES = Path(__file__).parents[1] / "support" / "gpu_loss.py"
PLACES = ["interpreter", "gpu"] if torch.cuda.is_available() else ["interpreter"]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("place", PLACES)
def test_kernels_equal_the_reference(place: str) -> None:
    """All of gpu_loss.py: Triton is told at its import whether to interpret."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--noconftest", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1" if place == "interpreter" else "0"}
    done = subprocess.run(
        [*command, str(CASES)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.fixture
def found(monkeypatch, tmp_path):
    """A machine on which Triton finds all it needs, whatever this one has; `missing` asks anew."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(fused_gpu.sysconfig, "get_path", lambda *a: str(tmp_path))
    fused_gpu.missing.cache_clear()
    yield monkeypatch
    fused_gpu.missing.cache_clear()


def test_the_way_taken_is_the_devices(found) -> None:
    assert fused_gpu.missing() == ""
    assert poisson.implementation_on(CUDA) == (fused_gpu.tissue_bins, fused_gpu.fused_half_deviance)
    assert poisson.implementation_on(torch.device("cpu")) == (
        tissue_bins,
        fused.fused_half_deviance,
    )


def test_what_triton_lacks_is_named_and_torch_takes_over(found, tmp_path) -> None:
    def now_missing() -> str:
        fused_gpu.missing.cache_clear()
        return fused_gpu.missing()

    found.setattr(torch.cuda, "is_available", lambda: True)
    found.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    assert "compute capability 7.0; this one has 6.1" in now_missing()
    (tmp_path / "Python.h").unlink()
    assert "python3-dev" in now_missing()
    found.delenv("CC")
    found.setattr(fused_gpu.shutil, "which", lambda name: None)
    assert "install gcc or clang" in now_missing()
    found.setattr(fused_gpu, "find_spec", lambda name: None)
    assert now_missing() == "the package triton is not installed"
    assert poisson.implementation_on(CUDA) == (tissue_bins, poisson.dense_half_deviance)


def test_doctor_says_which_way_is_taken(found, tmp_path) -> None:
    from virchow_st_cli.doctor import _device

    found.setattr(torch.cuda, "is_available", lambda: True)
    found.setattr(torch.cuda, "get_device_name", lambda i: "GPU")
    found.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    memory = SimpleNamespace(total_memory=80 << 30)
    found.setattr(torch.cuda, "get_device_properties", lambda i: memory)
    assert _device() == "cuda, GPU, 80 GiB; Poisson loss fused, by Triton"
    (tmp_path / "Python.h").unlink()
    fused_gpu.missing.cache_clear()
    assert "dense counts, which is slower: Triton finds no Python.h" in _device()


def test_torch_on_dense_counts_gives_the_same(patch_of_counts, monkeypatch) -> None:
    output, counts, mask = patch_of_counts
    objective = build_objective("poisson", torch.full((2,), 0.2), torch.ones(4, 2), SCALES_UM)
    results = []
    for way in (poisson.implementation_on(output.device)[1], poisson.dense_half_deviance):
        monkeypatch.setattr(
            poisson, "implementation_on", lambda device, way=way: (tissue_bins, way)
        )
        losses = objective(output, counts, mask)
        results.append([losses.detach(), torch.autograd.grad(losses.sum(), output)[0]])
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-8)


@pytest.fixture
def patch_of_counts():
    from virchow_st.models.losses.targets import BatchCounts

    torch.manual_seed(0)
    output = torch.randn(1, 2, 32, 32, requires_grad=True)
    counts = BatchCounts.of_dense(torch.poisson(torch.full(output.shape, 0.2)).numpy())
    return output, counts, torch.rand(1, 32, 32) < 0.8


# Compiling needs no GPU; how the compiler is called by hand has been the same since Triton 3.3.
by_hand = pytest.mark.skipif(
    tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 3),
    reason="the compiler of this Triton is called in another way",
)
TYPES = {
    "start": "*i64", "position": "*u16", "count": "*fp32", "bits": "*i32", "before": "*i32",
    "umi": "*fp32", "log_umi": "*fp32", "log_rate": "*fp32", "mask": "*u8", "weights": "*fp32",
    "out": "*fp32", "n_genes": "i32", "n_strips": "i32",
}  # fmt: skip


def compiled(kernel, generation: int, constants: dict[str, int], **types: str):
    """What a kernel becomes for a generation of GPUs, as `fused_gpu` starts it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    names = [p.name for p in kernel.params]
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else (TYPES | types)[n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]]  # torch's memory begins at such addresses
            for i, n in enumerate(names)
            if n not in constants and (TYPES | types)[n][0] == "*"
        },
    )
    return triton.compile(source, target=GPUTarget("cuda", generation, 32), options=options)


@by_hand
@pytest.mark.parametrize(
    "generation",
    [90, *(pytest.param(n, marks=pytest.mark.slow) for n in (75, 80, 100, 120))],
)
def test_kernels_compile_for_gpus(generation, monkeypatch, tmp_path) -> None:
    """To machine code, and the layout is the one meant: maps move in vectors and stay in registers.

    The interpreter runs what a compiler might refuse, or turn into detours through shared memory.
    """
    from virchow_st.kernels import poisson_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    layout = fused_gpu._layout(128, 128, SCALES_UM)
    index = {"WORDS": 512, "CHUNK": fused_gpu._CHUNK, "num_warps": 4, "enable_fp_fusion": True}
    assert compiled(kernels.index_counts, generation, index).asm["cubin"]
    assert compiled(kernels.count_tissue_bins, generation, {**layout}, out="*i32").asm["cubin"]
    forward = compiled(kernels.half_deviances, generation, {"R": 128, **layout})
    backward = compiled(kernels.half_deviance_gradient, generation, {"R": 128, **layout})
    assert "convert_layout" not in forward.asm["ttgir"]
    assert backward.asm["ttgir"].count("convert_layout") <= 1
    for kernel in (forward, backward):
        assert kernel.asm["ptx"].count("ld.global.v4.b32") >= 2
    assert backward.asm["ptx"].count("st.global.v4.b32") == 2
