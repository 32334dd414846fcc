"""Imports go down only, heavy libraries load late, and every package is installed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "torch_geometric", "timm", "numba", "cv2", "matplotlib", "scipy",
         "skimage", "h5py", "pyarrow", "lmdb", "tifffile", "openslide", "zarr", "safetensors",
         "huggingface_hub", "imagecodecs", "triton"}  # fmt: skip

# Layer by layer from the ground up: who is in it, and which layers below it may import. A module
# may always import its own layer, if the layer is marked as one that is built of parts.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "ground": (
        {"types", "errors", "counts", "config", "files", "genes", "progress", "memory", "devices",
         "ahead", "interrupt", "ranks", "processes", "lists"},
        set(),
    ),
    "kernels": ({"kernels"}, {"ground"}),
    "slide": ({"slide"}, {"ground", "kernels"}),
    "patches": ({"patches", "render"}, {"ground", "slide"}),
    "store": ({"store"}, {"ground", "kernels"}),
    "encoders": ({"encoders"}, {"ground"}),
    "decoders": ({"decoders"}, {"ground"}),
    "losses": ({"losses"}, {"ground", "kernels"}),
    "metrics": ({"metrics"}, {"ground", "kernels"}),
    "simulate": ({"simulate"}, {"ground", "geometry"}),
    "panel": ({"panel"}, {"ground", "store"}),
    "folds": ({"folds"}, {"ground", "store"}),
    # Result files of an evaluation: written, read, compared.
    "results": ({"results", "compare"}, {"ground", "kernels", "metrics", "store", "panel"}),
    "figures": ({"figures"}, {"ground", "metrics", "results"}),
    "checkpoint": ({"checkpoint"}, {"ground"}),
    "maps": ({"maps", "overview"}, {"ground", "store", "panel", "folds"}),
    "registration": ({"registration"}, {"ground", "encoders"}),
    "extract": (
        {"extract", "cohort", "engine", "provenance"},
        {"ground", "slide", "patches", "store", "encoders", "registration", "figures"},
    ),
    # Of the encoders, the dataset knows how channels turn with the patch (encoders.base), no more.
    "dataset": (
        {"dataset", "training_statistics"},
        {"ground", "kernels", "store", "panel", "folds", "encoders.base"},
    ),
    "feed": ({"feed"}, {"ground", "folds", "dataset", "losses"}),
    "training": (
        {"training", "learner", "forward", "averaging", "schedule", "loss_watch", "validation",
         "history", "run_folder"},
        {"ground", "kernels", "store", "panel", "folds", "dataset", "feed", "decoders", "losses",
         "metrics", "checkpoint"},
    ),
    "tissue": ({"tissue"}, {"ground"}),
    "formats": ({"formats"}, {"ground", "kernels", "panel"}),
    "stitching": (
        {"stitching"},
        {"ground", "slide", "patches", "store", "encoders", "panel", "tissue"},
    ),
    "predict": (
        {"predict"},
        {"ground", "store", "panel", "folds", "decoders", "losses", "checkpoint", "stitching"},
    ),
    "baselines": (
        {"baselines"},
        {"ground", "kernels", "store", "panel", "folds", "encoders"},
    ),
    "evaluate": (
        {"evaluate", "scoreboard", "spatial", "against_truth"},
        {"ground", "kernels", "store", "panel", "folds", "dataset", "metrics", "results", "maps",
         "predict", "baselines", "simulate"},
    ),
    "leave_one_out": (
        {"leave_one_out"},
        {"ground", "store", "panel", "folds", "training", "results", "evaluate"},
    ),
    "export": (
        {"export"},
        {"ground", "kernels", "geometry", "store", "panel", "results", "maps", "formats"},
    ),
    "plot": (
        {"plot"},
        {"ground", "kernels", "store", "figures", "stitching", "predict", "export"},
    ),
    # The rows of the table of figures, and the page that shows them beside the pictures.
    "score_table": ({"score_table"}, set()),
    "report": (
        {"report"},
        {"ground", "store", "panel", "folds", "figures", "results", "score_table"},
    ),
    "whole_slide": (
        {"whole_slide"},
        {"ground", "kernels", "slide", "patches", "encoders", "figures", "panel", "tissue",
         "formats", "stitching", "predict"},
    ),
    # The top: it measures all the others.
    "bench": (
        {"bench"},
        {"ground", "kernels", "slide", "patches", "store", "encoders", "decoders", "losses",
         "metrics", "simulate", "panel", "folds", "registration", "extract", "dataset", "feed",
         "training"},
    ),
}  # fmt: skip
LAYER_OF = {module: layer for layer, (modules, _) in LAYERS.items() for module in modules}

# What a part may load from outside the package beside the standard library.
OUTSIDE = {
    # torch: `devices`, `ranks` and `processes`, see below
    "ground": {"numpy", "tomli_w", "torch"},
    # scipy and skimage: reference code; triton: `poisson_triton` alone, see below
    "kernels": {"numpy", "numba", "scipy", "skimage", "triton"},
    "store": {"numpy", "scipy", "lmdb", "xxhash", "cv2"},
    "encoders": {"numpy", "cv2", "torch", "timm", "huggingface_hub", "safetensors", "xxhash"},
    "decoders": {"torch", "torch_geometric"},
    "losses": {"numpy", "torch"},
    "metrics": {"numpy", "scipy"},
    "figures": {"numpy", "h5py", "matplotlib"},
    "score_table": set(),
    "report": {"numpy", "cv2"},
    "panel": {"numpy"},
    "folds": {"numpy", "xxhash"},
}

Import = tuple[str, str]  # (module that imports, module imported), dotted, absolute


def modules_of(folder: Path, package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = [package, *file.relative_to(folder).with_suffix("").parts]
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports_of(file: Path, name: str, known: set[str]) -> set[str]:
    """Modules a file imports, anywhere in it: within functions and for type checks alike."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: expected absolute imports"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else str(node.module))
    return found - {name}


