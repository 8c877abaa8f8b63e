"""Losses, gradients and rewards of a batch of pairs are those that TRL computes with two models and padding."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.data.preference import Pair
from deepen.data.template import Row
from deepen.data.text import IGNORED
from deepen.train.dpo import Objective, log_probabilities, pack_pairs, reward_sums, summed_loss
from trainable import write_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")
    from trl.trainer.dpo_trainer import DataCollatorForPreference

BETA = 0.3
LENGTHS = ((9, 4, 17), (5, 30, 3), (12, 8, 8), (2, 1, 60))  # tokens of prompt, chosen and rejected answer
REWARDS = {
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "logps/chosen": "chosen_log_probability",
    "logps/rejected": "rejected_log_probability",
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def reference(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy, moved a little at random, as training would."""
    folder = tmp_path_factory.mktemp("reference")
    network = AutoModelForCausalLM.from_pretrained(policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return folder


def examples() -> list[dict[str, list[int]]]:
    drawn = np.random.default_rng(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [
        {name: drawn.integers(1, 257, length).tolist() for name, length in zip(names, lengths, strict=True)}
        for lengths in LENGTHS
    ]


def pair(example: dict[str, list[int]]) -> Pair:
    rows = []
    for answer in (example["chosen_ids"], example["rejected_ids"]):
        tokens = np.array(example["prompt_ids"] + answer, dtype=np.int32)
        labels = np.append(tokens[1:], np.int32(IGNORED))
        labels[: len(example["prompt_ids"]) - 1] = IGNORED
        rows.append(Row(tokens, labels, "here"))
    return Pair(*rows)


def by_trl(policy: Path, reference: Path, some: list[dict[str, list[int]]], folder: Path, **config: Any) -> Any:
    """Loss, gradients and logged rewards as `DPOTrainer` computes them for one batch."""
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(policy),
            ref_model=AutoModelForCausalLM.from_pretrained(reference),
            args=trl.DPOConfig(
                output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
                beta=BETA, max_length=None, **config,
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=AutoTokenizer.from_pretrained(policy, pad_token="<end>"),
        )  # fmt: skip
        trainer.model.train()
        batch = DataCollatorForPreference(pad_token_id=0)(some)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    logged = {ours: trainer._metrics["train"][theirs][-1] for theirs, ours in REWARDS.items()}
    return loss.item(), {name: value.grad for name, value in trainer.model.named_parameters()}, logged


def by_deepen(policy: Path, reference: Path, some: list[dict[str, list[int]]], **options: Any) -> Any:
    pairs = [pair(example) for example in some]
    network = AutoModelForCausalLM.from_pretrained(policy)
    unknown = torch.zeros(len(pairs), 2)
    with torch.no_grad():
        before = log_probabilities(AutoModelForCausalLM.from_pretrained(reference), pack_pairs(pairs, unknown, network.device))
    batch = pack_pairs(pairs, before, network.device)
    loss, sums = summed_loss(network, batch, Objective(beta=BETA, **options))
    (loss / batch.terms).backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    return loss.item() / batch.terms, gradients, {name: value.item() / batch.terms for name, value in sums.items()}


@pytest.mark.parametrize(
    ("count", "config", "options"),
    [
        (4, {"loss_type": ["sigmoid"]}, {"loss": "sigmoid"}),
        (4, {"loss_type": ["ipo"]}, {"loss": "ipo"}),
        # TRL's label smoothing is that of a loss which sorts the pairs of a batch; of one pair there is nothing to sort
        (1, {"loss_type": ["aot"], "label_smoothing": 0.2}, {"loss": "sigmoid", "label_smoothing": 0.2}),
        # TRL's term is a mean over the tokens of the batch; with one pair that is the mean over its answer
        (1, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}, {"loss": "sigmoid", "sft_weight": 0.7}),
        (1, {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.7]}, {"loss": "ipo", "sft_weight": 0.7}),
    ],
)
def test_a_batch_of_pairs_is_what_trl_computes(
    policy: Path, reference: Path, tmp_path: Path, count: int, config: dict[str, Any], options: dict[str, Any]
) -> None:
    some = examples()[-count:]
    loss, gradients, logged = by_deepen(policy, reference, some, **options)
    expected, theirs, theirs_logged = by_trl(policy, reference, some, tmp_path, **config)
    assert loss == pytest.approx(expected, rel=1e-5)
    # a reward is the difference of two sums of some hundred nats, whose last bits in float32 are 1e-5
    assert logged == pytest.approx(theirs_logged, rel=1e-5, abs=5e-5)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        assert torch.linalg.vector_norm(gradient) > 0
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_reference_matters(policy: Path, reference: Path) -> None:
    """Otherwise the comparison above would say nothing of it."""
    loss, _, logged = by_deepen(policy, policy, examples(), loss="sigmoid")
    assert loss == pytest.approx(np.log(2), rel=1e-6)
    moved, _, moved_logged = by_deepen(policy, reference, examples(), loss="sigmoid")
    assert abs(moved - loss) > 0.01
    assert abs(moved_logged["reward_margin"] - logged["reward_margin"]) > 0.01


def test_packed_pairs_are_separate_passes(policy: Path) -> None:
    """Every answer alone in a pass of its own, its log-softmax in float64."""
    some = examples()
    network = AutoModelForCausalLM.from_pretrained(policy)
    pairs = [pair(example) for example in some]
    packed = log_probabilities(network, pack_pairs(pairs, torch.zeros(len(pairs), 2), network.device))
    for found, example in zip(packed, some, strict=True):
        for value, answer in zip(found, (example["chosen_ids"], example["rejected_ids"]), strict=True):
            tokens = torch.tensor([example["prompt_ids"] + answer])
            with torch.no_grad():
                likely = network(input_ids=tokens).logits[0].double().log_softmax(-1)
            places = range(len(example["prompt_ids"]), tokens.shape[1])
            alone = sum(likely[place - 1, tokens[0, place]].item() for place in places)
            assert value.item() == pytest.approx(alone, rel=1e-5)
    sums = reward_sums(packed, packed, BETA)
    assert sums["chosen_log_probability"].item() == pytest.approx(packed[:, 0].sum().item())
