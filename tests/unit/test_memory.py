"""What a run is said to take is what torch keeps and what the process grows by, and a refusal names what would fit."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from deepen.checkpoint import open_checkpoint
from deepen.errors import ResourceError
from deepen.host import host_memory
from deepen.plan.memory import Setup, training_bytes
from deepen.train.memory import check_memory, free_bytes
from families import make_checkpoint
from trainable import write_checkpoint, write_text

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # in peft

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "six", **SIZES)


def kept_bytes(model: Any, setup: Setup) -> int:
    """The bytes that torch keeps for the backward pass of the model without its head; weights and their copies not counted."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    shapes = {tuple(weight.shape) for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        is_copy = (
            tensor.dtype == torch.bfloat16 and {tuple(tensor.shape), tuple(tensor.t().shape)} & shapes
            if tensor.dim() == 2
            else False
        )
        if tensor.untyped_storage().data_ptr() not in weights and not is_copy:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(setup.micro_batch, setup.sequence_length, dtype=torch.long)
    positions = {}
    if setup.packed:
        half = torch.arange(setup.sequence_length // 2).repeat(setup.micro_batch, 2)
        positions = {"position_ids": half}
    if setup.activation_checkpointing:
        model.activation_checkpointing_enable()
    model.get_output_embeddings().forward = lambda hidden: hidden
    autocast = torch.autocast("cpu", torch.bfloat16) if setup.precision == "bfloat16" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.train()(input_ids=tokens, use_cache=False, **positions)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("train", ["all", "repeated", "lora"])
@pytest.mark.parametrize("shape", [{}, {"packed": True}, {"micro_batch": 4}])
def test_activations_are_what_torch_keeps(folder: Path, precision: str, train: str, shape: dict[str, Any]) -> None:
    setup = Setup(sequence_length=256, train=train, repeated=(3, 4), precision=precision, **shape)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if train == "repeated":
        model.requires_grad_(False)
        for place in setup.repeated:
            model.model.layers[place].requires_grad_(True)
    if train == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    source = open_checkpoint(folder)
    said = training_bytes(source, setup)["activations"]
    least = training_bytes(source, replace(setup, activation_checkpointing=True))["activations"]
    kept = kept_bytes(model, setup)
    # besides what is kept it counts what one of the layers holds while its gradients are made
    assert kept <= said * 1.05
    assert said <= kept * 1.05 + least


def test_checkpointed_activations_are_the_layers_inputs_and_one_layer(folder: Path) -> None:
    setup = Setup(sequence_length=256)
    model = AutoModelForCausalLM.from_pretrained(folder)
    one_layer = kept_bytes(model, setup) / 6
    few = replace(setup, activation_checkpointing=True)
    kept = kept_bytes(AutoModelForCausalLM.from_pretrained(folder), few)
    assert (
        kept + one_layer <= training_bytes(open_checkpoint(folder), few)["activations"] * 1.05 <= 1.2 * kept + 2.2 * one_layer
    )


def test_weights_gradients_and_moments(folder: Path) -> None:
    source, model = open_checkpoint(folder), AutoModelForCausalLM.from_pretrained(folder)
    whole = sum(weight.numel() for weight in model.parameters())
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())

    def said(**options: Any) -> int:
        return training_bytes(source, Setup(8, **options))["weights, gradients, optimizer"]

    assert said() == 16 * whole
    assert said(train="repeated", repeated=(1, 4)) == 16 * 2 * layer + 4 * (whole - 2 * layer)
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    adapters = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert said(train="lora") == 16 * adapters + 4 * whole
    assert said(ranks=4) == 4 * whole
    assert said(train="lora", ranks=4) == said(train="lora")
    assert said(ranks=4, neighbours=2) == 8 * whole
    parts = training_bytes(source, Setup(256, accumulates=False))
    assert parts["weights, gradients, optimizer"] == 12 * whole
    assert said(accumulates=False) + said_rest(source) == 16 * whole  # gradients outweigh what few activations there are


def said_rest(source: Any) -> int:
    parts = training_bytes(source, Setup(8))
    return sum(value for name, value in parts.items() if name != "weights, gradients, optimizer")


