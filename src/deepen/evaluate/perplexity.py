"""Perplexity of a model on a text, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepen.checkpoint import resolve
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.data.text import Paths, Tokens, check_vocabulary, encoder, read_tokens
from deepen.errors import CheckpointError, DataError, OptionError
from deepen.progress import progress

_LARGEST = 700  # nats per token; exp of more is no longer a number


@dataclass(frozen=True)
class Span:
    """A window of a stream of tokens: it begins and ends there, and what lies from `first` on is scored in it."""

    begin: int
    end: int
    first: int


def spans(tokens: int, window: int, stride: int) -> list[Span]:
    """Windows that begin every `stride` tokens, and what each of them scores, so that no token is scored twice.

    With overlapping windows every token after the first window has at least `window - stride` tokens of context. With disjoint
    ones (`stride == window`) the first token of each window has none and is not scored.

    Args:
        tokens: length of the stream.
        window: the longest window; the last one may be shorter.
        stride: from one beginning to the next, at most `window`.
    """
    found: list[Span] = []
    scored = 0
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        first = max(begin + 1, scored)
        if first < end:
            found.append(Span(begin, end, first))
        scored = end
        if end == tokens:
            break
    return found


def mean_and_error(scores: Sequence[NDArray[np.floating]]) -> tuple[float, float | None]:
    """The mean over all tokens, and its standard error with windows as the units of sampling.

    Tokens of one window are not independent, so the error is that of a ratio of window totals (Cochran, Sampling Techniques,
    1977, section 6.4): with m the mean, S the totals, n the counts and K windows, sqrt(K / (K - 1) · Σ (S - m·n)²) / Σ n.

    Args:
        scores: for each window the values of its tokens.

    Returns:
        The mean and its standard error; None for one window, which says nothing about the spread.
    """
    totals = np.array([part.sum(dtype=np.float64) for part in scores])
    counts = np.array([part.size for part in scores])
    mean = float(totals.sum() / counts.sum())
    windows = len(scores)
    if windows == 1:
        return mean, None
    spread = float(((totals - mean * counts) ** 2).sum())
    return mean, math.sqrt(windows / (windows - 1) * spread) / int(counts.sum())


def perplexity(
    model: str | Path,
    data: Paths,
    *,
    window: int,
    stride: int | None,
    tokens: int | None,
    limit: int | None,
    device: str | None,
    dtype: str | None,
    plan: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Measure the perplexity; see `deepen.evaluate` for the arguments.

    Returns:
        The task's result. The perplexity is exp(m) of the mean negative log-likelihood m per token in nats, and its standard
        error is exp(m) times that of m (delta method). `bits_per_byte` spreads the mean over the text's UTF-8 bytes; it is None
        for a GGUF file.
    """
    stride = window if stride is None else stride
    if not window >= 2 or not 1 <= stride <= window:
        raise OptionError(
            f"a window of {window} tokens every {stride} tokens",
            where="--window, --stride",
            next="use a window of 2 or more and a stride from 1 up to the window",
        )
    path = resolve(model)
    if is_gguf(path):
        if plan or device is not None or dtype is not None:
            raise OptionError(
                "a GGUF file is judged as it is, by llama.cpp: without a layer plan, device or dtype",
                where=path,
                next="write the deepened file with `deepen scale` and judge that, or leave the option away",
            )
        stream, windows, scores = _score_gguf(path, data, window, stride, tokens, limit)
        token_bytes = None
    else:
        stream, windows, scores, token_bytes = _score(path, data, window, stride, tokens, limit, device, dtype, plan)
    mean, error = mean_and_error(scores)
    if not mean < _LARGEST:
        raise CheckpointError(
            f"the model finds the text impossible ({mean} nats per token)", where=path, next="check its weights"
        )
    value = math.exp(mean)
    return {
        "metric": "perplexity",
        "value": value,
        "stderr": None if error is None else value * error,
        "n": sum(part.size for part in scores),
        "shots": 0,
        "tokens": len(stream),
        "windows": len(windows),
        "window": window,
        "stride": stride,
        "nats_per_token": mean,
        "bits_per_byte": None if token_bytes is None else mean / math.log(2) / token_bytes,
    }


def _score(
    path: Path,
    data: Paths,
    window: int,
    stride: int,
    tokens: int | None,
    limit: int | None,
    device: str | None,
    dtype: str | None,
    plan: Mapping[str, Any] | None,
) -> tuple[Tokens, list[Span], list[NDArray[np.floating]], float]:
    import torch

    from deepen.likelihood import check_context, window_losses
    from deepen.model import load

    network, tokenizer = load(path, plan, dtype=dtype, device=device)
    if tokenizer is None:
        raise CheckpointError("the checkpoint has no tokenizer", where=path, next="put its tokenizer files beside the weights")
    check_context(network.config, window, "--window")
    stream = read_tokens(data, encoder(tokenizer), end_of_text=tokenizer.eos_token_id)[:tokens]
    check_vocabulary(stream, network.get_input_embeddings().num_embeddings)
    windows = _windows(stream, window, stride, limit)
    scores: list[NDArray[np.floating]] = []
    with progress("Scoring", sum(span.end - span.begin for span in windows), "tokens") as advance:
        for span in windows:
            losses = window_losses(network, torch.from_numpy(stream[None, span.begin : span.end]))
            scores.append(losses[0, span.first - span.begin - 1 :].numpy())
            advance(span.end - span.begin)
    text = tokenizer.decode(stream, clean_up_tokenization_spaces=False)
    return stream, windows, scores, len(text.encode()) / len(stream)


def _score_gguf(
    path: Path, data: Paths, window: int, stride: int, tokens: int | None, limit: int | None
) -> tuple[Tokens, list[Span], list[NDArray[np.floating]]]:
    from deepen.engine.libllama import window_log_likelihoods
    from deepen.engine.llamacpp import LlamacppEngine

    end_of_text = open_gguf(path).get("tokenizer.ggml.eos_token_id")
    with closing(LlamacppEngine(path, context=window)) as engine:
        stream = read_tokens(data, engine.tokenize, end_of_text=end_of_text)[:tokens]
    windows = _windows(stream, window, stride, limit)
    rows = window_log_likelihoods(path, [stream[span.begin : span.end].tolist() for span in windows])
    scores = [-np.array(row[span.first - span.begin - 1 :]) for span, row in zip(windows, rows, strict=True)]
    return stream, windows, scores


def _windows(stream: Tokens, window: int, stride: int, limit: int | None) -> list[Span]:
    windows = spans(len(stream), window, stride)[:limit]
    if not windows:
        raise DataError(f"{len(stream)} tokens leave nothing to score", next="give more text")
    return windows
