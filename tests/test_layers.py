"""Imports go down only, heavy libraries load late, and every package is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from imports import imports_of, modules_of, room

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "torch_geometric", "timm", "numba", "cv2", "matplotlib", "scipy",
         "skimage", "h5py", "pyarrow", "lmdb", "tifffile", "openslide", "zarr", "safetensors",
         "huggingface_hub", "imagecodecs", "triton", "shapely"}  # fmt: skip

# The rooms from the ground up, and which rooms below each may import beside the ground itself.
GROUND = {"types", "errors", "config", "settings", "schema", "names"}
ROOMS: dict[str, set[str]] = {
    "runtime": set(),
    "kernels": set(),
    "cloud": {"runtime"},
    "cohort": {"runtime", "cloud"},
    "slide": {"runtime", "kernels", "cloud"},
    "store": {"runtime", "kernels"},
    "models": {"runtime", "kernels"},
    "metrics": {"kernels"},
    "simulate": {"runtime"},
    "run": {"runtime", "kernels", "store", "metrics"},
    "field": {"runtime", "kernels", "store", "run"},
    "training": {"runtime", "kernels", "store", "models", "metrics", "run"},
    # Of the slide, where a bin lies on the image, and its cells.
    "output": {"runtime", "kernels", "slide", "store", "metrics", "run", "field"},
    "predict": {"runtime", "kernels", "cohort", "cloud", "slide", "store", "models", "metrics",
                "run", "field", "output"},
    "extract": {"runtime", "kernels", "cohort", "cloud", "slide", "store", "models", "metrics",
                "run", "output"},
    # Its factorisation is that of training: a slide is described by factors as a cohort is.
    "denoise": {"runtime", "kernels", "store", "metrics", "run", "field", "training", "output",
                "predict"},
    "plot": {"kernels", "store", "field", "output", "predict"},
    "evaluation": {"runtime", "kernels", "cohort", "slide", "store", "models", "metrics",
                   "simulate", "run", "field", "training", "predict"},
    "bench": {"runtime", "kernels", "slide", "store", "models", "metrics", "simulate", "run",
              "training", "extract"},
}  # fmt: skip

# Where only some modules of a room may be imported: (importing room, room) → those modules.
NARROW = {
    ("output", "slide"): {
        "virchow_st.slide.geometry",
        "virchow_st.slide.cells.assign",
        "virchow_st.slide.cells.cell_map",
        "virchow_st.slide.cells.geojson",
        "virchow_st.slide.cells.lattice",
        "virchow_st.slide.cells.outlines",
        "virchow_st.slide.cells.read",
        "virchow_st.slide.cells.segment",
        "virchow_st.slide.cells.segmenters",
    },
    ("evaluation", "slide"): {
        "virchow_st.slide.cells.classes",
        "virchow_st.slide.cells.lattice",
        "virchow_st.slide.geometry",
    },
    # A slide's stain, to be matched to that of a run's training.
    ("extract", "run"): {"virchow_st.run.appearance"},
    ("extract", "metrics"): {"virchow_st.metrics.appearance"},
    ("extract", "output"): {"virchow_st.output.figures.registration_check"},
    ("denoise", "training"): {
        "virchow_st.training.choose_factors",
        "virchow_st.training.factorise",
        "virchow_st.training.rows",
        "virchow_st.training.train",  # decoders of spatial folds
    },
    # Where the bins of a store lie on its image, and its H&E picture; tables of 8 µm bins.
    ("denoise", "output"): {"virchow_st.output.export.sources", "virchow_st.output.export.tables"},
    # A run of other patients, as the prior.
    ("denoise", "predict"): {"virchow_st.predict.load"},
    # How token channels turn with the patch; a stain baseline.
    ("training", "models.encoders"): {
        "virchow_st.models.encoders.base",
        "virchow_st.models.encoders.stain",  # the directions of the stains
    },
    ("models.losses", "models.decoders"): set(),
    ("models.decoders", "models.encoders"): set(),
    ("models.decoders", "models.losses"): set(),
    ("models.encoders", "models.decoders"): set(),
    ("models.encoders", "models.losses"): set(),
}

# What a room may load from outside the package beside the standard library.
OUTSIDE = {
    "types": {"numpy"},
    "errors": set(),
    "schema": set(),
    "names": set(),
    "config": {"numpy", "tomli_w"},
    # torch: `devices` and `distributed`, see below; h5py: `hdf5` alone
    "runtime": {"numpy", "torch", "h5py"},
    "cohort": {"ray", "submitit"},
    "cloud": {"fsspec"},
    # scipy and skimage: reference code; triton: `poisson_triton` alone, see below
    "kernels": {"numpy", "numba", "scipy", "skimage", "triton"},
    "store": {"numpy", "scipy", "lmdb", "xxhash", "cv2"},
    "models.encoders": {"numpy", "cv2", "torch", "timm", "huggingface_hub", "safetensors",
                        "xxhash"},
    "models.decoders": {"torch", "torch_geometric"},
    "models.losses": {"numpy", "torch"},
    "metrics": {"numpy", "scipy"},
    "field": {"numpy", "zarr", "cv2", "anndata"},
    "denoise": {"numpy", "scipy", "cv2"},
    "output.figures": {"numpy", "h5py", "matplotlib"},
    "output.report": {"numpy", "cv2"},
    "output.share": {"huggingface_hub"},
}  # fmt: skip

PACKAGE = modules_of(ROOT / "virchow_st", "virchow_st")
COMMANDS = modules_of(ROOT / "cli", "virchow_st_cli")
KNOWN = set(PACKAGE) | set(COMMANDS)
IMPORTS = {name: imports_of(file, name, KNOWN) for name, file in (PACKAGE | COMMANDS).items()}


def part(module: str) -> str:
    """A folder within a room, such as ``models.losses``; the room itself where it has none."""
    names = module.split(".")[1:]
    return ".".join(names[:2]) if names[0] in ("models", "output") else names[0]


def outside(module: str) -> set[str]:
    """Third-party packages that a module imports."""
    tops = {name.split(".")[0] for name in IMPORTS[module]}
    return tops - set(sys.stdlib_module_names) - {"virchow_st", "virchow_st_cli"}


INNER = sorted(name for name in PACKAGE if name != "virchow_st")


def test_every_module_has_a_room() -> None:
    assert {room(name) for name in INNER} == set(ROOMS) | GROUND


def test_rooms_name_only_rooms_before_them() -> None:
    before: set[str] = set()
    for name, allowed in ROOMS.items():
        assert allowed <= before, f"{name} may import what comes after it"
        before.add(name)


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down_only(module: str) -> None:
    own = room(module)
    allowed = {own} | GROUND | ROOMS.get(own, set())
    for target in sorted(t for t in IMPORTS[module] if t.startswith("virchow_st.")):
        assert room(target) in allowed, f"{module} imports {target}"
        for narrow in ((own, room(target)), (own, part(target)), (part(module), part(target))):
            if narrow in NARROW:
                assert target in NARROW[narrow], f"{module} imports {target}"


def test_exceptions_are_needed() -> None:
    """A rule that nothing uses any more goes."""
    for (importing, _), targets in NARROW.items():
        users = [m for m in INNER if importing in (room(m), part(m))]
        assert users, importing
        assert targets <= {t for m in users for t in IMPORTS[m]}
    for name, allowed in ROOMS.items():
        used = {
            room(target)
            for module in INNER
            if room(module) == name
            for target in IMPORTS[module]
            if target.startswith("virchow_st.")
        }
        assert allowed - {"runtime", "kernels"} <= used, f"{name} does not import all it may"


@pytest.mark.parametrize("module", INNER)
def test_rooms_load_what_they_are_for_and_nothing_else(module: str) -> None:
    if (allowed := OUTSIDE.get(part(module))) is not None:
        assert outside(module) <= allowed


def test_torch_is_known_where_it_has_to_be() -> None:
    users = {name for name in INNER if "torch" in outside(name)}
    assert {room(name) for name in users} <= {
        "runtime", "models", "run", "training", "predict", "bench"}  # fmt: skip
    assert {name for name in users if room(name) == "runtime"} <= {
        f"virchow_st.runtime.{name}" for name in ("devices", "distributed")
    }
    assert {name for name in users if room(name) == "run"} == {"virchow_st.run.checkpoint"}
    assert "virchow_st.models.encoders.base" not in users
    assert "virchow_st.models.encoders.stain" not in users


def test_triton_is_loaded_where_there_is_a_gpu() -> None:
    """It comes with torch's CUDA builds for Linux only."""
    kernels = "virchow_st.kernels.poisson_triton"
    assert [name for name in INNER if "triton" in outside(name)] == [kernels]
    assert [name for name in INNER if kernels in IMPORTS[name]] == [
        "virchow_st.models.losses.fused_gpu"
    ]
    assert "triton" not in loaded("import virchow_st.models.losses.poisson")


