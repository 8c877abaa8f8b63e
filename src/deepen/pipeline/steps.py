"""The stages of a recipe with their places on disk."""

from __future__ import annotations

import glob
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.errors import OptionError
from deepen.recipe import Recipe, Stage

_MODELS = ("base", "teacher", "reference_model")  # options that name a model, or the stage that makes it


@dataclass(frozen=True)
class Step:
    """A stage with its places: the model that goes in, and the output (a model, or the record of a judgement)."""

    stage: Stage
    source: str
    out: Path
    options: dict[str, Any]

    @property
    def record(self) -> Path:
        """The file that says what was done and what came of it."""
        return self.out.with_name(f"{self.stage.name}.json")

    @property
    def model(self) -> str:
        """The model that the next stage takes."""
        return str(self.out) if self.stage.makes_model else self.source

    @property
    def others(self) -> tuple[str, ...]:
        """Further models that decide the output."""
        named = (self.options.get(key) for key in _MODELS)
        several = (*self.options.get("models", ())[1:], *self.options.get("compare", ()))
        return (*several, *(model for model in named if isinstance(model, str)))

    @property
    def inputs(self) -> tuple[str, ...]:
        """All models that decide the output."""
        return (self.source, *self.others)

    @property
    def command(self) -> str:
        """The same as words for a shell."""
        words = ["deepen", self.stage.stage, self.source, *([str(self.out)] if self.stage.makes_model else [])]
        if self.stage.stage == "explore":
            words += ["--out", str(self.out)]
        if "models" in self.options:
            words = ["deepen", self.stage.stage, str(self.out), *self.options["models"]]
        for key, value in self.options.items():
            if key == "models":
                continue
            if key == "kinds":
                value = ",".join(value)
            if key == "prompt":
                words.append(value)
                continue
            if key == "weights":
                value = ",".join(map(str, value))
            option = "--" + key.rstrip("_").replace("_", "-")
            for each in value if isinstance(value, list | tuple) else [value]:
                words += [option] if each is True else [] if each is None or each is False else [option, str(each)]
        return " ".join(map(shlex.quote, words))


def plan_steps(words: Recipe, out: str | Path | None) -> list[Step]:
    """The stages with their places; a stage whose model is not known, since that stage is unsound, is left out."""
    folder = Path("runs") / words.name if out is None else Path(out)
    models = {"base": words.base}
    steps: list[Step] = []
    searches: list[str] = []  # stages that leave a folder with a layer plan in it
    for given in words.stages:
        stage = given if words.data is None else given.in_folder(words.data)
        if stage.from_ not in models:
            continue
        source, options = models[stage.from_], stage.options()
        for key in _MODELS:
            if isinstance(model := options.get(key), str):
                options[key] = models.get(model, model)
        for key in ("models", "compare"):
            if key in options:
                options[key] = tuple(models.get(model, model) for model in options[key])
        if "models" in options:
            source = options["models"][0]
        if isinstance(plan := options.get("plan"), Path) and plan.parts[0] in searches:
            options["plan"] = folder / plan
            stage = stage.model_copy(update={"plan": options["plan"]})
        is_file = stage.stage == "export" or (source.endswith(".gguf") and options.get("to") is None)
        suffix = "" if not is_file else ".gguf"
        if stage.stage == "explore":
            searches.append(stage.name)
        else:
            suffix = suffix if stage.makes_model else ".json"
        steps.append(Step(stage, source, folder / f"{stage.name}{suffix}", options))
        models[stage.name] = steps[-1].model
    return steps


def until_stage(steps: list[Step], until: str | None) -> list[Step]:
    """The stages up to one, that included; all of them unless one is named."""
    names = [step.stage.name for step in steps]
    if until is None:
        return steps
    if until not in names:
        raise OptionError(f"no stage is called {until!r}", where="--until", next=f"use one of {', '.join(names)}")
    return steps[: names.index(until) + 1]


def matches(word: str) -> list[Path]:
    """The files that a pattern stands for."""
    return sorted(map(Path, glob.glob(word, recursive=True))) if glob.has_magic(word) else []  # noqa: PTH207
