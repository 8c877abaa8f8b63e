"""Run a recipe: a short loop over folders. Between two stages lies a checkpoint on disk, never a live object.

Beside the output of each stage lies a small record, `NAME.json`: the key of what was done (verb, options, and the content of
every input) and its result. A stage whose record has the same key is done and is skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepen.checkpoint.hub import is_hub_id
from deepen.errors import OutputError
from deepen.output import partial_path
from deepen.pipeline.models import measure
from deepen.pipeline.record import PICTURES, key_of, read_record, write_record
from deepen.pipeline.shelf import find_recipe, recipes
from deepen.pipeline.steps import Step, plan_steps, require_files, until_stage
from deepen.pipeline.together import conducted, joined

__all__ = ["check", "find_recipe", "recipes", "run"]

Announce = Callable[[int, int, dict[str, Any]], None]
"""`on_stage(number, total, stage)` is called before each stage; `stage["status"]` says whether it is done already."""


@conducted
def run(
    recipe: str | Path,
    *,
    dry_run: bool = False,
    until: str | None = None,
    set: Sequence[str] = (),  # noqa: A002
    out: str | Path | None = None,
    overwrite: bool = False,
    on_stage: Announce | None = None,
) -> dict[str, Any]:
    """Run the stages of a recipe in order; those that are done already are skipped.

    Args:
        recipe: a recipe file, or the name of one that comes with deepen.
        dry_run: only say what would be done.
        until: the last stage to run.
        set: overrides such as `scale.drop=5`.
        out: the folder for all outputs; `runs/NAME` by default.
        overwrite: make a stage again whose options or input have changed since it was done; otherwise that is refused.
        on_stage: called before each stage.

    Returns:
        `recipe`, `folder`, `stages` (each with `name`, `stage`, `command`, `status`, `output`, `seconds`, `result` and the
        `model` it made or judged: `layers`, `parameters`, `bytes`), and `pictures`.

    Raises:
        RecipeError: the recipe has problems, or names files that are missing.
        OutputError: a stage was done with other options or another input, and `overwrite` is false.
        DeepenError: whatever a stage raises.
    """
    words, steps = plan_steps(recipe, set, out)
    steps = until_stage(steps, until)
    folder = steps[0].out.parent
    if not dry_run:
        require_files(recipe, words, steps)
    stages = []
    for number, step in enumerate(steps, start=1):
        stage = _describe(step)
        ready = all(Path(model).exists() or is_hub_id(model) for model in (step.source, *step.others))
        key = key_of(step) if ready else None
        stage["status"] = _status(step, key)
        if on_stage is not None:
            on_stage(number, len(steps), stage)
        if not dry_run:
            assert key is not None, "the stage before has made its model"
            stage |= _make(step, key, overwrite) if stage["status"] != "done" else read_record(step)
            stage["model"] = measure(step.model)
        stages.append(stage)
    pictures = [str(file) for step in steps if step.out.is_dir() for file in sorted(step.out.glob(f"*{PICTURES}"))]
    return {"recipe": words.name, "folder": str(folder), "stages": stages, "pictures": pictures}


def check(recipe: str | Path, *, set: Sequence[str] = ()) -> dict[str, Any]:  # noqa: A002
    """Check a recipe without running it: its words, that its files are there, and that its layer plans fit the base.

    Returns:
        `recipe`, `base` and `stages` (each with `name`, `stage`, `command`, `output`).

    Raises:
        RecipeError: the recipe has problems; the message lists them.
    """
    words, steps = plan_steps(recipe, set, None)
    require_files(recipe, words, steps)
    return {"recipe": words.name, "base": words.base, "stages": [_describe(step) for step in steps]}


def _describe(step: Step) -> dict[str, Any]:
    described = {"name": step.stage.name, "stage": step.stage.stage, "command": step.command, "output": str(step.out)}
    return described | ({"prompt": step.options["prompt"]} if "prompt" in step.options else {})


def _status(step: Step, key: str | None) -> str:
    """`done`, `to do`, or `changed`: there is an output, or a begun one, of other options or another input."""
    record = read_record(step)
    if not step.out.exists():
        begun = partial_path(step.out).exists() and bool(record)
        return "changed" if begun and record["key"] != key else "to do"
    if key is None or record.get("key") != key:
        return "changed"
    return "done" if step.stage.makes_model or record["result"] is not None else "to do"


def _make(step: Step, key: str, overwrite: bool) -> dict[str, Any]:
    changed = _status(step, key) == "changed"
    if changed:
        if not overwrite:
            raise OutputError(
                f"stage {step.stage.name!r} was done with other options or another input",
                where=step.out,
                next="pass --overwrite to make it again, or --out for another folder",
            )
        _discard(step)
    step.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # the key is written before the output appears: outputs appear only when complete, so both together mean done
    write_record(step, key, None, 0.0)
    result = _call(step, resume=not changed)
    return write_record(step, key, result, time.monotonic() - start)


@joined
def _call(step: Step, *, resume: bool) -> dict[str, Any] | None:
    match step.stage.stage:
        case "scale":
            from deepen.scale import scale

            scale(step.source, step.out, **step.options)
        case "explore":
            from deepen.explore import explore

            found = explore(step.source, out=step.out, overwrite=not resume, **step.options)
            return {"best": found.plans[0].to_dict() if found.plans else None, "base": dict(found.base)}
        case "merge":
            from deepen.merge import merge

            merge(step.out, **step.options)
        case "pretrain":
            from deepen.train.pretrain import pretrain

            pretrain(step.source, step.out, resume=resume, **step.options)
        case "instruct":
            from deepen.train.instruct import instruct

            instruct(step.source, step.out, resume=resume, **step.options)
        case "align":
            from deepen.train.align import align

            align(step.source, step.out, resume=resume, **step.options)
        case "export":
            from deepen.export import export

            export(step.source, step.out, **step.options)
        case "evaluate":
            from deepen.evaluate import evaluate

            return evaluate(step.source, **step.options).to_dict()
        case "generate":
            from deepen.generate import generate

            return asdict(generate(step.source, **step.options))
    return None


def _discard(step: Step) -> None:
    """Remove an output that is to be made again; the record first, so that no crash leaves it beside half an output."""
    step.record.unlink(missing_ok=True)
    if not step.out.exists():
        return
    if step.out.is_dir() and not step.out.is_symlink():
        shutil.rmtree(step.out)
    else:
        step.out.unlink(missing_ok=True)
