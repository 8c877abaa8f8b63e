"""A transformers model as lm-eval sees one: its tokens, its truncation, its batches' padding and its arithmetic, in less work.

lm-eval runs every prompt in full, pads it to the longest of its batch and computes the logits of every place. Here tokens that
the sequence before shares are not run again, and only the places that are asked get logits. In 32 bits that changes a
log-likelihood by some millionths. In 16 bits a likelihood has two or three digits, so ties are common and the last bit decides:
there a sequence is padded to the length that it has in lm-eval's batch, and takes over only what has the same bits (`_exact`).
On a GPU the order of a sum depends on the shape of the whole batch, so that the batches are lm-eval's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from deepen.evaluate.cache import content_hash
from deepen.evaluate.models import Prompt
from deepen.evaluate.sequences import Answer, Pair, Run, arrange, remaining
from deepen.evaluate.stock import quiet
from deepen.likelihood import evaluating

_KEYS = 512  # that PyTorch's attention on a CPU takes at once, as kvSplitSize in FlashAttentionKernel.cpp
_FEW = (1, 2, 3)  # rows whose products are summed in another order


class TransformersModel:
    """A loaded model and its tokenizer; see `Model` for what the methods do.

    Args:
        network: a transformers causal language model.
        tokenizer: its tokenizer.
        batch_size: sequences at once, where they run in batches.
        path: the checkpoint.
        plan: the layer plan with which it was loaded.
    """

    engine = "transformers"

    def __init__(
        self, network: Any, tokenizer: Any, batch_size: int, path: Path, plan: Mapping[str, Any] | None = None
    ) -> None:
        with quiet():
            self._harness = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=batch_size)
        self._network, self._batch_size = network, batch_size
        self._narrow = network.dtype in {torch.bfloat16, torch.float16}
        self._shares = network.device.type == "cpu" and _has_plain_cache(network)
        self._keeps = "logits_to_keep" in inspect.signature(network.forward).parameters
        self.window: int | None = self._harness.max_length
        self.identity: Mapping[str, Any] | None = {
            "engine": self.engine,
            "model": content_hash(path),
            "plan": dict(plan or {}),
            "dtype": str(network.dtype),
            "device": str(network.device),
            "threads": torch.get_num_threads(),
            "batch_size": batch_size,
            "versions": {name: version(name) for name in ("torch", "transformers", "lm-eval")},
        }

    def arrange(self, texts: Sequence[tuple[str, str]]) -> tuple[list[Run], int]:
        """One by one with what they share where that is exact, or else in lm-eval's batches."""
        pairs = [self._encode(*text) for text in texts]
        longest = max((len(pair.context) + len(pair.continuation) - 1 for pair in pairs), default=0)
        padded = self._narrow or not self._shares
        window = self.window or longest
        keep = _exact if self._narrow else None
        return arrange(pairs, self._batch_size, window, padded=padded, shared=self._shares, keep=keep), longest

    def answers(
        self,
        texts: Sequence[tuple[str, str]],  # noqa: ARG002
        runs: Sequence[Run],
        known: Collection[int],
    ) -> Iterator[tuple[int, dict[int, Answer]]]:
        """The log-likelihoods that lm-eval would find."""
        needed = remaining(runs, known)
        yield from self._one_by_one(needed) if self._shares else self._in_batches(needed)

    def count(self, text: str) -> int:
        """Tokens of a prompt."""
        return len(self._harness.tok_encode(text))

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """By lm-eval's own loop."""
        with evaluating(self._network), quiet():
            texts: list[str] = self._harness.generate_until([prompt.request for prompt in prompts], disable_tqdm=True)
        return texts

    def close(self) -> None:
        """Let go of the weights."""
        del self._harness, self._network

    def _encode(self, context: str, continuation: str) -> Pair:
        if context:
            return Pair(*map(tuple, self._harness._encode_pair(context, continuation)))
        tokens = tuple(self._harness.tok_encode(continuation, add_special_tokens=False))
        prefix = self._harness.prefix_token_id
        return Pair(tokens[:1], tokens[1:]) if tokens[0] == prefix else Pair((prefix,), tokens)

    def _one_by_one(self, runs: Sequence[Run]) -> Iterator[tuple[int, dict[int, Answer]]]:
        cache = None
        for run in runs:
            if cache is None or not run.kept:
                cache = DynamicCache(config=self._network.config)
            elif surplus := cache.get_seq_length() - run.kept:
                cache.crop(-surplus)
            fed = torch.tensor([(*run.tokens[run.kept :], *(0,) * (run.width - len(run.tokens)))])
            with evaluating(self._network):
                logits = self._logits(fed, run.first - run.kept, len(run.tokens) - run.kept, past_key_values=cache)
            yield run.cost, _answers(logits[0], run.asked)

    def _in_batches(self, runs: Sequence[Run]) -> Iterator[tuple[int, dict[int, Answer]]]:
        for _, group in groupby(runs, key=lambda run: run.batch):
            batch = list(group)
            fed = torch.zeros(len(batch), batch[0].width, dtype=torch.long)
            for row, run in zip(fed, batch, strict=True):
                row[: len(run.tokens)] = torch.tensor(run.tokens)
            first = min(run.first for run in batch)
            with evaluating(self._network):
                logits = self._logits(fed, first, batch[0].width)
            found: dict[int, Answer] = {}
            for part, run in zip(logits, batch, strict=True):
                found |= _answers(part[run.first - first : len(run.tokens) - first], run.asked)
            yield fed.numel(), found

    def _logits(self, fed: torch.Tensor, first: int, end: int, **past: Any) -> torch.Tensor:
        """Of the places from `first` up to `end`, shape (rows, places, vocabulary)."""
        fed = fed.to(self._network.device)
        past = past or {"use_cache": False}
        if self._keeps:
            past["logits_to_keep"] = torch.arange(first, end, device=fed.device)
        logits: torch.Tensor = self._network(fed, **past).logits
        return logits if self._keeps else logits[:, first:end]


