"""The memory that is left is the least of what the computer and the containers around the process allow."""

import os
from pathlib import Path

from deepen.host import Memory, host_memory

GIB = 2**30


def proc(folder: Path, *groups: str, total: int = 16 * GIB, available: int = 10 * GIB) -> Path:
    (folder / "proc" / "self").mkdir(parents=True)
    meminfo = f"MemTotal:  {total // 1024} kB\nMemFree:  1 kB\nMemAvailable:  {available // 1024} kB\n"
    (folder / "proc" / "meminfo").write_text(meminfo)
    (folder / "proc" / "self" / "cgroup").write_text("".join(f"{line}\n" for line in groups))
    return folder / "proc"


def group(folder: Path, version: int, limit: str | int, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    prefix = "" if version == 2 else "total_"
    lines = {"anon": used - cached, f"{prefix}inactive_file": cached // 4, f"{prefix}active_file": cached - cached // 4}
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))


def test_without_a_container(tmp_path: Path) -> None:
    assert host_memory(proc(tmp_path), tmp_path / "none") == Memory(16 * GIB, 10 * GIB)


def test_a_limit_of_version_2_and_the_ones_around_it(tmp_path: Path) -> None:
    files, root = proc(tmp_path, "0::/job/step"), tmp_path / "cgroup"
    root.mkdir()
    group(root / "job", 2, 6 * GIB, 4 * GIB, cached=3 * GIB)  # cached files make way
    assert host_memory(files, root) == Memory(6 * GIB, 5 * GIB)
    group(root / "job" / "step", 2, "max", GIB)
    assert host_memory(files, root) == Memory(6 * GIB, 5 * GIB)
    group(root / "job" / "step", 2, 2 * GIB, GIB)
    assert host_memory(files, root) == Memory(2 * GIB, GIB)


def test_inside_a_container_of_version_2_the_root_has_the_limit(tmp_path: Path) -> None:
    group(tmp_path / "cgroup", 2, 3 * GIB, 4 * GIB)
    assert host_memory(proc(tmp_path, "0::/"), tmp_path / "cgroup") == Memory(3 * GIB, 0)


def test_a_limit_of_version_1(tmp_path: Path) -> None:
    files, root = proc(tmp_path, "5:cpu,cpuacct:/other", "4:memory:/docker/ab", "0::/"), tmp_path / "cgroup"
    group(root / "memory", 1, 2**63 - 4096, 9 * GIB)
    assert host_memory(files, root) == Memory(16 * GIB, 10 * GIB)
    group(root / "memory" / "docker" / "ab", 1, 4 * GIB, 3 * GIB, cached=GIB)
    assert host_memory(files, root) == Memory(4 * GIB, 2 * GIB)


def test_this_computer() -> None:
    memory = host_memory()
    assert 0 < memory.available <= memory.total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
