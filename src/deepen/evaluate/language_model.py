"""A transformers model as lm-eval sees one: its tokens, its truncation, its batches' padding and its arithmetic, in less work.

lm-eval runs every prompt in full, pads it to the longest of its batch and computes the logits of every place. Here tokens that
the sequence before shares are not run again, and only the places that are asked get logits. In 32 bits that changes a
log-likelihood by some millionths. In 16 bits a likelihood has two or three digits, so ties are common and the last bit decides:
there a sequence is padded to the length that it has in lm-eval's batch, since on a CPU the softmax of the last few keys of a
row depends on it, and no place near such an end is taken over from another sequence. On a GPU the order of a sum depends on
the shape of the whole batch, so that the batches are lm-eval's own.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from deepen.evaluate.sequences import Answer, Pair, Sequences, arrange
from deepen.likelihood import evaluating

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant

_LANE = 16  # keys that one instruction of a CPU takes, at most: those after the last multiple are computed otherwise


class TransformersModel:
    """A loaded model and its tokenizer; see `Model` in `harness` for what the methods do.

    Args:
        network: a transformers causal language model.
        tokenizer: its tokenizer.
        batch_size: sequences at once, where they run in batches.
    """

    def __init__(self, network: Any, tokenizer: Any, batch_size: int) -> None:
        self._harness = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=batch_size)
        self._network, self._batch_size = network, batch_size
        self._narrow = network.dtype in {torch.bfloat16, torch.float16}
        self._shares = network.device.type == "cpu" and _has_plain_cache(network)
        self._keeps = "logits_to_keep" in inspect.signature(network.forward).parameters
        self.window: int | None = self._harness.max_length

    def encode(self, context: str, continuation: str) -> Pair:
        """The tokens of a context and of its continuation, as lm-eval cuts them apart."""
        if context:
            return Pair(*map(tuple, self._harness._encode_pair(context, continuation)))
        tokens = self._harness.tok_encode(continuation, add_special_tokens=False)
        prefix = self._harness.prefix_token_id
        return Pair((prefix,), tuple(tokens)) if tokens[0] != prefix else Pair(tuple(tokens[:1]), tuple(tokens[1:]))

    def count(self, text: str) -> int:
        """Tokens of a prompt."""
        return len(self._harness.tok_encode(text))

    def arrange(self, pairs: Sequence[Pair]) -> Sequences:
        """What is run for these pairs, in which order, and what of each is new."""
        assert self.window is not None
        return arrange(
            pairs, self._batch_size, self.window, padded=self._narrow or not self._shares, shared=self._shares, lane=_LANE
        )

    def log_likelihoods(self, sequences: Sequences) -> Iterator[tuple[int, dict[int, Answer]]]:
        """For each sequence (or batch of them) the tokens that it took, and the answers by the number of the pair."""
        yield from self._one_by_one(sequences) if self._shares else self._in_batches(sequences)

    def generate(self, requests: Sequence[Any]) -> list[str]:
        """The texts that follow the prompts of some of lm-eval's requests, run as one batch."""
        with evaluating(self._network):
            texts: list[str] = self._harness.generate_until(list(requests), disable_tqdm=True)
        return texts

    def _one_by_one(self, sequences: Sequences) -> Iterator[tuple[int, dict[int, Answer]]]:
        cache = None
        with evaluating(self._network):
            for each in sequences:
                if cache is None or not each.kept:
                    cache = DynamicCache(config=self._network.config)
                elif surplus := cache.get_seq_length() - each.kept:
                    cache.crop(-surplus)
                fed = torch.tensor([(*each.tokens[each.kept :], *(0,) * (each.width - len(each.tokens)))])
                logits = self._logits(fed, each.first - each.kept, len(each.tokens) - each.kept, past_key_values=cache)
                yield each.width - each.kept, _answers(logits[0], each.asked)

    def _in_batches(self, sequences: Sequences) -> Iterator[tuple[int, dict[int, Answer]]]:
        for start in range(0, len(sequences), self._batch_size):
            batch = sequences[start : start + self._batch_size]
            fed = torch.zeros(len(batch), batch[0].width, dtype=torch.long)
            for row, each in zip(fed, batch, strict=True):
                row[: len(each.tokens)] = torch.tensor(each.tokens)
            first = min(each.first for each in batch)
            with evaluating(self._network):
                logits = self._logits(fed, first, batch[0].width)
            answers: dict[int, Answer] = {}
            for part, each in zip(logits, batch, strict=True):
                answers |= _answers(part[each.first - first : len(each.tokens) - first], each.asked)
            yield fed.numel(), answers

    def _logits(self, fed: torch.Tensor, first: int, end: int, **past: Any) -> torch.Tensor:
        """Of the places from `first` up to `end`."""
        fed = fed.to(self._network.device)
        past = past or {"use_cache": False}
        if self._keeps:
            places = torch.arange(first, end, device=fed.device)
            logits: torch.Tensor = self._network(fed, logits_to_keep=places, **past).logits
            return logits
        logits = self._network(fed, **past).logits
        return logits[:, first:end]


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
