"""The wheel in clean environments: built, installed with each extra by itself, and used.

    python tests/smoke.py [EXTRA ...]        (default: all; `base` is the install without an extra)

needs a package registry and, for all extras one after the other, some 2 GB of disk for the largest. The models are tiny and are
made here, so the environment that runs this script has torch; the one that is tested has what the wheel asks for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from exportable import write_checkpoint
from tinygguf import write_tiny_gguf
from trainable import write_text

ROOT = Path(__file__).parent.parent
BASE = [
    "plan model --drop 1", "scale model deeper --drop 1", "verify deeper --source model", "merge merged model model",
    "recipes", "doctor",
]  # fmt: skip
PRETRAIN = "pretrain deeper healed --data text.txt --tokens 256 --sequence-length 32 --batch-tokens 64 --validation-tokens 64"
GENERATE = "generate tiny.gguf hello --max-new-tokens 4 --context 64"
WORKS = {
    "base": [],
    "train": [PRETRAIN, "export healed healed.gguf --quantize Q8_0"],
    "evaluate": ["evaluate deeper --data text.txt --tokens 128 --window 64", "export deeper deeper.gguf"],
    "run": [GENERATE],
    "apps": [GENERATE, "support tiny.gguf --docs docs sails"],
    "all": [PRETRAIN, "evaluate healed --data text.txt --tokens 128 --window 64", GENERATE],
}
MISSING = {"base": PRETRAIN, "train": GENERATE, "run": PRETRAIN.replace(" healed", " other")}
"""A verb of another extra: it must say what is missing, or work all the same where the extra happens to have what it needs."""


def build(folder: Path) -> Path:
    """The wheel and the source distribution; returns the wheel."""
    code = f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r}); b.build_wheel({str(folder)!r})"
    copy = folder / "source"
    left_out = shutil.ignore_patterns(".*", "runs", "demo", "build", "dist", "site", "work", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=left_out)
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def lay(folder: Path) -> None:
    """What the commands are about."""
    write_checkpoint(folder / "model")
    write_text(folder / "text.txt", 800)
    write_tiny_gguf(folder / "tiny.gguf")
    (folder / "docs").mkdir()
    (folder / "docs" / "boats.md").write_text("# Boats\n\nA boat with two sails is a ketch or a yawl.\n")


def smoke(extra: str, wheel: Path, folder: Path) -> dict[str, object]:
    """Install one extra into an environment of its own and use it."""
    environment, work = folder / "venv", folder / "work"
    work.mkdir(parents=True)
    lay(work)
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, str(wheel) + ("" if extra == "base" else f"[{extra}]")], check=True)
    installed = time.monotonic() - start
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    clean |= {"DEEPEN_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def deepen(words: str) -> subprocess.CompletedProcess[str]:
        command = [environment / "bin" / "deepen", *words.split()]
        return subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True, timeout=600)

    for words in ["--version", *BASE, *WORKS[extra]]:
        done = deepen(words)
        assert done.returncode == 0, f"{extra}: deepen {words}\n{done.stdout}\n{done.stderr}"
        assert words != "recipes" or "smollm2" in done.stdout, "the recipes come along"
    if extra in MISSING:
        done = deepen(MISSING[extra])
        assert done.returncode == 0 or "pip install" in done.stderr, f"{extra}: deepen {MISSING[extra]}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    size = sum(file.stat().st_size for file in environment.rglob("*") if file.is_file() and not file.is_symlink())
    return {
        "extra": extra,
        "install_seconds": round(installed, 1),
        "use_seconds": round(time.monotonic() - start - installed, 1),
        "environment_bytes": size,
    }


def main(extras: list[str]) -> None:
    """Smoke-test the extras that are named, a JSON line for each."""
    with tempfile.TemporaryDirectory() as place:
        wheel = build(Path(place))
        print(json.dumps({"wheel": wheel.name, "wheel_bytes": wheel.stat().st_size}), flush=True)
        for extra in extras or [*WORKS]:
            print(json.dumps(smoke(extra, wheel, Path(place) / extra)), flush=True)
            shutil.rmtree(Path(place) / extra)


if __name__ == "__main__":
    main(sys.argv[1:])
