"""How likely a transformers model finds tokens: per token for judging, summed for training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepen.data.text import IGNORED
from deepen.errors import OptionError

_CHUNK = 256  # positions whose log-softmax is taken at once


@torch.no_grad()
def window_losses(model: Any, windows: Tensor) -> Tensor:
    """Negative log-likelihood of each token of each window after the ones before it in that window.

    Windows run through the model one by one, and the log-softmax is taken in float32 over a few positions at a time, so that
    memory is bounded by the logits of one window.

    Args:
        model: a transformers causal language model; its training mode is left as it was.
        windows: token ids, shape (windows, length).

    Returns:
        Nats, float32 on the CPU, shape (windows, length - 1): entry [w, t] is of token t + 1. The first token is given.
    """
    training = model.training
    model.eval()
    losses = torch.empty(windows.shape[0], windows.shape[1] - 1)
    for row, window in zip(losses, windows, strict=True):
        tokens = window.to(model.device)
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        targets = tokens[1:].long()
        for start in range(0, len(targets), _CHUNK):
            part = slice(start, start + _CHUNK)
            row[part] = functional.cross_entropy(logits[part].float(), targets[part], reduction="none")
    model.train(training)
    return losses


def summed_loss(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of all labelled tokens together, to be divided by however many a whole batch has.

    Args:
        model: a transformers causal language model.
        tokens: ids, shape (rows, length).
        labels: shape (rows, length): `labels[r, t]` is the token that the model shall predict at t, that is token t + 1; or
            -100 where nothing is learned.

    Returns:
        Nats, a float32 scalar with a gradient.
    """
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


@torch.no_grad()
def mean_label_loss(model: Any, rows: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Negative log-likelihood per labelled token over many rows, which run through the model one by one.

    Args:
        model: a transformers causal language model; its training mode is left as it was.
        rows: tokens and labels as `summed_loss` takes them, each of shape (length,).

    Returns:
        Nats per labelled token.
    """
    training = model.training
    model.eval()
    total, terms = 0.0, 0
    for tokens, labels in rows:
        total += summed_loss(model, tokens[None].to(model.device), labels[None].to(model.device)).item()
        terms += int((labels != IGNORED).sum())
    model.train(training)
    return total / terms


def next_tokens(tokens: Tensor) -> Tensor:
    """Labels for learning every token from those before it: each row moved left by one, its last place ignored."""
    labels = torch.full_like(tokens, IGNORED)
    labels[:, :-1] = tokens[:, 1:]
    return labels


def check_context(model: Any, length: int, option: str) -> None:
    """Refuse windows that are longer than the model's positions reach.

    Raises:
        OptionError: `length` is less than 2, or more than the model holds; the message names `option`.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", length)
    if not 2 <= length <= longest:
        raise OptionError(
            f"the model takes 2 to {longest} tokens at once, not {length}", where=option, next="choose another length"
        )
