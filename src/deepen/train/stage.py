"""What the stages of training share: their options, what is checked before the loop, and what is written after it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from deepen.checkpoint import Checkpoint, resolve
from deepen.checkpoint.folder import weights_hash
from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest
from deepen.energy import Meter, carbon_grams, open_meter
from deepen.errors import OptionError
from deepen.likelihood import Teacher
from deepen.model import load
from deepen.output import check_disk, check_target
from deepen.plan.memory import Setup
from deepen.train import learns, ranks
from deepen.train.account import Account, Rows, perplexity_account
from deepen.train.finish import finish
from deepen.train.loop import AnyBatch, Learner, Run, train
from deepen.train.memory import check_memory
from deepen.train.metrics import METRICS_FILE, read_rows
from deepen.train.network import (
    PRECISIONS,
    Words,
    choose_precision,
    load_network,
    open_trainable,
    release,
    speed_up,
    write_checkpoint,
)
from deepen.train.options import FREE, Shared
from deepen.train.schedule import learning_rate, warmup_steps
from deepen.train.state import begin, discard_state, noted_settings, saved_step


@dataclass(frozen=True)
class Place:
    """Where and how a network is trained.

    Attributes:
        folder: the partial output.
        run: `control` for the base that is trained beside; None for the run itself.
        precision: what matrices are multiplied in.
    """

    folder: Path
    run: str | None
    precision: torch.dtype


@dataclass(frozen=True)
class Part(Generic[AnyBatch]):
    """A part of a lesson, with an optimizer and a schedule of its own.

    Attributes:
        batches: this process's micro-batches of a zero-based step.
        validate: measures a network; `validation_loss` and whatever else is to be logged.
        steps: optimizer steps up to its end, those of the parts before included.
        tokens: how many tokens are read before a step.
    """

    batches: Callable[[int], Sequence[AnyBatch]]
    validate: Callable[[Any], Mapping[str, float]]
    steps: int
    tokens: Callable[[int], int]


@dataclass(frozen=True)
class Lesson(Generic[AnyBatch]):
    """What a stage teaches, made before any weight is loaded.

    Attributes:
        loss: the summed loss of a micro-batch and further sums to be logged, with a teacher or without.
        parts: what is learned one after the other; a part may depend on the network, and is asked for when that has learned the
            parts before it.
        steps: optimizer steps in all.
        fingerprints: hashes of the data; a run is only continued with the same.
        length: the most tokens of a row that goes through the model.
        packed: whether rows hold sequences that do not see each other.
        subject: what is measured, a few words.
        curve: name of the picture.
        until_recovered: end when the base's level is reached.
        results: further results for the manifest.
        files: further small files, name to text; they replace the source's of the same name.
        account: tells of a finished run as `perplexity_account` does.
        has_level: whether the base's loss can be compared.
    """

    loss: Callable[[Any, AnyBatch, Teacher | None], tuple[Tensor, Mapping[str, Tensor]]]
    parts: Callable[[Any, Place], Iterable[Part[AnyBatch]]]
    steps: int
    fingerprints: Mapping[str, str]
    length: int
    packed: bool
    subject: str
    curve: str
    until_recovered: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    account: Callable[[str, str, Rows, Rows, float | None], Account] = perplexity_account
    has_level: bool = True


def run_stage(
    verb: str,
    model: str | Path,
    out: str | Path,
    *,
    options: Mapping[str, Any],
    shared: Shared,
    prepare: Callable[[Words, torch.device], Lesson[AnyBatch]],
) -> Path:
    """Run a stage of training from its options to the written checkpoint, in one process or in many.

    Args:
        verb: the stage.
        model: what is trained: a checkpoint folder or a Hub id.
        out: the new folder.
        options: the stage's own options, as plain values.
        shared: the shared ones, settled.
        prepare: makes the lesson; it may read data, and is called before any weight is loaded.

    Returns:
        The folder.

    Raises:
        DeepenError: what the stages list.
    """
    start = time.monotonic()
    out = check_target(out, overwrite=shared["overwrite"])
    device = ranks.device_of_rank(shared["device"])
    ranks.join(device)
    source = open_trainable(resolve(model))
    plan = _plan_of(source.path)
    learns.check_added(plan, train=shared["train"], new_rate=shared["new_layer_learning_rate"])
    base = _find_base(source.path, shared, needed=shared["control"])
    teacher = None if shared["teacher"] is None else open_trainable(resolve(shared["teacher"]))
    check_disk(out, disk_bytes(source, states=1 + shared["keep"]))
    words = Words(source)
    if teacher is not None:
        _check_teacher(words, Words(teacher), teacher)
    lesson = prepare(words, torch.device(device))
    warmup_steps(shared["warmup"], lesson.steps)  # refused before anything is begun, as is what follows
    carbon_grams(None, shared["grid_factor"])
    check_memory(source, _setup(lesson, shared, plan, teacher, device), device=device)
    recorded = {**options, **{key: _plain(value) for key, value in shared.items() if key not in FREE}}
    with ranks.output_folder(out, overwrite=shared["overwrite"]) as folder:
        precision = ranks.first(lambda: _precision(folder, shared, device))
        fingerprints = {"model": weights_hash(source), **lesson.fingerprints}
        settings = {**recorded, "precision": precision, **fingerprints}
        if ranks.first(lambda: begin(folder, settings, resume=shared["resume"])):
            return out
        with open_meter(gpus=None if device.startswith("cuda") else (), local_rank=ranks.local_rank()) as meter:
            trainer = _Trainer(lesson, shared, folder, device, precision, teacher, meter)
            level = trainer.control(base) if shared["control"] and base else trainer.level(base) if lesson.has_level else None
            network, learned = trainer.run(source, plan, level)
        write_checkpoint(folder, network, source)
        del network
        release(device)
        if ranks.rank() == 0:
            facts = {
                "verb": verb,
                "options": recorded,
                "source": {"model": str(model), "format": "safetensors", "weights_sha256": fingerprints["model"]},
                "settings": settings,
            }
            energy = {"energy_method": meter.method, "grid_factor": shared["grid_factor"]}
            finish(folder, source, facts, lesson, level=level, learned=learned, plan=plan, start=start, energy=energy)
    return out


class _Trainer(Generic[AnyBatch]):
    """The lesson with everything around it, for the model and for its control."""

    def __init__(
        self,
        lesson: Lesson[AnyBatch],
        shared: Shared,
        folder: Path,
        device: str,
        precision: str,
        teacher: Checkpoint | None,
        meter: Meter,
    ) -> None:
        self.lesson, self.shared, self.folder, self.device, self.precision = lesson, shared, folder, device, precision
        self._teacher, self._meter = teacher, meter

    def run(self, source: Checkpoint, plan: Mapping[str, Any] | None, level: float | None) -> tuple[Any, int]:
        """Train the model; returns it, plain again, and how many of its parameters learned."""
        return self._train(source, self.shared["train"], plan, None, level)

    def control(self, base: Path) -> float:
        """Train the base on the same data, unless that is done; returns its validation loss before the first step."""
        rows = read_rows(self.folder / METRICS_FILE, "control")
        if not any("validation_loss" in row and row["step"] == self.lesson.steps for row in rows):
            what = "lora" if self.shared["train"] == "lora" else "all"
            self._train(open_trainable(base), what, None, "control", None)
            rows = read_rows(self.folder / METRICS_FILE, "control")
            ranks.wait()
            if ranks.rank() == 0:
                discard_state(self.folder, "control")
            release(self.device)
        return float(next(row["validation_loss"] for row in rows if "validation_loss" in row))

    def level(self, base: Path | None) -> float | None:
        """The base's validation loss."""
        if base is None:
            if self.lesson.until_recovered:
                raise OptionError("the base is not known", where="--until-recovered", next="name it with --base")
            return None
        network = (
            self._load(open_trainable(base), "all")
            if not base.is_file()
            else load(base, dtype="float32", device=self.device)[0]
        )
        (part,) = self.lesson.parts(network, self._place(None))
        loss = part.validate(network)["validation_loss"]
        del network
        release(self.device)
        return loss

    def _place(self, name: str | None) -> Place:
        return Place(self.folder, name, PRECISIONS[self.precision])

    def _load(self, source: Checkpoint, what: str) -> Any:
        return load_network(source, self.device, precision=self.precision, sharded=what != "lora")

    def _train(
        self, source: Checkpoint, what: str, plan: Mapping[str, Any] | None, name: str | None, level: float | None
    ) -> tuple[Any, int]:
        lesson, shared = self.lesson, self.shared
        network = self._load(source, what)
        new_rate = shared["new_layer_learning_rate"] if name is None else None
        network, learners = learns.prepare(
            network,
            what,
            plan,
            new_factor=1.0 if new_rate is None else new_rate / shared["learning_rate"],
            rank=shared["lora_rank"],
            seed=shared["seed"],
        )
        speed_up(network, compile=shared["compile"], activation_checkpointing=shared["activation_checkpointing"])
        teacher = self._load_teacher()
        done = 0
        for part in lesson.parts(network, self._place(name)):
            if saved_step(self.folder, name or "run") <= part.steps:
                self._learn(part, network, learners, name, level, done, teacher)
            done = part.steps
        learned = learns.count(learners)
        return learns.merge_adapters(network), learned

    def _learn(
        self,
        part: Part[AnyBatch],
        network: Any,
        learners: Sequence[Learner],
        name: str | None,
        level: float | None,
        done: int,
        teacher: Teacher | None,
    ) -> None:
        shared, steps = self.shared, part.steps - done
        rising = warmup_steps(shared["warmup"], steps)
        enough = level is not None and self.lesson.until_recovered
        train(
            network,
            batches=part.batches,
            loss=lambda network, batch: self.lesson.loss(network, batch, teacher),
            learns=learners,
            run=Run(
                folder=self.folder,
                steps=part.steps,
                tokens=part.tokens,
                rate=lambda step: learning_rate(
                    step - done, peak=shared["learning_rate"], steps=steps, warmup=rising, schedule=shared["schedule"]
                ),
                validate=lambda: part.validate(network),
                enough=lambda measured: enough and measured["validation_loss"] <= (level or 0.0),
                every=shared["every"],
                save_every=shared["save_every"],
                keep=shared["keep"],
                seed=shared["seed"],
                device=torch.device(self.device),
                precision=PRECISIONS[self.precision],
                name=name,
                energy=self._joules,
                begin=done,
                followed=part.steps < self.lesson.steps,
            ),
        )

    def _joules(self) -> float | None:
        """What all processes have used since they began."""
        joules = self._meter.joules()
        (total,) = ranks.totals(math.nan if joules is None else joules, device=torch.device(self.device))
        return None if math.isnan(total) else total

    def _load_teacher(self) -> Teacher | None:
        if self._teacher is None:
            return None
        return Teacher(self._load(self._teacher, "all").eval().requires_grad_(False), self.shared["teacher_share"])


