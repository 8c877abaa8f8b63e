"""Run a recipe: a short loop over folders. Between two stages lies a checkpoint on disk, never a live object.

Beside the output of each stage lies a small record, `NAME.json`: the key of what was done (verb, options, and the content of
every input) and its result. A stage whose record has the same key is done and is skipped.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deepen import architecture
from deepen.checkpoint import open_checkpoint, resolve
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.checkpoint.hub import is_hub_id
from deepen.errors import DeepenError, OptionError, OutputError, RecipeError
from deepen.output import partial_path, write_file
from deepen.plan import parse_plan
from deepen.recipe import PlannedStage, Recipe, Stage, load_recipe

# What tells of the making, and is no part of the model: it differs when the same model is made again
_ABOUT = {"deepen.json", "README.md", "metrics.jsonl"}
_PICTURES = ".png"
_MODELS = ("base", "teacher", "reference_model")  # options that name a model, or the stage that makes it

Announce = Callable[[int, int, dict[str, Any]], None]
"""`on_stage(number, total, stage)` is called before each stage; `stage["status"]` says whether it is done already."""


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
    words, steps = _plan_steps(recipe, set, out)
    steps = _until(steps, until)
    folder = steps[0].out.parent
    if not dry_run:
        _require_files(recipe, words, steps)
    stages = []
    for number, step in enumerate(steps, start=1):
        stage = _describe(step)
        ready = all(Path(model).exists() or is_hub_id(model) for model in (step.source, *step.others))
        key = _key(step) if ready else None
        stage["status"] = _status(step, key)
        if on_stage is not None:
            on_stage(number, len(steps), stage)
        if not dry_run:
            assert key is not None, "the stage before has made its model"
            stage |= _make(step, key, overwrite) if stage["status"] != "done" else _read_record(step)
            stage["model"] = _measure(step.model)
        stages.append(stage)
    pictures = [str(file) for step in steps if step.out.is_dir() for file in sorted(step.out.glob(f"*{_PICTURES}"))]
    return {"recipe": words.name, "folder": str(folder), "stages": stages, "pictures": pictures}


def check(recipe: str | Path, *, set: Sequence[str] = ()) -> dict[str, Any]:  # noqa: A002
    """Check a recipe without running it: its words, that its files are there, and that its layer plans fit the base.

    Returns:
        `recipe`, `base` and `stages` (each with `name`, `stage`, `command`, `output`).

    Raises:
        RecipeError: the recipe has problems; the message lists them.
    """
    words, steps = _plan_steps(recipe, set, None)
    _require_files(recipe, words, steps)
    return {"recipe": words.name, "base": words.base, "stages": [_describe(step) for step in steps]}


def recipes() -> list[dict[str, str]]:
    """The recipes that come with deepen: `name`, `about` (its first line) and `path` of each."""
    files = sorted(_recipe_folder().glob("*.yaml"))
    return [{"name": file.stem, "about": _first_line(file), "path": str(file)} for file in files]


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with deepen.

    Raises:
        RecipeError: there is neither.
    """
    if Path(name).exists():
        return Path(name)
    known = {each["name"]: Path(each["path"]) for each in recipes()}
    if str(name) in known:
        return known[str(name)]
    near = get_close_matches(str(name), [*known], n=1)
    advice = f'did you mean "{near[0]}"?' if near else f"give a file, or one of {', '.join(known) or 'your own'}"
    raise RecipeError("no such recipe", where=name, next=advice)


def _recipe_folder() -> Path:
    # beside the sources in a checkout; where a wheel puts its data otherwise
    checkout = Path(__file__).parents[2] / "recipes"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "deepen" / "recipes"


