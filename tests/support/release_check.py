"""Proves a wheel: installed outside the source tree, it takes a user all the way.

``python tests/support/release_check.py dist/virchow_st-*.whl``, run by ``make release-check``. The
new environment borrows the packages that the present one has, so that nothing is downloaded, but
neither the source tree nor an editable install of it: a folder named in a .pth file is searched for
packages, and .pth files in it are not followed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

STEPS = (
    "simulate slides --bins 384 --genes 60",
    "extract --manifest slides/slides.csv --encoder stain",
    "train slides/P1.vst slides/P2.vst slides/P5.vst --run run --test-patient P5 --panel top:6 "
    "--decoder linear --epochs 1 --device cpu",
    "evaluate run --device cpu",
    "report run",
    "predict run slides/P5/tissue_image.tif --out rates.npz --format npz --device cpu",
    "push run ./model",
)
LEFT = ("run/metrics.json", "run/report.html", "rates.npz", "model/README.md")
"""Files that are there after all steps."""


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment with the wheel in it; returns the folder of its programs."""
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "--quiet"]
    options = ["--no-deps", "--no-index", "--force-reinstall", "--no-warn-script-location"]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True)
    return programs


def check(wheel: Path) -> None:
    """Install the wheel and run all steps; raises where one fails."""
    with TemporaryDirectory() as place:
        programs, work = install(wheel.resolve(), Path(place) / "env"), Path(place) / "work"
        work.mkdir()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        where = "import virchow_st, virchow_st_cli as c; print(virchow_st.__file__, c.__file__)"
        found = subprocess.run(
            [programs / "python", "-c", where],
            cwd=work, env=clean, check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        if not all(path.startswith(f"{place}{os.sep}env") for path in found):
            raise SystemExit(f"expected the package from the wheel; got {found}")
        if not Path(found[0]).with_name("py.typed").is_file():
            raise SystemExit("py.typed is not in the wheel")
        for step in STEPS:
            print(f"vst {step}", flush=True)
            subprocess.run(
                [programs / "vst", *step.split(), "--quiet"], cwd=work, env=clean, check=True
            )
        if missing := [name for name in LEFT if not (work / name).is_file()]:
            raise SystemExit(f"not written: {', '.join(missing)}")
    print(f"{wheel.name}: installs, and runs from simulation to prediction")


if __name__ == "__main__":
    check(Path(sys.argv[1]))
