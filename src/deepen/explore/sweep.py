"""Run many layer plans at once: plans that begin alike share states, and each layer is touched once for all that need it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from deepen.explore.network import Network

Layers = tuple[int, ...]
_State = TypeVar("_State")


@dataclass(slots=True)
class _Node:
    """What the layers on the way from the root have made of the tokens, and which layers go on from there."""

    state: Tensor | None = None
    after: dict[int, _Node] = field(default_factory=dict)
    open: int = 0
    plans: list[int] = field(default_factory=list)


@torch.no_grad()
def sweep(
    network: Network, plans: Sequence[Layers], known: Sequence[Tensor], given: Sequence[dict[str, Any]], rows: int
) -> Iterator[tuple[list[int], Tensor]]:
    """The last hidden states of many plans.

    The plans are a tree of layers whose branches are what they do not have in common. Layer by layer, every state that waits
    for it is run through it, with as many others as `rows` allows; this is repeated for those that jump back, until all have
    arrived. A state is forgotten as soon as nothing goes on from it.

    Args:
        network: the base.
        plans: base layers in order, each plan once.
        known: the base's hidden states before layer 0, 1, …, as many as are cached (at least the first), each of shape
            (windows, length, hidden).
        given: what each layer is told besides; see `Network.enter`.
        rows: the most sequences that go through a layer at once.

    Yields:
        Numbers of plans, and their states stacked in that order, shape (plans · windows, length, hidden).
    """
    waiting: dict[int, list[tuple[_Node, _Node]]] = defaultdict(list)

    def reach(node: _Node, state: Tensor) -> None:
        node.state, node.open = state, len(node.after)
        for layer, after in node.after.items():
            waiting[layer].append((node, after))

    for node, state in _cached(_tree(plans), known):
        reach(node, state)
        if node.plans:
            yield node.plans, state
    together = max(1, rows // known[0].shape[0])
    while any(waiting.values()):
        for index in filter(waiting.get, range(network.depth)):
            with network.open_layer(index) as layer:
                while edges := waiting[index][:together]:
                    del waiting[index][:together]
                    states = network.run(layer, torch.cat([_take(before) for before, _ in edges]), given[index])
                    parts = states.chunk(len(edges))
                    for (_, after), part in zip(edges, parts, strict=True):
                        # a state that has to wait shall not hold the others that were computed with it
                        reach(after, part if set(after.after) <= {index + 1} else part.clone())
                    if arrived := [place for place, (_, after) in enumerate(edges) if after.plans]:
                        ended = [plan for place in arrived for plan in edges[place][1].plans]
                        yield ended, torch.cat([parts[place] for place in arrived])


def evaluations(plans: Sequence[Layers], known: int) -> int:
    """How many layers `sweep` runs per token.

    Args:
        plans: as for `sweep`.
        known: how many hidden states of the base are cached.
    """
    nodes, work = [node for node, _ in _cached(_tree(plans), range(known))], 0
    while nodes:
        after = nodes.pop().after.values()
        work += len(after)
        nodes += after
    return work


def _take(node: _Node) -> Tensor:
    """The state of a node, which forgets it with the last branch."""
    state = node.state
    assert state is not None
    node.open -= 1
    if not node.open:
        node.state = None
    return state


def _tree(plans: Sequence[Layers]) -> _Node:
    root = _Node()
    for number, layers in enumerate(plans):
        node = root
        for layer in layers:
            node = node.after.setdefault(layer, _Node())
        node.plans.append(number)
    return root


def _cached(root: _Node, known: Sequence[_State]) -> list[tuple[_Node, _State]]:
    """The nodes of the base's own layers, each with what is known there; the branches between them are cut."""
    found = [(root, known[0])]
    for layer, state in enumerate(known[1:]):
        node = found[-1][0].after.pop(layer, None)
        if node is None:
            break
        found.append((node, state))
    return found