def _first_line(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        return lines.readline().lstrip("# ").strip()


def _plan_steps(recipe: str | Path, set: Sequence[str], out: str | Path | None) -> tuple[Recipe, list[Step]]:  # noqa: A002
    words = load_recipe(find_recipe(recipe), set=set)
    folder = Path("runs") / words.name if out is None else Path(out)
    models = {"base": words.base}
    steps: list[Step] = []
    searches: list[str] = []  # stages that leave a folder with a layer plan in it
    for stage in words.stages:
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
        out = folder / f"{stage.name}{suffix}"
        steps.append(Step(stage, source, out, options))
        models[stage.name] = steps[-1].model
    return words, steps


def _until(steps: list[Step], until: str | None) -> list[Step]:
    names = [step.stage.name for step in steps]
    if until is None:
        return steps
    if until not in names:
        raise OptionError(f"no stage is called {until!r}", where="--until", next=f"use one of {', '.join(names)}")
    return steps[: names.index(until) + 1]


def _require_files(recipe: str | Path, words: Recipe, steps: Sequence[Step]) -> None:
    """Everything that can be known before the first stage, so that no hour of work ends at a missing file."""
    problems = []
    if not Path(words.base).exists() and (words.base.endswith(".gguf") or not is_hub_id(words.base)):
        problems.append(f"base: there is no {words.base}")
    for step in steps:
        for key, files in step.stage.path_options().items():
            missing = [file for file in files if not (_is_there(file) or _will_be_found(file, steps))]
            problems += [f"stage {step.stage.name!r}: {key}: there is no {file}" for file in missing]
    made = {step.model for step in steps}
    for step in steps:
        for model in step.options.get("models", ()):
            if model.endswith(".gguf"):
                problems.append(f"stage {step.stage.name!r}: models: {model} is a GGUF file, which cannot be merged")
            elif model not in made and not Path(model).exists() and not is_hub_id(model):
                problems.append(f"stage {step.stage.name!r}: models: there is no stage above, folder or Hub id {model}")
    problems += list(_plan_problems(words, steps))
    if problems:
        raise RecipeError(
            "some of it cannot work\n  " + "\n  ".join(problems),
            where=recipe,
            next="see the recipe's first lines for what it needs; paths are relative to the current folder",
        )


def _is_there(path: Path) -> bool:
    """Whether it exists, is a pattern that something matches, or may be a data set of the Hub."""
    word = str(path)
    return path.exists() or any(_matches(word)) or (path.suffix == "" and is_hub_id(word.partition(":")[0]))


def _will_be_found(file: Path, steps: Sequence[Step]) -> bool:
    """Whether it is the plan that a search writes."""
    return file.name == "best.yaml" and any(step.stage.stage == "explore" and step.out == file.parent for step in steps)


def _matches(word: str) -> list[Path]:
    return sorted(map(Path, glob.glob(word, recursive=True))) if glob.has_magic(word) else []  # noqa: PTH207


def _plan_problems(words: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """Follow the number of layers through the stages."""
    if not Path(words.base).exists():
        return
    depths = {words.base: _depth(words.base)}
    for step in steps:
        depth = depths.get(step.source)
        if depth is not None and isinstance(step.stage, PlannedStage):
            keys = (*PlannedStage.plans, "identity_init")
            chosen = {key: value for key, value in step.options.items() if key in keys}
            if isinstance(plan := chosen.get("plan"), Path) and not plan.exists() and _will_be_found(plan, steps):
                continue  # how deep it will be is not known yet, nor for what is made from it
            try:
                depth = parse_plan(depth, **chosen).num_hidden_layers if chosen else depth
            except DeepenError as error:
                yield f"stage {step.stage.name!r}: {error.what}"
                depth = None
        if step.stage.makes_model and depth is not None:
            depths[step.model] = depth


def _describe(step: Step) -> dict[str, Any]:
    described = {"name": step.stage.name, "stage": step.stage.stage, "command": step.command, "output": str(step.out)}
    return described | ({"prompt": step.options["prompt"]} if "prompt" in step.options else {})


def _status(step: Step, key: str | None) -> str:
    """`done`, `to do`, or `changed`: there is an output, or a begun one, of other options or another input."""
    record = _read_record(step)
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
    _write_record(step, key, None, 0.0)
    result = _call(step, resume=not changed)
    return _write_record(step, key, result, time.monotonic() - start)


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


def _write_record(step: Step, key: str, result: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    record = {"key": key, "command": step.command, "seconds": round(seconds, 3), "result": result}
    write_file(step.record, json.dumps(record, indent=2, default=str) + "\n")
    return {"seconds": record["seconds"], "result": result}


def _read_record(step: Step) -> dict[str, Any]:
    try:
        record = json.loads(step.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and {"key", "seconds", "result"} <= record.keys() else {}


def _key(step: Step) -> str:
    """A hash of what decides the output: the verb, its options, and the content of the model and of every file."""
    files = {key: [_data_fingerprint(file) for file in paths] for key, paths in step.stage.path_options().items()}
    if step.others:
        files["models" if "models" in step.options else "others"] = [_fingerprint(resolve(model)) for model in step.others]
    options = {key: value for key, value in step.options.items() if key not in files}
    content = {"verb": step.stage.stage, "options": options, "files": files, "model": _fingerprint(resolve(step.source))}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _data_fingerprint(path: Path) -> str:
    """A hash of the content of files; of a data set of the Hub, its name."""
    if path.exists():
        return _fingerprint(path)
    return "".join(map(_fingerprint, _matches(str(path)))) or str(path)


def _fingerprint(path: Path) -> str:
    """A hash of the content of a file or folder, whatever its name, dates and manifest."""
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.name not in _ABOUT and f.suffix != _PICTURES)
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(path)}\0{digest}\n".encode())
    return total.hexdigest()


def _measure(model: str) -> dict[str, Any]:
    path = resolve(model)
    opened = open_gguf(path) if is_gguf(path) else open_checkpoint(path)
    tensors = opened.tensors.values()
    return {
        "layers": _depth(model),
        "parameters": sum(tensor.parameters for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
    }


def _depth(model: str) -> int:
    path = resolve(model)
    if is_gguf(path):
        gguf = open_gguf(path)
        return int(gguf.get(f"{gguf.get('general.architecture')}.block_count", 0))
    checkpoint = open_checkpoint(path)
    return architecture.find_stack(checkpoint.config, checkpoint.tensors, path).num_hidden_layers