@pytest.mark.parametrize("module", INNER)
def test_no_module_is_in_a_circle(module: str) -> None:
    seen: set[str] = set()
    waiting = [t for t in IMPORTS[module] if t in PACKAGE]
    while waiting:
        target = waiting.pop()
        if target not in seen:
            seen.add(target)
            # A package's __init__ names its parts; that parts are reached by way of it is no loop.
            if PACKAGE[target].name != "__init__.py":
                waiting += [t for t in IMPORTS[target] if t in PACKAGE]
    assert module not in seen


def test_nothing_imports_the_command_line() -> None:
    for module in PACKAGE:
        assert not any(t.startswith("virchow_st_cli") for t in IMPORTS[module]), module


def loaded(code: str) -> set[str]:
    """Top-level packages that a fresh Python has loaded after running ``code``."""
    code += "\nimport sys, json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_is_light() -> None:
    assert not loaded("import virchow_st") & (HEAVY | {"numpy", "click", "rich"})


@pytest.mark.parametrize(
    "command",
    [
        "",
        "simulate",
        "extract",
        "train",
        "evaluate",
        "figures",
        "report",
        "predict",
        "denoise",
        "cells",
        "export",
        "push",
        "demo",
    ],
)
def test_help_is_light(command: str) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    code = f"from virchow_st_cli.main import run; assert run({arguments!r}) == 0"
    assert not loaded(code) & HEAVY


