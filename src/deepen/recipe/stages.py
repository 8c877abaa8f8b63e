"""The stages of a recipe: each verb with its options, spelled as in Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from deepen.errors import OptionError
from deepen.units import parse_bytes, parse_count

_RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DATA_OPTIONS = {"data", "held_out", "guard", "validation"}
_DATA_SET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w-]*(@[\w./-]+)?(:.*)?")  # of the Hub, as org/name:configuration
_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # no dot: files of a stage are named NAME.json and NAME.gguf


def _unit(parse: Callable[[Any], int]) -> BeforeValidator:
    def read(value: object) -> int:
        try:
            return parse(value)
        except OptionError as error:
            raise ValueError(error.what) from error

    return BeforeValidator(read)


def _name(pattern: re.Pattern[str], marks: str) -> BeforeValidator:
    def read(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not a name: letters, digits, {marks}, at most 64")
        return value

    return BeforeValidator(read)


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is not a path")
    return Path(value)


def _paths(value: object) -> tuple[Path, ...]:
    return tuple(_path(each) for each in (value if isinstance(value, list) else [value]))


def _list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _template(value: object) -> str | Path:
    return str(value) if value in ("model", "solar", "chatml") else _path(value)


RecipeName = Annotated[str, _name(_RECIPE_NAME, "dots, '_' and '-'")]
StageName = Annotated[str, _name(_STAGE_NAME, "'_' and '-'")]
Count = Annotated[int, _unit(parse_count), Field(gt=0)]
Bytes = Annotated[int, _unit(parse_bytes), Field(gt=0)]
File = Annotated[Path, BeforeValidator(_path)]
Files = Annotated[tuple[Path, ...], BeforeValidator(_paths), Field(min_length=1)]
Template = Annotated[str | Path, BeforeValidator(_template)]
Texts = Annotated[list[str], Field(min_length=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Precision = Literal["float32", "bfloat16", "float16"]


class Stage(BaseModel):
    """What every stage has. Options that a recipe leaves out keep the default of the verb's Python function."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    makes_model: ClassVar[bool] = True

    stage: str
    """The verb."""
    name: StageName = ""
    """Names the stage's output; the verb (and a number, if it occurs again) unless given."""
    from_: StageName = Field(default="base", alias="from")
    """The stage whose model goes in, or `base`; the stage before unless given. A merge has `models` instead."""
    _place: int = PrivateAttr(0)

    @property
    def place(self) -> str:
        """Where the stage stands in the recipe, such as `stages.2`."""
        return f"stages.{self._place}"

    def at(self, place: int) -> Self:
        """This stage as the one with that number in its recipe."""
        self._place = place
        return self

    def in_folder(self, folder: Path) -> Self:
        """This stage with relative paths of data starting from a folder; what is not there may be a data set of the Hub."""

        def move(path: Path) -> Path:
            elsewhere = path.is_absolute() or (_DATA_SET.fullmatch(str(path)) and not (folder / path).exists())
            return path if elsewhere else folder / path

        def move_cap(text: str) -> str:
            path, equals, rows = text.rpartition("=")
            return f"{move(Path(path))}={rows}" if equals else text

        moved: dict[str, Any] = {}
        for key in self.model_fields_set & _DATA_OPTIONS:
            value = getattr(self, key)
            moved[key] = tuple(map(move, value)) if isinstance(value, tuple) else value and move(value)
        if cap := getattr(self, "cap", None):
            moved["cap"] = [move_cap(text) for text in cap]
        return self.model_copy(update=moved)

    def path_options(self) -> dict[str, tuple[Path, ...]]:
        """The options that name files, and the files."""
        found = {key: value if isinstance(value, tuple) else (value,) for key, value in self.options().items()}
        return {key: value for key, value in found.items() if isinstance(value[0], Path)}

    def options(self) -> dict[str, Any]:
        """The verb's options that the recipe gives, as keyword arguments of its Python function."""
        return self.model_dump(exclude_unset=True, exclude={"stage", "name", "from_"})

    def problems(self) -> Iterator[str]:
        """Rules that bind several options together; a sentence for each that is broken."""
        yield from ()


class PlannedStage(Stage):
    """A stage that takes a layer plan."""

    drop: int | None = None
    layers: str | None = None
    repeat: str | None = None
    expand: int | None = None
    plan: File | None = None
    identity_init: bool = False
    plans: ClassVar[tuple[str, ...]] = ("drop", "layers", "repeat", "expand", "plan")

    def problems(self) -> Iterator[str]:
        """At most one layer plan."""
        given = [key for key in self.plans if getattr(self, key) is not None]
        if len(given) > 1 or (self.makes_model and not given):
            yield f"needs exactly one of {', '.join(self.plans)}, and has {' and '.join(given) or 'none'}"


class ExploreStage(Stage):
    """`stage: explore`; a `scale` after it takes what it found by `plan: explore/best.yaml`, its name before the slash."""

    makes_model = False

    data: Files
    add: Count | None = None
    budget: str | Annotated[float, Field(gt=1)] | None = None
    kinds: Annotated[tuple[Literal["repeat", "drop", "double", "times", "union"], ...], BeforeValidator(_list)] | None = None
    tokens: Count | None = None
    window: Count | None = None
    held_out: Files | None = None
    held_out_tokens: Count | None = None
    keep: Count | None = None
    objective: Literal["perplexity", "choices", "mixture"] | None = None
    guard: Files | None = None
    exhaustive: bool | None = None
    heal: Count | None = None
    template: Template | None = None
    seed: Seed | None = None
    device: str | None = None
    dtype: Precision | None = None
    memory: Bytes | None = None
    stream: bool | None = None
    recompute: bool | None = None