def test_a_teacher_is_counted(folder: Path, tmp_path: Path) -> None:
    source = open_checkpoint(folder)
    parts = training_bytes(source, Setup(8, teacher=source))
    weights = sum(tensor.parameters for tensor in source.tensors.values())
    assert 4 * weights < parts["teacher"] < 5 * weights
    assert {name: size for name, size in parts.items() if name != "teacher"} == training_bytes(source, Setup(8))


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2", "mixtral", "qwen3"])
def test_every_family_has_an_estimate(family: str, tmp_path: Path) -> None:
    source = open_checkpoint(make_checkpoint(family, tmp_path / family))
    for precision in ("float32", "bfloat16"):
        parts = training_bytes(source, Setup(64, ranks=2, precision=precision))
        assert all(value > 0 for value in parts.values())


def test_what_fits_is_not_refused(folder: Path) -> None:
    source, setup = open_checkpoint(folder), Setup(256)
    needed = sum(training_bytes(source, setup).values())
    check_memory(source, setup, device="cpu", free=needed)
    with pytest.raises(ResourceError, match=r"needs about .* are free on cpu"):
        check_memory(source, setup, device="cpu", free=needed - 1)


@pytest.mark.parametrize("free_share", [0.9, 0.7, 0.5, 0.3, 0.2])
@pytest.mark.parametrize("repeated", [(), (3, 4)])
def test_what_is_proposed_fits(folder: Path, free_share: float, repeated: tuple[int, ...]) -> None:
    source, setup = open_checkpoint(folder), Setup(256, micro_batch=4, repeated=repeated)
    free = int(free_share * sum(training_bytes(source, setup).values()))
    with pytest.raises(ResourceError) as caught:
        check_memory(source, setup, device="cpu", free=free)
    assert caught.value.where == str(folder)
    proposals = (caught.value.next or "").split("), or ")
    assert 1 <= len(proposals) <= 3
    for proposal in proposals:
        changes: dict[str, Any] = {"activation_checkpointing": "--activation-checkpointing" in proposal}
        for name, pattern in (("micro_batch", r"--micro-batch (\d+)"), ("ranks", r"(\d+) processes")):
            if match := re.search(pattern, proposal):
                changes[name] = int(match[1])
        if match := re.search(r"--train (\w+)", proposal):
            changes["train"] = match[1]
        assert sum(training_bytes(source, replace(setup, **changes)).values()) <= free
        assert repeated or changes.get("train") != "repeated"


def test_the_nearest_comes_first(folder: Path) -> None:
    source, setup = open_checkpoint(folder), Setup(256, micro_batch=4, repeated=(5,))
    for share, first in ((0.95, "--activation-checkpointing ("), (0.25, "--activation-checkpointing and --micro-batch 1 (")):
        free = int(share * sum(training_bytes(source, setup).values()))
        with pytest.raises(ResourceError) as caught:
            check_memory(source, setup, device="cpu", free=free)
        assert str(caught.value.next).startswith(first)


def test_nothing_fits_into_nothing(folder: Path) -> None:
    with pytest.raises(ResourceError, match="take a smaller model"):
        check_memory(open_checkpoint(folder), Setup(256), device="cpu", free=0)


def test_free_memory_is_that_of_the_host() -> None:
    assert free_bytes("cpu") == pytest.approx(host_memory().available, rel=0.2)


MEASURED = """
import json, sys
from pathlib import Path
from deepen.train.pretrain import pretrain

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

options = json.loads(sys.argv[1])
small = options.pop("small")
pretrain(small, Path(small).with_name("warm"), data=options["data"], tokens=16, sequence_length=8, batch_tokens=8, device="cpu")
before = status("VmRSS")
pretrain(**options)
print(status("VmHWM") - before)
"""


def test_a_run_takes_what_was_said(tmp_path: Path) -> None:
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 16}
    model = write_checkpoint(tmp_path / "model", **SIZES | sizes)
    options = {
        "small": str(write_checkpoint(tmp_path / "small")),
        "model": str(model),
        "out": str(tmp_path / "out"),
        "data": str(write_text(tmp_path / "text.txt", 6_000)),
        "tokens": 2048,
        "sequence_length": 512,
        "batch_tokens": 1024,
        "validation_tokens": 512,
        "device": "cpu",
        "precision": "float32",
    }
    answer = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ).stdout
    said = sum(training_bytes(open_checkpoint(model), Setup(512)).values())
    print(said / int(answer), training_bytes(open_checkpoint(model), Setup(512)), answer)
    assert said == pytest.approx(int(answer), rel=0.25)
