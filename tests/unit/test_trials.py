"""Healing trials against a plain loop of torch; what is kept is not done again."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import deepen
from deepen.data.text import encoder, pack, read_tokens, rows_of_step
from deepen.errors import DataError, OptionError
from deepen.explore.results import Candidate
from deepen.explore.trials import STARTS, heal_trials, with_drop
from deepen.plan import parse_plan
from deepen.train.sequences import sequence
from trainable import write_checkpoint, write_text

STEPS, BATCH, RATE, SEED = 6, 2, 3e-3, 5
PLANS = ({"repeat": "1:3"}, {"repeat": "2:4"})


def candidate(options, layers=4):
    return Candidate(options, parse_plan(layers, **options).layers)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base") / "model", num_hidden_layers=4)


@pytest.fixture(scope="module")
def rows(base, tmp_path_factory):
    """Rows to learn and rows to measure on."""
    text = write_text(tmp_path_factory.mktemp("text") / "words.txt", 900)
    tokens = pack(read_tokens([text], encoder(AutoTokenizer.from_pretrained(base)), end_of_text=0), 64, where=text)
    labels = np.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:]
    whole = [sequence(*row) for row in zip(tokens, labels, strict=True)]
    return whole[:-6], whole[-6:]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "trials"


def race(base, rows, folder, plans=PLANS, **options):
    learned, held_out = rows
    settings = {"steps": STEPS, "batch_rows": BATCH, "learning_rate": RATE, "seed": SEED, "device": "cpu"} | options
    return heal_trials(base, [candidate(each) for each in plans], rows=learned, held_out=held_out, folder=folder, **settings)


@pytest.fixture(scope="module")
def trials(base, rows, kept):
    return race(base, rows, kept)


def plain_loop(folder, rows):
    """The held-out loss after the same training, by torch alone: AdamW, clipping, a cosine after a step of warm-up."""
    learned, held_out = rows
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(STEPS):
        chosen = [learned[row].tokens for row in rows_of_step(step, rows=len(learned), batch=BATCH, seed=SEED)]
        tokens = torch.cat(chosen)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = RATE if step < 1 else RATE * 0.5 * (1 + math.cos(math.pi * (step - 1) / (STEPS - 1)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    tokens = torch.cat([row.tokens for row in held_out])
    with torch.no_grad():
        return model(input_ids=tokens, labels=tokens).loss.item()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("options", PLANS, ids=str)
def test_a_trial_is_a_plain_training_of_the_written_model(trials, rows, base, tmp_path, options, start) -> None:
    written = deepen.scale(base, tmp_path / "deep", **options, identity_init=start == "identity")
    (trial,) = (each for each in trials.trials if each.candidate == candidate(options) and each.start == start)
    assert trial.loss.value == pytest.approx(plain_loop(written, rows), abs=2e-5)
    assert trial.curve[-1] == (STEPS * BATCH * 64, pytest.approx(trial.loss.value))


def test_the_control_is_the_base_on_the_same_tokens(trials, rows, base) -> None:
    assert trials.control.loss.value == pytest.approx(plain_loop(base, rows), abs=2e-5)
    assert trials.control.difference.value == trials.control.difference.low == trials.control.difference.high == 0
    assert trials.tokens == STEPS * BATCH * 64


def test_an_identity_start_begins_where_the_base_does(trials) -> None:
    begins = {each.curve[0][1] for each in trials.trials if each.start == "identity"}
    assert all(begin == pytest.approx(trials.control.curve[0][1], abs=1e-5) for begin in begins)
    copies = {round(each.curve[0][1], 4) for each in trials.trials if each.start == "copies"}
    assert round(trials.control.curve[0][1], 4) not in copies


def test_the_order_is_where_they_end_and_drop_is_in_the_race(trials) -> None:
    losses = [each.loss.value for each in trials.trials]
    assert losses == sorted(losses)
    assert [each.rank for each in trials.trials] == sorted(each.rank for each in trials.trials)
    assert trials.trials[0].rank == 1
    # `--drop 1` of four layers is 0:3,1:4, which is to repeat 1:3
    assert len(trials.trials) == 2 * len(PLANS)
    for trial in trials.trials:
        assert trial.loss.low <= trial.loss.value <= trial.loss.high
        assert trial.difference.value == pytest.approx(trial.loss.value - trials.control.loss.value)
    healed = trials.of(candidate(PLANS[0]))
    assert {each["start"] for each in healed} == set(STARTS)
    json.dumps(healed)


def test_a_paired_difference_is_surer_than_either_loss(trials) -> None:
    for trial in trials.trials:
        assert trial.difference.high - trial.difference.low < trial.loss.high - trial.loss.low


def test_what_is_kept_is_not_done_again(base, rows, trials, kept, capfd) -> None:
    capfd.readouterr()
    files = sorted(kept.iterdir())
    assert [file.suffix for file in files] == [".json"] * 5
    assert race(base, rows, kept) == trials
    assert "trial" not in capfd.readouterr().err
    lost = files[2].read_bytes()
    files[2].unlink()
    assert race(base, rows, kept) == trials
    assert files[2].read_bytes() == lost
    assert capfd.readouterr().err.count("healing trial") == 1


def test_another_seed_is_another_race(base, rows, trials, kept, tmp_path) -> None:
    folder = shutil.copytree(kept, tmp_path / "trials")
    other = race(base, rows, folder, plans=PLANS[:1], seed=SEED + 1, steps=2)
    assert other.control.loss != trials.control.loss
    assert len(list(folder.glob("*.json"))) == 5 + 3


def test_drop_of_every_size_runs_beside() -> None:
    finalists = [candidate({"repeat": "2:6"}, 8), candidate({"repeat": "1:4"}, 8), candidate({"repeat": "0:6"}, 8)]
    assert [dict(each.options) for each in with_drop(finalists, 8)[3:]] == [{"drop": 1}]
    # 2:6 repeated is `--drop 2` by another name, and there is none of eleven layers
    assert with_drop(finalists, 8)[3].layers == (*range(7), *range(1, 8))


def test_too_little_is_said(base, rows, tmp_path) -> None:
    with pytest.raises(OptionError, match="0 steps heal nothing"):
        race(base, rows, tmp_path, steps=0)
    with pytest.raises(DataError, match="1 to measure on"):
        race(base, (rows[0], rows[1][:1]), tmp_path)
