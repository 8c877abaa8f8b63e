"""Run a recipe: a short loop over folders. Between two stages lies a checkpoint on disk, never a live object.

Beside the output of each stage lies a small record, `NAME.json`: the key of what was done (verb, options, and the content of
every input), its result, and the content of the output. A stage whose record has the same key is done and is skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepen.checkpoint.hub import is_hub_id
from deepen.energy import carbon_grams
from deepen.errors import DeepenError, OutputError
from deepen.pipeline import record
from deepen.pipeline.account import tell
from deepen.pipeline.call import call
from deepen.pipeline.cost import costs, machine_name
from deepen.pipeline.hashes import PICTURES, Hashes
from deepen.pipeline.licence import licence_warning
from deepen.pipeline.lock import only_run
from deepen.pipeline.models import measure
from deepen.pipeline.problems import file_problems
from deepen.pipeline.report import GRID_FACTOR, write_report
from deepen.pipeline.shelf import find_recipe, recipes
from deepen.pipeline.sizes import needs, size_problems
from deepen.pipeline.steps import Step, plan_steps, until_stage
from deepen.pipeline.together import conducted
from deepen.progress import say
from deepen.recipe import Recipe, load_recipe, read_recipe, refuse

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
    adopt: bool = False,
    grid_factor: float = GRID_FACTOR,
    on_stage: Announce | None = None,
) -> dict[str, Any]:
    """Run the stages of a recipe in order; those that are done already are skipped.

    Args:
        recipe: a recipe file, or the name of one that comes with deepen.
        dry_run: only say what would be done.
        until: the last stage to run.
        set: overrides such as `scale.drop=5`.
        out: the folder for all outputs; `runs/NAME` by default.
        overwrite: make a stage again whose options or input have changed since it was done, or whose output was edited;
            otherwise that is refused.
        adopt: go on with outputs that were edited since they were made, and say so in their records.
        grid_factor: grams of CO2 per kWh, for the report.
        on_stage: called before each stage.

    Returns:
        `recipe`, `folder`, `stages` (each with `name`, `stage`, `command`, `status`, `output`, `seconds`, `result` and the
        `model` it made or judged: `layers`, `parameters`, `bytes`), `pictures`, `reports` (`report.html` and `report.md`) and
        `warnings`; of a dry run also `problems`, `machine`, and for each stage its `cost` there.

    Raises:
        RecipeError: the recipe has problems, or names files that are missing.
        OutputError: a stage was done with other options or another input, or its output was edited, and neither `overwrite`
            nor `adopt` is given; or another run is at work in the folder.
        DeepenError: whatever a stage raises.
    """
    if dry_run:
        words = load_recipe(find_recipe(recipe), set=set)
        return _dry_run(words, until_stage(plan_steps(words, out), until))
    carbon_grams(None, grid_factor)
    words, steps, warnings = _sound(recipe, set, out, until)
    folder = steps[0].out.parent
    for warning in warnings:
        say(f"warning: {warning}")
    with only_run(folder):
        hashes = Hashes(folder)
        try:
            _refuse_edited(steps, hashes, overwrite=overwrite, adopt=adopt)
            stages = []
            for number, step in enumerate(steps, start=1):
                stage = _describe(step)
                key = record.key_of(step, hashes)
                assert key is not None, "the stage before has made its model"
                stage["status"] = record.status(step, key, hashes)
                if on_stage is not None:
                    on_stage(number, len(steps), stage)
                if stage["status"] == "done":
                    stage |= record.complete_record(step, hashes)
                else:
                    stage |= _make(step, key, hashes, overwrite=overwrite)
                stage["model"] = measure(step.model)
                stages.append(stage)
                hashes.keep()
        finally:
            hashes.keep()
        told = tell(steps, [stage["model"] for stage in stages])
        reports = write_report(words, told, folder, recipe=find_recipe(recipe), overrides=set, grid_factor=grid_factor)
    pictures = [str(file) for step in steps if step.out.is_dir() for file in sorted(step.out.glob(f"*{PICTURES}"))]
    return {
        "recipe": words.name,
        "folder": str(folder),
        "stages": stages,
        "pictures": pictures,
        "reports": reports,
        "warnings": warnings,
    }


def check(recipe: str | Path, *, set: Sequence[str] = ()) -> dict[str, Any]:  # noqa: A002
    """Check a recipe without running it.

    That is its words, how its stages hang together, that its files are there, that its layer plans fit the base, and that its
    stages fit into memory and onto the disk.

    Returns:
        `recipe`, `base`, `stages` (each with `name`, `stage`, `command`, `output`) and `warnings`.

    Raises:
        RecipeError: the recipe has problems; the message lists them all.
    """
    words, steps, warnings = _sound(recipe, set, None, None)
    described = [_describe(step) for step in steps]
    return {"recipe": words.name, "base": words.base, "stages": described, "warnings": warnings}


def _sound(
    recipe: str | Path,
    set: Sequence[str],  # noqa: A002
    out: str | Path | None,
    until: str | None,
) -> tuple[Recipe, list[Step], list[str]]:
    """A recipe, its stages, and what must be said of them; or an error with all that is wrong with them."""
    file = find_recipe(recipe)
    words, problems = read_recipe(file, set=set)
    if words is None:
        raise refuse(file, problems)
    steps = plan_steps(words, out)
    steps = steps if problems else until_stage(steps, until)
    problems += file_problems(words, steps)
    fitting, warnings = _sizes(words, steps)
    if problems := [*problems, *fitting]:
        raise refuse(file, problems)
    return words, steps, warnings


def _sizes(words: Recipe, steps: Sequence[Step]) -> tuple[list[str], list[str]]:
    """What does not fit into this machine, and what must be said of the base."""
    if not (Path(words.base).exists() or is_hub_id(words.base)):
        return [], []
    warnings = [warning] if (warning := licence_warning(words.base)) else []
    try:
        return list(size_problems(needs(words, steps))), warnings
    except DeepenError as error:
        return [], [*warnings, f"whether it fits into memory and onto the disk is not known: {error.what}"]


def _dry_run(words: Recipe, steps: Sequence[Step]) -> dict[str, Any]:
    """What `run` gives, without doing anything; what is made from a model that is to be made again would be, too."""
    hashes = Hashes(steps[0].out.parent)
    stages, again = [], set[str]()
    for step in steps:
        stage = _describe(step)
        key = record.key_of(step, hashes) if record.may_be_done(step) else None
        stage["status"] = record.status(step, key, hashes)
        if stage["status"] == "done" and not again.isdisjoint(step.inputs):
            stage["status"] = "changed"
        if stage["status"] != "done" and step.stage.makes_model:
            again.add(step.model)
        stages.append(stage)
    problems = list(file_problems(words, steps))
    fitting, warnings = _sizes(words, steps)
    try:
        found = costs(words, needs(words, steps))
    except DeepenError:  # the base is not known, which the warnings say
        found = {}
    for stage in stages:
        stage["cost"] = found.get(stage["name"])
    return {
        "recipe": words.name,
        "folder": str(steps[0].out.parent),
        "stages": stages,
        "pictures": [],
        "reports": [],
        "machine": machine_name(),
        "problems": [*problems, *fitting],
        "warnings": warnings,
    }


def _refuse_edited(steps: Sequence[Step], hashes: Hashes, *, overwrite: bool, adopt: bool) -> None:
    edited = [step for step in steps if record.is_edited(step, hashes)]
    for step in edited:
        if adopt:
            record.adopt(step, hashes)
        elif not overwrite:
            raise OutputError(
                f"the output of stage {step.stage.name!r} was changed by hand since it was made",
                where=step.out,
                next="pass --adopt to go on with it as it is, which its record will tell, or --overwrite to make it again",
            )


def _describe(step: Step) -> dict[str, Any]:
    described = {"name": step.stage.name, "stage": step.stage.stage, "command": step.command, "output": str(step.out)}
    return described | ({"prompt": step.options["prompt"]} if "prompt" in step.options else {})


def _make(step: Step, key: str, hashes: Hashes, *, overwrite: bool) -> dict[str, Any]:
    changed = record.status(step, key, hashes) in {"changed", "edited"}
    if changed:
        if not overwrite:
            raise OutputError(
                f"stage {step.stage.name!r} was done with other options or another input",
                where=step.out,
                next="pass --overwrite to make it again, or --out for another folder",
            )
        _discard(step)
    start = time.monotonic()
    record.begin_record(step, key)
    result = call(step, resume=not changed)
    return record.finish_record(step, key, result, time.monotonic() - start, hashes)


def _discard(step: Step) -> None:
    """Remove an output that is to be made again; the record first, so that no crash leaves it beside half an output."""
    step.record.unlink(missing_ok=True)
    if not step.out.exists():
        return
    if step.out.is_dir() and not step.out.is_symlink():
        shutil.rmtree(step.out)
    else:
        step.out.unlink(missing_ok=True)
