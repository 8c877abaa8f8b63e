import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepen import doctor as verb
from deepen.cli.printing import plain

doctor = sys.modules["deepen.doctor"]


def test_what_it_says_of_this_machine() -> None:
    found = verb()
    assert found["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert 0 < found["memory"]["available_bytes"] <= found["memory"]["total_bytes"]
    assert 0 <= found["disk"]["free_bytes"] <= found["disk"]["total_bytes"]
    assert found["versions"]["deepen"] == "0.1.0"
    assert found["versions"]["python"] == sys.version.split()[0]
    assert plain(found) == found


def test_every_ability_is_ready_or_says_what_to_install() -> None:
    abilities = verb()["abilities"]
    assert abilities["plan, scale, verify"] == {"ready": True, "uses": "nothing more", "install": None}
    assert len(abilities) == 7
    for ability in abilities.values():
        assert (ability["uses"] is None) != ability["ready"]
        assert (ability["install"] is None) == ability["ready"]


def test_what_is_missing_comes_with_its_command() -> None:
    missing = doctor._ability(("torch", "gguf"), "run", {"torch": None, "gguf": "1"})
    assert missing == {"ready": False, "uses": None, "install": "pip install 'deepen[run]'"}


def test_it_imports_no_engine() -> None:
    code = "import sys, deepen; deepen.doctor(); print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def program(folder: Path, text: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_gpus_are_read_from_the_drivers_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "echo 'NVIDIA A100, 81920, 550.1'\necho 'NVIDIA GB10, [N/A], 580.1'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert verb()["gpus"] == [
        {"name": "NVIDIA A100", "memory_bytes": 81920 * 2**20, "driver": "550.1"},
        {"name": "NVIDIA GB10", "memory_bytes": None, "driver": "580.1"},
    ]


def test_a_tool_without_a_driver_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "echo 'no devices were found'; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert verb()["gpus"] == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert verb()["gpus"] == []
