"""Memory that a job may still use: free on the machine, or allowed by its control group."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
# Version of the hierarchy → files of the limit and of what is used, and what of that are file
# pages the kernel gives back when asked.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_ram(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Main memory that this process can still use without swapping, in bytes.

    The limit of a container or cluster job applies if it is lower than the machine's free memory.

    Args:
        proc, cgroups: where the kernel says it.
    """
    try:
        lines = (proc / "meminfo").read_text("ascii").splitlines()
    except FileNotFoundError:  # macOS says how much there is, and that others use some of it
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    kilobytes = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)}
    free = int(kilobytes["MemAvailable"]) * 1024
    for version, folder in _groups(proc, cgroups):
        for group in (folder, *folder.parents):  # a limit of any group above holds too
            if group == cgroups.parent:
                break
            left = _left_in(group, version)
            free = free if left is None else min(free, left)
    return max(free, 0)


def _groups(proc: Path, cgroups: Path) -> list[tuple[int, Path]]:
    """Version and folder of the memory control groups that this process is in."""
    found = []
    try:
        lines = (proc / "self" / "cgroup").read_text("ascii").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found.append((2, cgroups / path.lstrip("/")))
        elif "memory" in controllers.split(","):
            found.append((1, cgroups / "memory" / path.lstrip("/")))
    return found


def _left_in(group: Path, version: int) -> int | None:
    """Bytes left of a group's limit; None where it has none, or is not seen from here."""
    limit_file, used_file, reclaimable = _FILES[version]
    try:
        limit = (group / limit_file).read_text("ascii").strip()
        if limit == "max":
            return None
        used = int((group / used_file).read_text("ascii"))
        statistics = (group / "memory.stat").read_text("ascii").splitlines()
    except OSError:
        return None
    pages = dict(line.split() for line in statistics)
    return int(limit) - used + int(pages.get(reclaimable, 0))
