"""Log-probabilities of answers, of the policy while it learns, and once of the reference: the policy before it does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepen.data.preference import Pair
from deepen.likelihood import evaluating
from deepen.output import write_file
from deepen.train import ranks
from deepen.train.dpo import log_probabilities, pack_pairs
from deepen.train.stage import Place
from deepen.train.state import noted_settings, scratch

Known = NDArray[np.float32]
"""Log-probabilities of the chosen and the rejected answer of each pair, in nats, shape (pairs, 2)."""


def measure_pairs(
    network: Any,
    pairs: Sequence[Pair],
    size: int,
    device: torch.device,
    precision: torch.dtype,
    advance: Callable[[int], None] = lambda _: None,
) -> Known:
    """Log-probabilities of answers under a network, which all processes measure together.

    Args:
        network: the model; its training mode is left as it was.
        pairs: what is measured.
        size: how many pairs go through the model at once.
        device: where the network is.
        precision: what matrices are multiplied in.
        advance: told how many tokens were read, by all processes.
    """
    found = np.zeros((len(pairs), 2))
    parts = [(first, pairs[first : first + size]) for first in range(0, len(pairs), size)]
    mixed = torch.autocast(device.type, precision, enabled=precision != torch.float32)
    with evaluating(network), mixed:
        for first, some in ranks.share(parts, lambda part: (len(pairs), part[1])):
            batch = pack_pairs(some, torch.zeros(len(some), 2), device)
            values = log_probabilities(network, batch).cpu().numpy()
            found[first : first + len(some)] = values[: len(pairs) - first]  # nothing of what only keeps up with the others
            advance(ranks.world_size() * sum(pair.tokens for pair in some))
    return np.array(ranks.totals(*found.ravel(), device=device), dtype=np.float32).reshape(-1, 2)


def kept(place: Place, name: str, measure: Callable[[], Known]) -> Known:
    """What the same run has measured before it was interrupted, or else what is measured now, which is kept for that case.

    The weights of that moment are gone once the run goes on, so it is written before anything is learned.

    Args:
        place: of the run; another run, or one with other settings or data, keeps something else.
        name: of the measurement in the run.
        measure: measures.
    """
    file = scratch(place.folder) / f"{place.run or 'run'}-{name}.npz"
    key = hashlib.sha256(json.dumps(noted_settings(place.folder), sort_keys=True).encode()).hexdigest()
    known = ranks.first(lambda: _read(file, key))
    if known is None:
        known = measure()
        if ranks.rank() == 0:
            content = BytesIO()
            np.savez(content, key=np.array(key), known=known)
            write_file(file, content.getvalue())
        ranks.wait()
    return known


def _read(file: Path, key: str) -> Known | None:
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as content:
        return content["known"] if str(content["key"]) == key else None
