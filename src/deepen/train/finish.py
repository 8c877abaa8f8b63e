"""What a finished run of training writes beside its weights: picture, model card, manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.checkpoint import Checkpoint
from deepen.checkpoint.card import model_card
from deepen.checkpoint.manifest import MANIFEST_FILE, write_manifest
from deepen.checkpoint.writer import file_hashes, hash_tensors
from deepen.energy import carbon_grams
from deepen.output import write_file
from deepen.train import ranks
from deepen.train.metrics import METRICS_FILE, read_rows
from deepen.train.state import discard_state

if TYPE_CHECKING:
    from deepen.train.stage import Lesson


def finish(
    folder: Path,
    source: Checkpoint,
    facts: Mapping[str, Any],
    lesson: Lesson[Any],
    *,
    level: float | None,
    learned: int,
    plan: Mapping[str, Any] | None,
    start: float,
    energy: Mapping[str, Any],
) -> None:
    """Write curve, card, and last the manifest, whose presence says that all is there."""
    for name, text in lesson.files.items():
        write_file(folder / name, text)
    rows, beside = (read_rows(folder / METRICS_FILE, run) for run in (None, "control"))
    made_from = Path(facts["source"]["model"]).name
    account = lesson.account(made_from, lesson.subject, rows, beside, level)
    account.draw(folder / lesson.curve)
    readme = source.path / "README.md"
    card = model_card(facts, readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None)
    card += f"\n## Training\n\n{account.text}\n\n![{Path(lesson.curve).stem.capitalize()} curve]({lesson.curve})\n"
    write_file(folder / "README.md", card)
    tensors, headers = hash_tensors(folder)
    steps = [row for row in rows if "loss" in row]
    used = [row["energy_joules"] for row in steps]
    joules = None if None in used else round(sum(used), 3)
    write_manifest(
        folder,
        **facts,
        plan=plan,
        seconds=time.monotonic() - start,
        energy_joules=joules,
        results={
            "steps": len(steps),
            "tokens": rows[-1]["tokens"],
            "learned_parameters": learned,
            "processes": ranks.world_size(),
            "training_seconds": round(sum(row["seconds"] for row in steps), 3),
            "energy_joules": joules,
            "energy_method": energy["energy_method"],
            "carbon_grams": carbon_grams(joules, energy["grid_factor"]),
            **account.results,
            **lesson.results,
        },
        files=file_hashes(folder, exclude=(*headers, MANIFEST_FILE)),
        tensors=tensors,
        shard_headers=headers,
    )
    discard_state(folder)
