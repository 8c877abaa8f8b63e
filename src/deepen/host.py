"""How much memory this computer has for more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC, _CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# per version of control groups: the controller, the files of its limit and its use, and the statistics of cached files
_VERSIONS = (
    ("", "memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes.

    Attributes:
        total: all there is.
        available: what a program can still get without anything being swapped out.
    """

    total: int
    available: int


def host_memory(proc: Path = _PROC, control_groups: Path = _CONTROL_GROUPS) -> Memory:
    """The memory of this computer, or of the container that the process is in, where its limit is lower.

    Args:
        proc: where Linux shows processes and memory.
        control_groups: where it shows the limits of containers.
    """
    fields = colon_fields(proc / "meminfo")
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, free in _limits(proc, control_groups):
        if limit < total:
            total = limit
        available = min(available, free)
    return Memory(total, max(0, min(available, total)))


def colon_fields(file: Path) -> dict[str, str]:
    """The fields of a file of `name: content` lines, the first of each name; none if there is no such file."""
    fields: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        name, _, content = line.partition(":")
        fields.setdefault(name.strip(), content.strip())
    return fields


def _limits(proc: Path, control_groups: Path) -> Iterator[tuple[int, int]]:
    """Limit and free bytes of each control group that this process is in, and of those around it."""
    groups = proc / "self" / "cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        for controller, limit_file, used_file, cached in _VERSIONS:
            if controller not in controllers.split(","):
                continue
            root = control_groups / controller
            inside = root / path.lstrip("/")
            for folder in (inside, *inside.parents):
                limit, used = _number(folder / limit_file), _number(folder / used_file)
                if limit is not None and used is not None:
                    yield limit, limit - used + _statistics(folder / "memory.stat", cached)
                if folder == root:
                    break


def _statistics(file: Path, names: tuple[str, ...]) -> int:
    lines = (line.partition(" ") for line in file.read_text(encoding="utf-8").splitlines()) if file.is_file() else ()
    return sum(int(content) for name, _, content in lines if name in names)


def _number(file: Path) -> int | None:
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else None
