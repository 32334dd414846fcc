"""Folders for libraries' compiled code, where neither the package nor HOME is writable.

In a container the file system is often read-only, and HOME may be missing. Numba then
refuses to be imported with cached functions, torch and Triton fail at the first compilation, and
Matplotlib warns. They are given a folder below the system's temporary folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_FOLDERS = {
    "NUMBA_CACHE_DIR": "numba",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}


def place_caches() -> None:
    """Set environment variables for caches without a writable folder, before libraries load.

    Variables that the user has set are kept. Nothing changes if HOME is writable.
    """
    home = Path(os.path.expanduser("~"))  # still "~" for a user whom the container does not know
    if home.is_absolute() and _can_make(home / ".cache" / "virchow_st"):
        return
    missing = {name: folder for name, folder in _FOLDERS.items() if not os.environ.get(name)}
    if os.access(Path(__file__).parents[1] / "kernels", os.W_OK):
        missing.pop("NUMBA_CACHE_DIR", None)  # beside the package, as ever
    if not missing:
        return
    try:
        root = _own_folder()
    except OSError:  # no temporary folder either: the libraries say what they lack
        return
    for name, folder in missing.items():
        os.environ[name] = str(root / folder)


def _can_make(folder: Path) -> bool:
    """Whether a folder is there, or could be made, and written to."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return os.access(place, os.W_OK | os.X_OK)
    return False


def _own_folder() -> Path:
    """A folder that nobody else can put anything into: caches hold programs."""
    import tempfile  # seldom needed

    folder = Path(tempfile.gettempdir()) / f"virchow_st-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if not is_ours or found.st_mode & 0o022:
            return Path(tempfile.mkdtemp(prefix="virchow_st-"))
    return folder