PACKAGE = modules_of(ROOT / "virchow_st", "virchow_st")
COMMANDS = modules_of(ROOT / "cli", "virchow_st_cli")
KNOWN = set(PACKAGE) | set(COMMANDS)
IMPORTS = {name: imports_of(file, name, KNOWN) for name, file in (PACKAGE | COMMANDS).items()}


def layer(module: str) -> str:
    return LAYER_OF[module.split(".")[1]]


def outside(module: str) -> set[str]:
    """Third-party packages that a module imports."""
    tops = {name.split(".")[0] for name in IMPORTS[module]}
    return tops - set(sys.stdlib_module_names) - {"virchow_st", "virchow_st_cli"}


INNER = sorted(name for name in PACKAGE if name != "virchow_st")


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[1] for name in INNER} == set(LAYER_OF)


def test_layers_name_only_layers_before_them() -> None:
    before = {"encoders.base", "geometry"}  # single modules of a layer
    for name, (_, allowed) in LAYERS.items():
        assert allowed <= before, f"{name} may import what comes after it"
        before.add(name)


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down_only(module: str) -> None:
    own = layer(module)
    allowed = LAYERS[own][1] | {own}
    for target in sorted(t for t in IMPORTS[module] if t.startswith("virchow_st.")):
        is_single = target in ("virchow_st.encoders.base", "virchow_st.slide.geometry")
        names = {layer(target)}
        if is_single:
            names |= {"encoders.base" if "encoders" in target else "geometry"}
        assert names & allowed, f"{module} imports {target}"


@pytest.mark.parametrize("module", INNER)
def test_parts_load_what_they_are_for_and_nothing_else(module: str) -> None:
    if (allowed := OUTSIDE.get(layer(module))) is not None:
        assert outside(module) <= allowed


def test_torch_is_known_where_it_has_to_be() -> None:
    users = {name for name in INNER if "torch" in outside(name)}
    tops = {name.split(".")[1] for name in users}
    training = LAYERS["training"][0] - {"schedule", "run_folder"}
    assert tops <= {"devices", "ranks", "processes", "encoders", "decoders", "losses", "checkpoint",
                    "feed", "predict", "bench"} | training  # fmt: skip
    assert "virchow_st.encoders.base" not in users
    assert "virchow_st.encoders.stain" not in users


def test_triton_is_loaded_where_there_is_a_gpu() -> None:
    """It comes with torch's CUDA builds for Linux only."""
    kernels = "virchow_st.kernels.poisson_triton"
    assert [name for name in INNER if "triton" in outside(name)] == [kernels]
    assert [name for name in INNER if kernels in IMPORTS[name]] == ["virchow_st.losses.fused_gpu"]
    assert "triton" not in loaded("import virchow_st.losses.poisson")


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
        "export",
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
    assert not loaded("from virchow_st.figures import draw_figures") & {"torch", "lmdb", "numba"}


def test_exporting_and_plotting_load_no_torch(tiny_run: Path) -> None:
    assert not loaded("from virchow_st.export.write import export") & {"torch", "matplotlib"}
    store = str(tiny_run.parent / "T.vst")
    assert "torch" not in loaded(f"import virchow_st as v; v.plot_gene({store!r}, 'GENE1')")


def test_reporting_loads_no_torch() -> None:
    assert "torch" not in loaded("from virchow_st.report import write_report")


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
        assert getattr(virchow_st, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = virchow_st.nothing
