"""Free memory as the kernel reports it, for the machine and for control groups v1 and v2."""

from __future__ import annotations

import pytest

from virchow_st.runtime.memory import free_ram

MEGABYTE = 1 << 20


@pytest.fixture
def proc(tmp_path):
    """A machine with 800 MB free."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(f"MemTotal: 2000000 kB\nMemAvailable: {800 * 1024} kB\n")
    return folder


def group(folder, names, limit, used, inactive, key):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used * MEGABYTE}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{key} {inactive * MEGABYTE}\n")


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_groups_it_is_what_the_machine_has(proc, tmp_path):
    assert free_ram(proc, tmp_path / "none") == 800 * MEGABYTE
    (proc / "self" / "cgroup").write_text("0::/\n5:memory:/job\n3:cpu,cpuacct:/job\n")
    assert free_ram(proc, tmp_path / "none") == 800 * MEGABYTE  # groups that are not seen from here


@pytest.mark.parametrize(
    ("limit", "used", "inactive", "expected"),
    [("max", 300, 0, 800), (500 * MEGABYTE, 300, 0, 200), (500 * MEGABYTE, 300, 50, 250),
     (2000 * MEGABYTE, 300, 0, 800), (100 * MEGABYTE, 300, 0, 0)],
)  # fmt: skip
def test_a_groups_limit_counts_where_it_is_lower(proc, tmp_path, limit, used, inactive, expected):
    (proc / "self" / "cgroup").write_text("0::/slurm/job_1\n")
    group(tmp_path / "cg/slurm/job_1", V2, limit, used, inactive, "inactive_file")
    assert free_ram(proc, tmp_path / "cg") == expected * MEGABYTE


def test_groups_above_count_too(proc, tmp_path):
    (proc / "self" / "cgroup").write_text("0::/slurm/job_1/step_0\n")
    group(tmp_path / "cg/slurm/job_1/step_0", V2, "max", 100, 0, "inactive_file")
    group(tmp_path / "cg/slurm/job_1", V2, 400 * MEGABYTE, 100, 20, "inactive_file")
    assert free_ram(proc, tmp_path / "cg") == 320 * MEGABYTE


def test_version_1(proc, tmp_path):
    (proc / "self" / "cgroup").write_text("9:name=systemd:/\n4:memory:/docker/abc\n0::/\n")
    group(tmp_path / "cg/memory/docker/abc", V1, 300 * MEGABYTE, 100, 7, "total_inactive_file")
    assert free_ram(proc, tmp_path / "cg") == 207 * MEGABYTE


def test_this_machine():
    assert 1 << 20 < free_ram() < 1 << 50
