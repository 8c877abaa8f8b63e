"""How likely a transformers model finds tokens: per token, for judging and for training, without the logits of a whole batch.

Shapes: `rows` sequences of `length` tokens, `hidden` features, `vocabulary` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from deepen.data.text import IGNORED
from deepen.errors import OptionError
from deepen.plan.memory import CPU_LOGITS, GPU_LOGITS

_plain_heads: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Teacher:
    """A frozen model whose distribution over the next token is learned besides the token itself.

    Attributes:
        model: a transformers causal language model with the same vocabulary, in evaluation mode.
        share: of its part in the loss, from 0 to 1.
    """

    model: Any
    share: float


def token_losses(model: Any, tokens: Tensor, labels: Tensor, positions: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of the label at each place, differentiable.

    The output head and the log-softmax run over a few labelled places at a time, and only over those. A model that changes
    its logits after the head (soft caps, scales) or whose head has a bias gets the same in one piece.

    Args:
        model: a transformers causal language model.
        tokens: ids, shape (rows, length).
        labels: shape (rows, length): `labels[r, t]` is the token that the model shall predict at t, that is token t + 1; or
            -100 where nothing is asked.
        positions: shape (rows, length), restarting at 0 where a packed sequence begins, which no token then looks beyond;
            None where each row is one sequence.

    Returns:
        Nats, float32, shape (rows, length); 0 where nothing is asked.
    """
    return _losses(model, tokens, labels, positions, None)[..., 1]


def distillation_losses(
    model: Any, tokens: Tensor, labels: Tensor, positions: Tensor | None, teacher: Teacher
) -> tuple[Tensor, Tensor]:
    """The loss of learning from a teacher at each place, and in it the part of the token itself.

    (1 - share) · NLL(token) + share · KL(teacher ‖ model), both over the whole vocabulary at temperature 1 (Hinton et al. 2015,
    arXiv:1503.02531, section 2, with the divergence instead of the cross-entropy, which differ by a constant).

    Args:
        model: the model that learns.
        tokens: ids, shape (rows, length).
        labels: as for `token_losses`; the teacher is asked where there are labels.
        positions: as for `token_losses`.
        teacher: whom to learn from.

    Returns:
        The loss (differentiable) and the negative log-likelihood (for information), in nats, float32, shape (rows, length).
    """
    both = _losses(model, tokens, labels, positions, teacher)
    return both[..., 0], both[..., 1].detach()


@torch.no_grad()
def window_losses(model: Any, windows: Tensor) -> Tensor:
    """Negative log-likelihood of each token of each window after the ones before it in that window.

    Args:
        model: a transformers causal language model; its training mode is left as it was.
        windows: token ids, shape (windows, length). They run through the model one by one.

    Returns:
        Nats, float32 on the CPU, shape (windows, length - 1): entry [w, t] is of token t + 1. The first token is given.
    """
    losses = torch.empty(windows.shape[0], windows.shape[1] - 1)
    with evaluating(model):
        for row, window in zip(losses, windows, strict=True):
            tokens = window.to(model.device).long()[None]
            row.copy_(token_losses(model, tokens, next_tokens(tokens))[0, :-1])
    return losses


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout and without a graph; the model's training mode is put back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def next_tokens(tokens: Tensor) -> Tensor:
    """Labels for learning every token from those before it: each row moved left by one, its last place ignored."""
    labels = torch.full_like(tokens, IGNORED)
    labels[:, :-1] = tokens[:, 1:]
    return labels