class ScaleStage(PlannedStage):
    """`stage: scale`; its `plan` may be what an `explore` above it has found."""

    as_: Literal["llama"] | None = Field(default=None, alias="as")
    max_position_embeddings: Count | None = None
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    shard_size: Bytes = 5 * 10**9
    to: Literal["hf"] | None = None


class MergeStage(Stage):
    """`stage: merge`; each of its `models` may be the name of a stage."""

    models: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_list), Field(min_length=2)]
    method: Literal["average", "slerp"] = "average"
    weights: Annotated[tuple[float, ...], BeforeValidator(_list)] | None = None
    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    shard_size: Bytes = 5 * 10**9

    def problems(self) -> Iterator[str]:
        """The models come from one place, and each has its weight."""
        if "from_" in self.model_fields_set:
            yield "takes its models from `models`, not from `from`"
        if self.weights is not None and len(self.weights) != len(self.models):
            yield f"has {len(self.weights)} weights for {len(self.models)} models"


class TrainStage(Stage):
    """What the stages of training share; `base` and `teacher` may be names of stages."""

    data: Files
    train: Literal["all", "repeated", "lora"] | None = None
    lora_rank: Count | None = None
    learning_rate: Rate | None = None
    new_layer_learning_rate: Rate | None = None
    schedule: Literal["cosine", "constant", "wsd"] | None = None
    warmup: Annotated[float, Field(ge=0)] | None = None
    teacher: str | None = None
    teacher_share: Annotated[float, Field(ge=0, le=1)] | None = None
    base: str | None = None
    control: bool | None = None
    every: Count | None = None
    save_every: Count | None = None
    keep: Count | None = None
    micro_batch: Count | None = None
    sequence_length: Count | None = None
    batch_tokens: Count | None = None
    validation: File | None = None
    seed: Seed | None = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    compile: bool | None = None
    activation_checkpointing: bool | None = None
    grid_factor: Annotated[float, Field(ge=0)] | None = None
    device: str | None = None


class PretrainStage(TrainStage):
    """`stage: pretrain`."""

    tokens: Count | None = None
    epochs: Rate | None = None
    weights: Annotated[tuple[Rate, ...], BeforeValidator(_list)] | None = None
    text_column: str | None = None
    validation_tokens: Count | None = None
    until_recovered: bool | None = None

    def problems(self) -> Iterator[str]:
        """The length of a run is said once."""
        if (self.tokens is None) == (self.epochs is None):
            yield "needs either tokens or epochs"


class InstructStage(TrainStage):
    """`stage: instruct`."""

    template: Template | None = None
    epochs: Rate | None = None
    too_long: Literal["error", "truncate", "drop"] | None = None
    cap: Texts | None = None
    exclude_tasks: Texts | None = None
    exclude_benchmarks: Texts | None = None
    batch_rows: Count | None = None
    packing: bool | None = None
    validation_rows: Count | None = None

    def problems(self) -> Iterator[str]:
        """The size of a batch is said once."""
        if self.batch_rows is not None and self.batch_tokens is not None:
            yield "has both batch_rows and batch_tokens; give one of them"


class AlignStage(TrainStage):
    """`stage: align`."""

    stepwise: bool | None = None
    beta: Rate | None = None
    loss: Literal["sigmoid", "ipo"] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    sft_weight: Annotated[float, Field(ge=0)] | None = None
    template: Template | None = None
    epochs: Rate | None = None
    too_long: Literal["error", "truncate", "drop"] | None = None
    cap: Texts | None = None
    exclude_benchmarks: Texts | None = None
    batch_rows: Count | None = None
    validation_rows: Count | None = None

    def problems(self) -> Iterator[str]:
        """The size of a batch is said once."""
        if self.batch_rows is not None and self.batch_tokens is not None:
            yield "has both batch_rows and batch_tokens; give one of them"


class EvaluateStage(PlannedStage):
    """`stage: evaluate`; each of the models to `compare` with may be the name of a stage."""

    makes_model = False

    data: Files | None = None
    suite: Literal["perplexity", "h6", "h4", "bias", "contamination"] | None = None
    tasks: Texts | None = None
    compare: Annotated[tuple[str, ...], BeforeValidator(_list), Field(min_length=1)] | None = None
    reference: Literal["solar"] | None = None
    benchmarks: Texts | None = None
    reference_model: str | None = None
    tokens: Count | None = None
    window: Count | None = None
    stride: Count | None = None
    limit: Count | None = None
    batch_size: Count | None = None
    reduce_shots: bool | None = None
    update_card: bool | None = None
    engine: str | None = None
    device: str | None = None
    dtype: Precision | None = None

    def problems(self) -> Iterator[str]:
        """A perplexity is that of a text."""
        yield from super().problems()
        if self.data is None and (self.suite == "perplexity" or (self.suite is None and self.tasks is None)):
            yield "needs data: the text whose perplexity is measured"


class ExportStage(Stage):
    """`stage: export`."""

    quantize: Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"] | None = None
    ollama: bool | None = None


class GenerateStage(PlannedStage):
    """`stage: generate`."""

    makes_model = False

    prompt: Annotated[str, Field(min_length=1)]
    engine: str | None = None
    system: str | None = None
    max_new_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    seed: Seed | None = None
    greedy: bool | None = None
    raw: bool | None = None
    trim: Literal["oldest"] | None = None
    context: Count | None = None
    quantize: str | None = None
    draft: str | None = None
    device: str | None = None
    dtype: Precision | None = None


STAGES: dict[str, type[Stage]] = {
    "explore": ExploreStage,
    "scale": ScaleStage,
    "merge": MergeStage,
    "pretrain": PretrainStage,
    "instruct": InstructStage,
    "align": AlignStage,
    "evaluate": EvaluateStage,
    "export": ExportStage,
    "generate": GenerateStage,
}
