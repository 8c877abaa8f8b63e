"""Direct preference optimisation: losses as pure functions of tensors, on pairs that are packed without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepen.data.preference import Pair
from deepen.likelihood import token_losses

LOSSES = ("sigmoid", "ipo")


@dataclass(frozen=True)
class Objective:
    """Which loss.

    With h the log-ratio of policy to reference for the chosen answer, less that for the rejected one:

    - `sigmoid`: -log sigmoid(βh) (Rafailov et al. 2023, arXiv:2305.18290, eq. 7). With label smoothing ε, the chance that a
      pair is the wrong way round, (1 - ε) times that and ε times -log sigmoid(-βh) (conservative DPO: Mitchell 2023, "A note on
      DPO with noisy preferences & relationship to IPO").
    - `ipo`: (h' - 1 / 2β)² (Azar et al. 2023, arXiv:2310.12036, eq. 17, where β is called τ). In h' each log-ratio is divided
      by the tokens of its answer, as TRL does after asking the authors: sums would pull the harder the longer an answer is.

    Attributes:
        loss: `sigmoid` or `ipo`.
        beta: β > 0, how closely the policy is held to the reference.
        label_smoothing: 0 ≤ ε < 0.5, of `sigmoid` only.
        sft_weight: how much of the chosen answer's negative log-likelihood per token is added (Pang et al. 2024, Iterative
            Reasoning Preference Optimization, arXiv:2404.19733, section 2). It is a mean over the answer's tokens and not over
            those of the batch, so that every pair weighs the same however long its answers are.
    """

    loss: str
    beta: float
    label_smoothing: float = 0.0
    sft_weight: float = 0.0


@dataclass(frozen=True)
class PairBatch:
    """Pairs that go through the model at once: their rows one behind the other in one row, each chosen one before its rejected.

    Attributes:
        tokens: ids, shape (1, length).
        labels: the token to be predicted at each place, shape (1, length), or -100 where nothing is learned.
        positions: shape (1, length); they begin at 0 with each row, by which the model keeps the rows apart.
        lengths: of the rows, two per pair.
        learned: how many tokens each answer has, shape (pairs, 2).
        reference: log-probability of each answer under the reference, shape (pairs, 2).
        counts: whether the pairs count; they do not in a batch that only lets a process keep up with the others.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    learned: Tensor
    reference: Tensor
    counts: bool

    @property
    def terms(self) -> int:
        """How many terms the loss is a sum of: the pairs that count."""
        return len(self.reference) if self.counts else 0


def pack_pairs(pairs: Sequence[Pair], reference: Tensor, device: torch.device, *, counts: bool = True) -> PairBatch:
    """Pairs as one batch.

    Args:
        pairs: at least one.
        reference: log-probability of each answer under the reference, shape (pairs, 2).
        device: where the model is.
        counts: whether they count.
    """
    rows = [row for pair in pairs for row in pair.rows]
    tokens, labels = (
        torch.cat([torch.from_numpy(each).long() for each in column])[None].to(device)
        for column in ([row.tokens for row in rows], [row.labels for row in rows])
    )
    positions = torch.cat([torch.arange(len(row.tokens)) for row in rows])[None].to(device)
    learned = torch.tensor([[row.terms for row in pair.rows] for pair in pairs], dtype=torch.float32, device=device)
    lengths = tuple(len(row.tokens) for row in rows)
    return PairBatch(tokens, labels, positions, lengths, learned, reference.to(device), counts)


def log_probabilities(model: Any, batch: PairBatch) -> Tensor:
    """Log-probability of each answer after its prompt, in nats: a float32 tensor of shape (pairs, 2) with a gradient."""
    losses = token_losses(model, batch.tokens, batch.labels, batch.positions)[0]
    return -torch.stack([answer.sum() for answer in torch.split(losses, list(batch.lengths))]).view(-1, 2)


def preference_losses(policy: Tensor, reference: Tensor, learned: Tensor, objective: Objective) -> Tensor:
    """The loss of each pair; formulas and sources stand at `Objective`.

    Args:
        policy: log-probability of each chosen and rejected answer, shape (pairs, 2).
        reference: the same under the reference.
        learned: how many tokens each answer has, shape (pairs, 2).
        objective: which loss.

    Returns:
        Shape (pairs,).
    """
    beta, smoothing = objective.beta, objective.label_smoothing
    ratios = policy - reference
    if objective.loss == "ipo":
        chosen, rejected = (ratios / learned).unbind(1)
        losses = (chosen - rejected - 1 / (2 * beta)).square()
    else:
        chosen, rejected = ratios.unbind(1)
        margin = beta * (chosen - rejected)
        losses = -(1 - smoothing) * functional.logsigmoid(margin) - smoothing * functional.logsigmoid(-margin)
    return losses - objective.sft_weight * policy[:, 0] / learned[:, 0]


def reward_sums(policy: Tensor, reference: Tensor, beta: float) -> dict[str, Tensor]:
    """What is logged beside the loss, summed over the pairs.

    Args:
        policy: log-probability of each chosen and rejected answer, shape (pairs, 2).
        reference: the same under the reference.
        beta: of the loss.

    Returns:
        The reward that the policy implies for an answer is β log(π / π_ref) (arXiv:2305.18290, section 4). For each of
        `reward_accuracy` (1 for a pair whose chosen answer has the higher reward), `reward_margin` (chosen less rejected),
        `chosen_reward`, `rejected_reward`, `chosen_log_probability` and `rejected_log_probability`, a scalar without gradient.
    """
    chosen, rejected = (beta * (policy - reference).detach()).unbind(1)
    log_chosen, log_rejected = policy.detach().unbind(1)
    return {
        "reward_accuracy": (chosen > rejected).sum(),
        "reward_margin": (chosen - rejected).sum(),
        "chosen_reward": chosen.sum(),
        "rejected_reward": rejected.sum(),
        "chosen_log_probability": log_chosen.sum(),
        "rejected_log_probability": log_rejected.sum(),
    }


def summed_loss(model: Any, batch: PairBatch, objective: Objective) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The loss of a batch summed over its pairs, and the sums of `reward_sums`; zeros where the pairs do not count.

    Args:
        model: a transformers causal language model.
        batch: pairs with the log-probabilities of the reference.
        objective: which loss.
    """
    policy = log_probabilities(model, batch)
    losses = preference_losses(policy, batch.reference, batch.learned, objective)
    sums = reward_sums(policy, batch.reference, objective.beta)
    return losses.sum() * batch.counts, {name: value * batch.counts for name, value in sums.items()}
