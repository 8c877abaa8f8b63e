"""The loop by itself: how losses are weighted, what the optimizer does, and when it must not move."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepen.data.text import IGNORED
from deepen.errors import UserError
from deepen.likelihood import next_tokens
from deepen.train.loop import Batch, Learner, Run, train
from deepen.train.sequences import token_loss
from deepen.train.state import begin
from trainable import write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path / "model")


def load(checkpoint: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint)


def fit(
    model: Any,
    folder: Path,
    batches: Callable[[int], list[Batch]],
    *,
    steps: int = 3,
    validate: Callable[[], float] = lambda: 1.0,
    every: int = 100,
    precision: torch.dtype = torch.float32,
) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    begin(folder, {}, resume=True)
    train(
        model,
        batches=batches,
        loss=lambda model, batch: token_loss(model, batch, None),
        learns=[Learner(list(model.parameters()))],
        run=Run(
            folder=folder,
            steps=steps,
            tokens=lambda step: 64 * step,
            rate=lambda step: 1e-3 * (step + 1),
            validate=lambda: {"validation_loss": validate()},
            every=every,
            save_every=100,
            seed=0,
            precision=precision,
            device=torch.device("cpu"),
        ),
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def unequal_rows(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows of which 15, 8, 3 and 0 places are labelled."""
    tokens = torch.randint(1, 257, (4, 16), generator=torch.Generator().manual_seed(step))
    labels = next_tokens(tokens)
    for row, kept in enumerate((15, 8, 3, 0)):
        labels[row, kept:] = IGNORED
    return tokens, labels


def split(step: int, rows: int) -> list[Batch]:
    tokens, labels = unequal_rows(step)
    parts = zip(tokens.split(rows), labels.split(rows), strict=True)
    return [Batch(part, label, None, int((label != IGNORED).sum())) for part, label in parts]


def test_accumulated_micro_batches_are_one_batch(checkpoint: Path, tmp_path: Path) -> None:
    runs = {}
    for rows in (4, 2, 1):
        model = load(checkpoint)
        steps = [row for row in fit(model, tmp_path / str(rows), lambda step, rows=rows: split(step, rows)) if "loss" in row]
        runs[rows] = [(row["loss"], row["gradient_norm"]) for row in steps]
    np.testing.assert_allclose(runs[2], runs[4], rtol=1e-5)
    np.testing.assert_allclose(runs[1], runs[4], rtol=1e-5)


def test_the_steps_are_those_of_a_bare_loop(checkpoint: Path, tmp_path: Path) -> None:
    """The same written out in plain PyTorch: mean loss, clip to 1, AdamW with betas 0.9 and 0.95 and no decay."""
    model, reference = load(checkpoint), load(checkpoint)
    rows = [row for row in fit(model, tmp_path / "run", lambda step: split(step, 2)) if "loss" in row]
    optimizer = torch.optim.AdamW(reference.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        tokens, labels = unequal_rows(step)
        logits = reference(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        optimizer.step()
        optimizer.zero_grad()
        assert rows[step]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert rows[step]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert rows[step]["learning_rate"] == pytest.approx(1e-3 * (step + 1))
    for trained, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_metrics(checkpoint: Path, tmp_path: Path) -> None:
    losses = iter([3.0, 2.0, 1.0])
    rows = fit(load(checkpoint), tmp_path / "run", lambda step: split(step, 4), validate=lambda: next(losses), every=2)
    measured = [row for row in rows if "validation_loss" in row]
    assert [(row["step"], row["tokens"], row["validation_loss"]) for row in measured] == [
        (0, 0, 3.0),
        (2, 128, 2.0),
        (3, 192, 1.0),
    ]
    steps = [row for row in rows if "loss" in row]
    assert [(row["step"], row["tokens"]) for row in steps] == [(1, 64), (2, 128), (3, 192)]
    for row in steps:
        assert list(row) == [
            "step", "tokens", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "seconds", "energy_joules",
        ]  # fmt: skip
        assert row["tokens_per_second"] == pytest.approx(64 / row["seconds"], rel=0.05)
        assert row["energy_joules"] is None


def test_tied_embeddings_stay_tied(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    fit(model, tmp_path / "run", lambda step: split(step, 4))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_bfloat16_multiplies_in_bfloat16_and_keeps_weights_in_float32(checkpoint: Path, tmp_path: Path) -> None:
    first = {}
    for precision in (torch.float32, torch.bfloat16):
        model = load(checkpoint)
        rows = fit(model, tmp_path / str(precision), lambda step: split(step, 4), steps=1, precision=precision)
        first[precision] = rows[1]["loss"]
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert first[torch.bfloat16] != first[torch.float32]
    assert first[torch.bfloat16] == pytest.approx(first[torch.float32], rel=1e-2)


def test_dropout_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = write_checkpoint(tmp_path / "model", attention_dropout=0.5)
    losses = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        rows = fit(load(checkpoint), tmp_path / f"run{noise}", lambda step: split(0, 4))
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("poisoned", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimizer(
    checkpoint: Path, tmp_path: Path, poisoned: str
) -> None:
    model = load(checkpoint)
    snapshots = []

    def batches(step: int) -> list[Batch]:
        snapshots.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        if step == 2 and poisoned == "loss":
            with torch.no_grad():
                model.model.norm.weight[0] = torch.nan
            snapshots[-1]["model.norm.weight"][0] = torch.nan
        if step == 2 and poisoned == "gradient":
            model.model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
        return split(step, 4)

    with pytest.raises(UserError, match=rf"the {poisoned} is not finite \((nan|inf)\) after 2 of 5 steps"):
        fit(model, tmp_path / "run", batches, steps=5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, snapshots[2][name], rtol=0, atol=0, equal_nan=True)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(rows.splitlines()[-1])["step"] == 2
    assert "NaN" not in rows


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_that_is_not_finite_stops(checkpoint: Path, tmp_path: Path, loss: float) -> None:
    with pytest.raises(UserError, match=r"the validation .* is not finite"):
        fit(load(checkpoint), tmp_path / "run", lambda step: split(step, 4), validate=lambda: loss)