def disk_bytes(source: Checkpoint, *, states: int) -> int:
    """What a trained checkpoint takes on disk, and as many saved states beside it."""
    # a state holds the weights and AdamW's two moments in float32; the last good one lies beside the one being written
    tensors = source.tensors.values()
    return sum(tensor.nbytes + states * 12 * tensor.parameters for tensor in tensors)


def _check_teacher(words: Words, others: Words, teacher: Checkpoint) -> None:
    if words.vocabulary != others.vocabulary or words.tokenizer.get_vocab() != others.tokenizer.get_vocab():
        raise OptionError(
            f"the teacher {teacher.path} has other tokens than the model",
            where="--teacher",
            next="take the model that this one was made from",
        )


def _setup(
    lesson: Lesson[Any], shared: Shared, plan: Mapping[str, Any] | None, teacher: Checkpoint | None, device: str
) -> Setup:
    return Setup(
        sequence_length=lesson.length,
        micro_batch=shared["micro_batch"],
        train=shared["train"],
        repeated=tuple(learns.added_layers(plan)),
        lora_rank=shared["lora_rank"],
        activation_checkpointing=shared["activation_checkpointing"],
        packed=lesson.packed,
        precision="bfloat16" if shared["precision"] == "bfloat16" else "float32",
        ranks=ranks.world_size() // ranks.replicas(),
        neighbours=1 if device.startswith("cuda") else ranks.local_world_size(),
        teacher=teacher,
    )


def _precision(folder: Path, shared: Shared, device: str) -> str:
    """What an interrupted run has measured, or what is measured now."""
    noted: str | None = noted_settings(folder).get("precision") if shared["resume"] else None
    return noted or choose_precision(shared["precision"], device)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _plan_of(folder: Path) -> dict[str, Any] | None:
    plan: dict[str, Any] | None = read_manifest(folder)["plan"] if (folder / MANIFEST_FILE).is_file() else None
    return plan


def _find_base(folder: Path, shared: Shared, *, needed: bool) -> Path | None:
    """The model that a deepened one was made from: what is given, else what the manifests say, if it is still there."""
    if shared["base"] is not None:
        return resolve(shared["base"])
    while (folder / MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        before = Path(str((manifest["source"] or {}).get("model", "")))
        if not before.exists():
            break
        if manifest["verb"] == "scale" and manifest["plan"] and manifest["options"].get("to") is None:
            return before
        folder = before
    if needed:
        raise OptionError("the base is not known, or not there any more", where="--control", next="name it with --base")
    return None