def test_opening_a_store_loads_no_torch(stores: dict[str, Path]) -> None:
    code = f"import virchow_st; virchow_st.open_store({str(stores['P1'])!r})[0].tokens"
    assert "torch" not in loaded(code)


def test_drawing_loads_no_torch() -> None:
    assert not loaded("from virchow_st.output.figures import draw_figures") & {
        "torch",
        "lmdb",
        "numba",
    }


def test_exporting_and_plotting_load_no_torch(tiny_run: Path) -> None:
    assert not loaded("from virchow_st.output.export.write import export_run") & {
        "torch",
        "matplotlib",
    }
    store = str(tiny_run.parent / "T.vst")
    assert "torch" not in loaded(f"import virchow_st as v; v.plot_gene({store!r}, 'GENE1')")


def test_reporting_loads_no_torch() -> None:
    assert "torch" not in loaded("from virchow_st.output.report import write_report")


def test_every_folder_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    there = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "virchow_st").rglob("__init__.py")
    }
    holding_code = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "virchow_st").rglob("*.py")
    }
    assert holding_code == there, "a folder has no __init__.py"
    data = set(listed["package-data"]) - {"virchow_st"}
    assert sorted(listed["packages"]) == sorted(there | data | {"virchow_st_cli"})
    assert listed["package-dir"]["virchow_st_cli"] == "cli"


def test_every_file_that_is_no_code_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    listed = {
        file
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for file in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {f for f in (ROOT / "virchow_st").rglob("*") if f.is_file() and f.suffix != ".py"}
    assert listed == {f for f in files if "__pycache__" not in f.parts}


def test_public_names_are_there() -> None:
    import virchow_st

    for name in virchow_st.__all__:
        value = getattr(virchow_st, name)
        assert isinstance(value, str) if name == "__version__" else value.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = virchow_st.nothing