def _exact(before: int, width: int, shared: int) -> int:
    """How many leading tokens a sequence may take over from the one before, so that all bits are those of one pass over it.

    PyTorch's attention on a CPU takes keys in blocks of 512, and the bits of a row depend on the width of its last block: so
    sequences of different widths share whole blocks only. It takes rows in blocks, too, and a last one of very few rows is
    computed otherwise: so there must be such a block where there is one in a single pass, and none elsewhere. Where this does
    not describe the kernel, as on other processors, the result differs by rounding.

    Args:
        before: width of the sequence before.
        width: of this one.
        shared: tokens that both begin with.
    """
    kept = shared if before == width else min(shared, min(before, width) // _KEYS * _KEYS)
    last = width % _rows(width)
    for place in range(kept, 0, -1):
        mine = (width - place) % _rows(width - place)
        if mine == last or (mine not in _FEW and last not in _FEW):
            return place
    return 0


def _rows(length: int) -> int:
    """Rows that PyTorch's attention on a CPU takes at once: qSplitSize in FlashAttentionKernel.cpp."""
    return 256 if length >= 768 else 64 if length >= 192 else 32


def _answers(logits: torch.Tensor, asked: Mapping[int, tuple[int, ...]]) -> dict[int, Answer]:
    """The log-likelihood of each continuation, in the arithmetic of lm-eval: that of the logits' own type."""
    logs = functional.log_softmax(logits, dim=-1)
    likeliest = logs.argmax(dim=-1)
    found = {}
    for number, continuation in asked.items():
        tokens = torch.tensor(continuation, device=logs.device)
        part = logs[-len(tokens) :]
        greedy = bool((likeliest[-len(tokens) :] == tokens).all())
        found[number] = Answer(float(part.gather(1, tokens[:, None])[:, 0].sum()), greedy)
    return found


def _has_plain_cache(network: Any) -> bool:
    """Whether what a model keeps of its context can be cut at any place."""
    cache = DynamicCache(config=network.config)
    with evaluating(network):
        network(torch.tensor([[0, 1]], device=network.device), past_key_values=cache, use_cache=True)
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
