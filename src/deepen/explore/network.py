"""A model in three parts that are run one by one: what comes before its decoder layers, each layer, what comes after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepen.architecture import Stack
from deepen.errors import UnsupportedModelError
from deepen.likelihood import evaluating, token_losses, window_losses

_TOLERANCE = 1e-4  # relative, of the identity plan's mean loss


@dataclass(frozen=True)
class Network:
    """A model whose layers can be run in any order.

    Attributes:
        model: a transformers causal language model in evaluation mode; its layers may be without weights.
        layers: the modules of its decoder layers.
        open_layer: gives layer k with its weights for as long as the block runs; at most one is open at a time.
    """

    model: Any
    layers: Sequence[torch.nn.Module]
    open_layer: Callable[[int], AbstractContextManager[torch.nn.Module]]

    @property
    def depth(self) -> int:
        """How many layers the base has."""
        return len(self.layers)

    @torch.no_grad()
    def enter(self, tokens: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        """What the first layer reads, and what each layer is told besides: masks, positions.

        The model's own forward pass runs with layers that note what they are given and do nothing, so masks and positions are
        those that transformers makes for each layer.

        Args:
            tokens: ids, shape (rows, length).

        Returns:
            Hidden states, shape (rows, length, hidden), and keyword arguments per layer that hold for any number of rows.
        """
        given: list[dict[str, Any]] = [{} for _ in self.layers]
        first: list[Tensor] = []

        def note(layer: int) -> Callable[..., Any]:
            def forward(hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
                if arguments:
                    raise _not_exact(self.model, "its layers are given arguments without names")
                if layer == 0:
                    first.append(hidden_states)
                given[layer] = named
                return hidden_states

            return forward

        with self._in_place_of_layers(note):
            self.model(input_ids=tokens, use_cache=False, logits_to_keep=1)
            hidden = first.pop()
            self.model(input_ids=tokens[:1], use_cache=False, logits_to_keep=1)  # a mask of one row serves any number of rows
        return hidden, given

    @torch.no_grad()
    def run(self, layer: torch.nn.Module, states: Tensor, given: dict[str, Any]) -> Tensor:
        """One layer over hidden states of shape (rows, length, hidden)."""
        output = layer(states, **given)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @torch.no_grad()
    def leave(self, states: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihoods after the last layer: final norm, head and whatever the model does to its logits.

        Args:
            states: what the last layer wrote, shape (rows, length, hidden).
            tokens: the ids of one row, shape (1, length).
            labels: as for `token_losses`, shape (rows, length).

        Returns:
            Nats, float32, shape (rows, length); 0 where nothing is asked.
        """
        with self._in_place_of_layers(lambda _: lambda *_, **__: states):
            return token_losses(self.model, tokens, labels)

    @contextmanager
    def _in_place_of_layers(self, forward: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
        # on the instances, as hooks and attributes of a layer may be looked at
        for index, layer in enumerate(self.layers):
            layer.forward = forward(index)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def check_identity(self, windows: Tensor) -> None:
        """Make sure that the base in parts is the base: the foundation of every score.

        Args:
            windows: a few tokens, shape (1, length).

        Raises:
            UnsupportedModelError: the losses differ from those of the model's own forward pass.
        """
        expected = self._native_losses(windows)
        labels = torch.nn.functional.pad(windows[:, 1:].long(), (0, 1), value=-100)
        with evaluating(self.model):
            states, given = self.enter(windows)
            for index in range(self.depth):
                with self.open_layer(index) as layer:
                    states = self.run(layer, states, given[index])
            found = self.leave(states, windows[:1], labels)[:, :-1].cpu()
        gap = (found - expected).abs().max().item()
        if not gap <= _TOLERANCE * max(1.0, expected.mean().item()):
            raise _not_exact(self.model, f"the layers run one by one give other losses than the model (by {gap:.2g} nats)")

    def _native_losses(self, windows: Tensor) -> Tensor:
        """The model's own forward pass; layers without weights are opened when it comes to them."""
        original = [layer.forward for layer in self.layers]

        def opened(index: int) -> Callable[..., Any]:
            def forward(*arguments: Any, **named: Any) -> Any:
                with self.open_layer(index):
                    return original[index](*arguments, **named)

            return forward

        with self._in_place_of_layers(opened):
            return window_losses(self.model, windows)


def resident(model: Any, stack: Stack) -> Network:
    """A model that is in memory as a whole.

    Raises:
        UnsupportedModelError: its layers are not where the checkpoint has them.
    """
    layers = find_layers(model, stack)
    return Network(model.eval(), layers, lambda index: nullcontext(layers[index]))


def find_layers(model: Any, stack: Stack) -> list[torch.nn.Module]:
    """The modules of the decoder layers.

    Raises:
        UnsupportedModelError: transformers keeps them elsewhere than the checkpoint.
    """
    module = model
    path = stack.prefix.rstrip(".").split(".")
    for name in path if hasattr(model, path[0]) else [model.base_model_prefix, *path]:
        module = getattr(module, name, None)
    if not isinstance(module, torch.nn.ModuleList) or len(module) != stack.num_hidden_layers:
        raise _not_exact(model, f"transformers keeps its layers elsewhere than the checkpoint ({stack.prefix}*)")
    return list(module)


def _not_exact(model: Any, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"plans of the family {model.config.model_type} cannot be scored exactly: {reason}",
        next="judge single plans with `deepen evaluate MODEL --repeat I:J`",
    )
