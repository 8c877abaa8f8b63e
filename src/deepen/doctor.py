"""What this machine can do, and what to install for what is missing. Imports none of the engines."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deepen.host import colon_fields, host_memory

_PACKAGES = (
    "deepen", "numpy", "huggingface_hub", "torch", "transformers", "accelerate", "safetensors", "gguf", "xllamacpp",
    "matplotlib", "datasets", "peft",
)  # fmt: skip

# What people want to do, the packages it takes, and the extra that installs them
_ABILITIES = {
    "plan, scale, verify": ((), ""),
    "scale --to hf": (("gguf", "torch", "transformers"), "run"),
    "pretrain, instruct, align": (("torch", "transformers", "matplotlib"), "train"),
    "evaluate": (("torch", "transformers"), "evaluate"),
    "export": (("gguf", "torch", "transformers", "xllamacpp"), "run"),
    "generate with transformers": (("torch", "transformers"), "run"),
    "generate with llama.cpp": (("xllamacpp",), "run"),
}
_QUERY_SECONDS = 10


def doctor() -> dict[str, Any]:
    """Look at the machine: processor, accelerators, memory, disk, versions, and which verbs are ready.

    Returns:
        `system`, `cpu` (`model`, `cores`), `gpus` (a list of `name`, `memory_bytes`, `driver`), `memory` (`total_bytes`,
        `available_bytes`), `disk` (`path`, `total_bytes`, `free_bytes`), `versions` (null where a package is missing), and
        `abilities`: per task `ready`, `uses` (packages) and `install` (the command for what is missing, or null).
    """
    memory = host_memory()
    versions = {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"model": _cpu_model(), "cores": len(os.sched_getaffinity(0))},
        "gpus": _gpus(),
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "disk": _disk(),
        "versions": versions,
        "abilities": {task: _ability(packages, extra, versions) for task, (packages, extra) in _ABILITIES.items()},
    }


def _ability(packages: tuple[str, ...], extra: str, versions: dict[str, str | None]) -> dict[str, Any]:
    ready = all(versions[package] for package in packages)
    uses = ", ".join(f"{package} {versions[package]}" for package in packages) or "nothing more"
    return {"ready": ready, "uses": uses if ready else None, "install": None if ready else f"pip install 'deepen[{extra}]'"}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    fields = colon_fields(Path("/proc/cpuinfo"))
    return fields.get("model name") or platform.processor() or platform.machine()


def _disk() -> dict[str, Any]:
    usage = shutil.disk_usage(Path.cwd())
    return {"path": str(Path.cwd()), "total_bytes": usage.total, "free_bytes": usage.free}


def _gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs as their driver's own tool reports them; without it there are none that torch could use."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_QUERY_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # a tool without a driver behind it
    return [_gpu(line) for line in answer.splitlines() if line.count(",") == 2]


def _gpu(line: str) -> dict[str, Any]:
    name, mebibytes, driver = (field.strip() for field in line.split(","))
    return {"name": name, "memory_bytes": int(mebibytes) * 2**20 if mebibytes.isdecimal() else None, "driver": driver}