def check_context(config: Any, length: int, option: str) -> None:
    """Refuse windows that are longer than the model's positions reach.

    Raises:
        OptionError: `length` is less than 2, or more than the model holds; the message names `option`.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", length)
    if not 2 <= length <= longest:
        raise OptionError(
            f"the model takes 2 to {longest} tokens at once, not {length}", where=option, next="choose another length"
        )


def _losses(model: Any, tokens: Tensor, labels: Tensor, positions: Tensor | None, teacher: Teacher | None) -> Tensor:
    """Shape (rows, length, 2): the loss to learn from, and the negative log-likelihood."""
    inputs = {"input_ids": tokens, "use_cache": False} | ({} if positions is None else {"position_ids": positions})
    if not _has_plain_head(model) or (teacher is not None and not _has_plain_head(teacher.model)):
        return _whole_losses(model, inputs, labels, teacher)
    taught = None if teacher is None else (_hidden_states(teacher.model, inputs), _head_weight(teacher.model), teacher.share)
    head = model.get_output_embeddings()

    # inside the head, where a sharded weight is whole
    def losses(hidden: Tensor) -> Tensor:
        result: Tensor = _HeadLosses.apply(hidden, head.weight, labels, taught, _dtype(hidden))  # type: ignore[no-untyped-call]
        return result

    with _replaced(head, losses):
        result: Tensor = model(**inputs).logits
    return result


def _whole_losses(model: Any, inputs: dict[str, Any], labels: Tensor, teacher: Teacher | None) -> Tensor:
    logits = model(**inputs).logits.float().flatten(0, 1)
    token = functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
    loss = token
    if teacher is not None:
        with torch.no_grad():
            wanted = functional.log_softmax(teacher.model(**inputs).logits.float().flatten(0, 1), dim=-1)
        divergence = functional.kl_div(logits.log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1)
        loss = (1 - teacher.share) * token + teacher.share * divergence * (labels.flatten() != IGNORED)
    return torch.stack([loss, token], dim=-1).view(*labels.shape, 2)


class _HeadLosses(torch.autograd.Function):
    """Output head, log-softmax and losses of a few places at a time; the gradients are made in the same pass.

    The gradient with respect to the logits of a place is softmax(logits) - target, times the gradient g of its loss, where the
    target is the label's one-hot vector or its mixture with the teacher's distribution. That of the hidden states takes g
    afterwards. That of the weight is a sum over places, which takes g afterwards if it is the same everywhere, as in a sum or
    mean over tokens; else the logits are computed again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, taught: Any, dtype: torch.dtype) -> Tensor:
        flat = labels.flatten()
        asked = (flat != IGNORED).nonzero()[:, 0]
        few, matrix, targets = hidden.flatten(0, -2)[asked].to(dtype), weight.to(dtype), flat[asked]
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        shaped = torch.zeros(*labels.shape, 2, device=hidden.device)
        result = shaped.view(-1, 2)
        grad_hidden = torch.empty_like(few) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _parts(len(asked), len(matrix), hidden.device):
                places = asked[part]
                if taught is None and not (wants_hidden or wants_weight):
                    logits = (few[part] @ matrix.t()).float()
                    result[places] = functional.cross_entropy(logits, targets[part], reduction="none")[:, None]
                    continue
                slopes = _losses_and_slopes(few[part], matrix, targets[part], places, taught, dtype, result)
                if grad_hidden is not None:
                    torch.mm(slopes, matrix, out=grad_hidden[part])
                if grad_weight is not None:
                    _add_product(grad_weight, slopes, few[part])
        ctx.dtype, ctx.taught, ctx.shape = dtype, taught, hidden.shape
        ctx.save_for_backward(few, weight, targets, asked, grad_hidden, grad_weight)
        return shaped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        few, weight, targets, asked, grad_hidden, grad_weight = ctx.saved_tensors
        factors = (
            gradients[0].flatten(0, -2)[asked].sum(1)
        )  # the second column is not differentiated by anyone, or is the first one
        whole = None
        if grad_hidden is not None:
            whole = factors.new_zeros(ctx.shape, dtype=few.dtype)
            whole.flatten(0, -2)[asked] = grad_hidden * factors[:, None].to(few.dtype)
        if grad_weight is not None and len(factors):
            if (factors == factors[0]).all():
                grad_weight = grad_weight * factors[0]
            else:
                grad_weight, matrix = torch.zeros_like(weight), weight.to(ctx.dtype)
                nowhere = torch.empty(gradients[0].numel() // 2, 2, device=few.device)
                for part in _parts(len(asked), len(matrix), few.device):
                    places = asked[part]
                    slopes = _losses_and_slopes(few[part], matrix, targets[part], places, ctx.taught, ctx.dtype, nowhere)
                    _add_product(grad_weight, slopes * factors[part, None].to(ctx.dtype), few[part])
        return whole, grad_weight, None, None, None


def _losses_and_slopes(
    hidden: Tensor, weight: Tensor, targets: Tensor, places: Tensor, taught: Any, dtype: torch.dtype, result: Tensor
) -> Tensor:
    """Write the losses of some places into `result`; returns their gradients with respect to the logits."""
    logs = (hidden @ weight.t()).float().log_softmax(1)
    index = targets[:, None]
    token = -logs.gather(1, index)[:, 0]
    result[places, 1] = token
    if taught is None:
        result[places, 0] = token
        slopes = logs.exp_()
        share = 0.0
    else:
        states, matrix, share = taught
        wanted = functional.log_softmax((states[places].to(dtype) @ matrix.to(dtype).t()).float(), dim=1)
        divergence = (wanted.exp() * (wanted - logs)).sum(1)
        result[places, 0] = (1 - share) * token + share * divergence
        slopes = logs.exp_().sub_(wanted.exp_(), alpha=share)
    slopes.scatter_add_(1, index, torch.full_like(index, -(1 - share), dtype=slopes.dtype))
    return slopes.to(dtype)


def _add_product(total: Tensor, slopes: Tensor, hidden: Tensor) -> None:
    if total.dtype == slopes.dtype:
        total.addmm_(slopes.t(), hidden)
    else:
        total += slopes.t() @ hidden


def _parts(places: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    step = max(1, (CPU_LOGITS if device.type == "cpu" else GPU_LOGITS) // vocabulary)
    return (slice(first, first + step) for first in range(0, places, step))


def _dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


@torch.no_grad()
def _hidden_states(model: Any, inputs: dict[str, Any]) -> Tensor:
    """What goes into the output head, shape (rows · length, hidden)."""
    with _replaced(model.get_output_embeddings(), lambda hidden: hidden):
        hidden: Tensor = model(**inputs).logits
    return hidden.flatten(0, 1)


def _head_weight(model: Any) -> Tensor:
    weight = model.get_output_embeddings().weight.detach()
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight  # type: ignore[no-any-return]


@contextmanager
def _replaced(head: torch.nn.Module, forward: Any) -> Iterator[None]:
    # on the instance, since sharding has exchanged its class; the hooks around it stay
    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def _has_plain_head(model: Any) -> bool:
    """Whether the logits are one matrix times the last hidden states, seen in a short forward pass."""
    if model not in _plain_heads:
        head = model.get_output_embeddings()
        plain = isinstance(head, torch.nn.Linear) and head.bias is None
        if plain:
            seen: list[Tensor] = []
            hook = head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
            some = torch.arange(4, device=model.device)[None]  # a padding token alone would have logits of zero
            with torch.no_grad():
                logits = model(input_ids=some, use_cache=False).logits
            hook.remove()
            plain = len(seen) == 1 and torch.equal(seen[0], logits)
        _plain_heads[model] = plain
    return _plain_heads[model]
