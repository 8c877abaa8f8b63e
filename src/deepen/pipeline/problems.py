"""What can be known to go wrong before the first stage, so that no hour of work ends at a missing file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from deepen.checkpoint.hub import is_hub_id
from deepen.errors import DeepenError
from deepen.pipeline.models import depth_of
from deepen.pipeline.steps import Step, matches
from deepen.plan import parse_plan
from deepen.recipe import PlannedStage, Recipe


def file_problems(words: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """Files and models that are not there, and layer plans that do not fit: a sentence each, with its place in the recipe."""
    base_is_there = Path(words.base).exists() or (is_hub_id(words.base) and not words.base.endswith(".gguf"))
    if not base_is_there:
        yield f"base: there is no {words.base}{_nearest(Path(words.base))}"
    for step in steps:
        for key, files in step.stage.path_options().items():
            for file in files:
                if not (_is_there(file) or will_be_found(file, steps)):
                    yield f"{step.stage.place}.{key}: there is no {file}{_nearest(file)}"
    made = {step.model for step in steps}
    for step in steps:
        for key in ("models", "compare"):
            for number, model in enumerate(step.options.get(key, ())):
                where = f"{step.stage.place}.{key}.{number}"
                if key == "models" and model.endswith(".gguf"):
                    yield f"{where}: {model} is a GGUF file, which cannot be merged"
                elif model not in made and not Path(model).exists() and not is_hub_id(model):
                    yield f"{where}: there is no stage above, folder or Hub id {model}"
    if base_is_there:
        yield from _plan_problems(words, steps)


def will_be_found(file: Path, steps: Sequence[Step]) -> bool:
    """Whether it is the plan that a search writes."""
    return file.name == "best.yaml" and any(step.stage.stage == "explore" and step.out == file.parent for step in steps)


def _is_there(path: Path) -> bool:
    """Whether it exists, is a pattern that something matches, or may be a data set of the Hub."""
    word = str(path)
    return path.exists() or any(matches(word)) or (path.suffix == "" and is_hub_id(word.partition(":")[0]))


def _nearest(path: Path) -> str:
    """The file in the same folder whose name is like it, or the folder that is missing already."""
    folder = path.parent
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    near = get_close_matches(path.name, [each.name for each in folder.iterdir()], n=1)
    return f', did you mean "{near[0]}"?' if near else ""


def _plan_problems(words: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """Follow the number of layers through the stages."""
    if not Path(words.base).exists():
        return
    try:
        depths = {words.base: depth_of(words.base)}
    except DeepenError as error:
        yield f"base: {error.what}"
        return
    for step in steps:
        depth = depths.get(step.source)
        if depth is not None and isinstance(step.stage, PlannedStage):
            keys = (*PlannedStage.plans, "identity_init")
            chosen = {key: value for key, value in step.options.items() if key in keys}
            if isinstance(plan := chosen.get("plan"), Path) and not plan.exists():
                continue  # how deep it will be is not known yet, nor for what is made from it
            try:
                depth = parse_plan(depth, **chosen).num_hidden_layers if chosen else depth
            except DeepenError as error:
                yield f"{step.stage.place}: {error.what}"
                depth = None
        if step.stage.makes_model and depth is not None:
            depths[step.model] = depth
