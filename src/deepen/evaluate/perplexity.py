"""Perplexity of a model on a text: per token, per byte and per word, each with its interval over documents."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepen.checkpoint import resolve
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.data.text import Paths, check_vocabulary
from deepen.energy import open_meter
from deepen.errors import CheckpointError, DataError, OptionError
from deepen.evaluate.results import Item, TaskResult
from deepen.evaluate.statistics import Difference, Estimate, paired_difference, ratio_interval
from deepen.evaluate.stream import Counts, Stream, read_stream, transformers_encoder
from deepen.evaluate.tasks import evenly_spaced
from deepen.progress import progress

_LARGEST = 700  # nats per token; exp of more is no longer a number
_PIECES = 100  # of a single document, when two tokenizers are compared on it
_VERSION = "1"

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """A window of a stream of tokens: it begins and ends there, and what lies from `first` on is scored in it."""

    begin: int
    end: int
    first: int


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        window: tokens that the model sees at once.
        stride: tokens from one window to the next.
        tokens: only the first so many tokens of the data.
        limit: only so many windows, evenly spaced.
    """

    window: int
    stride: int
    tokens: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Scores:
    """The tokens that were scored, in order.

    Attributes:
        model: where it lies.
        texts: names of the data.
        stream: the whole text.
        losses: nats of each scored token, shape (scored,).
        places: where in the stream each stands.
        windows: the number of the window in which each was scored.
        all_windows: how many windows there are without the limit.
        all_tokens: how many tokens those score.
        settings: what was measured.
        seconds: how long it took.
        energy_joules: None where it is not measured.
    """

    model: Path
    texts: tuple[str, ...]
    stream: Stream
    losses: _Floats
    places: Counts
    windows: Counts
    all_windows: int
    all_tokens: int
    settings: Settings
    seconds: float
    energy_joules: float | None

    @property
    def unit(self) -> str:
        """What the interval is over: documents; windows of a single one."""
        return "document" if self.stream.documents[-1] > 0 else "window"

    @property
    def units(self) -> Counts:
        """For each scored token the number of its document or window."""
        return self.stream.documents[self.places] if self.unit == "document" else self.windows


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


def check_settings(settings: Settings) -> None:
    """Refuse windows that cannot be.

    Raises:
        OptionError: the window is shorter than 2 tokens, or the stride not from 1 up to the window.
    """
    window, stride = settings.window, settings.stride
    if not window >= 2 or not 1 <= stride <= window:
        raise OptionError(
            f"a window of {window} tokens every {stride} tokens",
            where="--window, --stride",
            next="use a window of 2 or more and a stride from 1 up to the window",
        )


def score(
    model: str | Path,
    data: Paths,
    settings: Settings,
    *,
    device: str | None = None,
    dtype: str | None = None,
    plan: Mapping[str, Any] | None = None,
) -> Scores:
    """Score the tokens of a text with a model; see `deepen.evaluate` for the arguments and errors."""
    check_settings(settings)
    path = resolve(model)
    if is_gguf(path) and (plan or device is not None or dtype is not None):
        raise OptionError(
            "a GGUF file is judged as it is, by llama.cpp: without a layer plan, device or dtype",
            where=path,
            next="write the deepened file with `deepen scale` and judge that, or leave the option away",
        )
    start = time.monotonic()
    with open_meter() as meter:
        if is_gguf(path):
            stream, chosen, windows, losses = _score_gguf(path, data, settings)
        else:
            stream, chosen, windows, losses = _score(path, data, settings, device, dtype, plan)
        joules = meter.joules()
    places = [np.arange(windows[number].first, windows[number].end) for number in chosen]
    return Scores(
        model=path,
        texts=tuple(Path(each).name for each in ([data] if isinstance(data, str | Path) else data)),
        stream=stream,
        losses=np.concatenate(losses).astype(np.float64),
        places=np.concatenate(places),
        windows=np.repeat(chosen, [len(each) for each in places]),
        all_windows=len(windows),
        all_tokens=sum(span.end - span.first for span in windows),
        settings=settings,
        seconds=time.monotonic() - start,
        energy_joules=joules,
    )


def summarise(scores: Scores) -> TaskResult:
    """The perplexity of scored tokens, with its intervals.

    Per token it is exp(m) of the mean negative log-likelihood m in nats; per byte and per word, exp of the same sum over the
    bytes (UTF-8) and the words (between white space) of the scored text, as lm-eval's wikitext has it. The standard error is
    exp(m) times that of m (delta method).

    Raises:
        CheckpointError: the likelihoods are not numbers, or too small for a perplexity.
    """
    stream, places, units = scores.stream, scores.places, scores.units
    mean = float(scores.losses.mean())
    if not mean < _LARGEST:
        raise CheckpointError(
            f"the model finds the text impossible ({mean} nats per token)", where=scores.model, next="check its weights"
        )
    numbers, owner = np.unique(units, return_inverse=True)
    nats = np.bincount(owner, scores.losses)
    tokens, bytes_, words = (
        np.bincount(owner, each) for each in (np.ones(len(places)), stream.bytes[places], stream.words[places])
    )
    per_token = ratio_interval(nats, tokens)
    value = math.exp(per_token.value)
    facts: dict[str, Any] = {
        "texts": list(scores.texts),
        "tokens": len(stream),
        "windows": len(np.unique(scores.windows)),
        "all_windows": scores.all_windows,
        "window": scores.settings.window,
        "stride": scores.settings.stride,
        "documents": int(stream.documents[-1]) + 1,
        "interval_over": f"{scores.unit}s",
        "units": len(numbers),
        "nats_per_token": per_token.value,
        "bytes": int(bytes_.sum()),
        "words": int(words.sum()),
        **_named("bits_per_byte", _scaled(nats, bytes_), lambda each: each / math.log(2)),
        **_named("byte_perplexity", _scaled(nats, bytes_), _exp),
        **_named("word_perplexity", _scaled(nats, words), _exp),
    }
    items = tuple(
        Item(
            f"{scores.unit} {number + 1}",
            float(total / count),
            {"nats": float(total), "tokens": int(count), "bytes": int(size)},
        )
        for number, total, count, size in zip(numbers, nats, tokens, bytes_, strict=True)
    )
    return TaskResult(
        name="perplexity",
        metric="perplexity",
        value=value,
        stderr=None if per_token.stderr is None else value * per_token.stderr,
        low=None if per_token.low is None else _exp(per_token.low),
        high=None if per_token.high is None else _exp(per_token.high),
        n=len(scores.losses),
        rows=scores.all_tokens,
        shots=0,
        version=_VERSION,
        seconds=round(scores.seconds, 3),
        energy_joules=scores.energy_joules,
        facts=facts,
        items=items,
    )


def difference(ours: Scores, theirs: Scores) -> tuple[Difference, str]:
    """What separates two models on the same text, and in which unit.

    With the same tokens it is nats per token over the same documents or windows. With two tokenizers it is bits per byte, over
    documents, or over pieces of equal size if there is one document only.

    Raises:
        OptionError: the tokenizers differ, and a limit takes other parts of the text for each.
    """
    if np.array_equal(ours.places, theirs.places) and np.array_equal(ours.stream.tokens, theirs.stream.tokens):
        _, owner = np.unique(ours.units, return_inverse=True)
        nats = [np.bincount(owner, scores.losses) for scores in (ours, theirs)]
        counts = np.bincount(owner)
        return paired_difference(*nats, counts=counts, higher_is_better=False), "nats per token"
    if ours.settings.limit is not None or ours.settings.tokens is not None:
        raise OptionError(
            f"{ours.model.name} and {theirs.model.name} have different tokenizers; so many tokens are another text for each",
            where="--limit, --tokens",
            next="leave them away, and cut the text instead",
        )
    rates = [_bits_per_byte(scores) for scores in (ours, theirs)]
    known = np.isfinite(rates[0]) & np.isfinite(rates[1])
    sizes = np.bincount(_pieces(ours.stream), ours.stream.bytes)[known]
    totals = [rate[known] * sizes for rate in rates]
    return paired_difference(*totals, counts=sizes, higher_is_better=False), "bits per byte"


def _bits_per_byte(scores: Scores) -> _Floats:
    """Of each document or piece, over its tokens that were scored; nan where there are none."""
    owner = _pieces(scores.stream)
    size = int(owner[-1]) + 1
    nats = np.bincount(owner[scores.places], scores.losses, minlength=size)
    bytes_ = np.bincount(owner[scores.places], scores.stream.bytes[scores.places], minlength=size)
    rates: _Floats = np.divide(nats, bytes_ * math.log(2), out=np.full(size, np.nan), where=bytes_ > 0)
    return rates


def _pieces(stream: Stream) -> Counts:
    if stream.documents[-1] > 0:
        return stream.documents
    ends = np.cumsum(stream.bytes)
    pieces: Counts = (np.maximum(ends - 1, 0) * _PIECES) // max(int(ends[-1]), 1)
    return pieces


def _scaled(nats: NDArray[Any], counts: NDArray[Any]) -> Estimate | None:
    return ratio_interval(nats, counts) if counts.sum() > 0 else None


def _named(name: str, estimate: Estimate | None, change: Any) -> dict[str, float | None]:
    ends = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    names = (name, f"{name}_low", f"{name}_high")
    return {key: None if end is None else change(end) for key, end in zip(names, ends, strict=True)}


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < _LARGEST else None


_Scored = tuple[Stream, list[int], list[Span], list[NDArray[np.floating]]]


def _score(
    path: Path, data: Paths, settings: Settings, device: str | None, dtype: str | None, plan: Mapping[str, Any] | None
) -> _Scored:
    import torch

    from deepen.likelihood import check_context, window_losses
    from deepen.model import load

    network, tokenizer = load(path, plan, dtype=dtype, device=device)
    if tokenizer is None:
        raise CheckpointError("the checkpoint has no tokenizer", where=path, next="put its tokenizer files beside the weights")
    check_context(network.config, settings.window, "--window")
    stream = read_stream(data, transformers_encoder(tokenizer), end_of_text=tokenizer.eos_token_id).first(settings.tokens)
    check_vocabulary(stream.tokens, network.get_input_embeddings().num_embeddings)
    chosen, windows = _windows(stream, settings)
    losses: list[NDArray[np.floating]] = []
    with progress("Scoring", sum(windows[number].end - windows[number].begin for number in chosen), "tokens") as advance:
        for span in (windows[number] for number in chosen):
            row = window_losses(network, torch.from_numpy(stream.tokens[None, span.begin : span.end]))
            losses.append(row[0, span.first - span.begin - 1 :].numpy())
            advance(span.end - span.begin)
    return stream, chosen, windows, losses


def _score_gguf(path: Path, data: Paths, settings: Settings) -> _Scored:
    from deepen.engine.libllama import window_log_likelihoods
    from deepen.engine.llamacpp import LlamacppEngine

    end_of_text = open_gguf(path).get("tokenizer.ggml.eos_token_id")
    with closing(LlamacppEngine(path, context=settings.window)) as engine:

        def encode(text: str) -> tuple[list[int], Counts]:
            ids, lengths = engine.tokenize_with_lengths(text)
            return ids, np.cumsum(lengths, dtype=np.int64)

        stream = read_stream(data, encode, end_of_text=end_of_text).first(settings.tokens)
    chosen, windows = _windows(stream, settings)
    parts = [windows[number] for number in chosen]
    rows = window_log_likelihoods(path, [stream.tokens[span.begin : span.end].tolist() for span in parts])
    losses: list[NDArray[np.floating]] = [
        -np.array(row[span.first - span.begin - 1 :]) for span, row in zip(parts, rows, strict=True)
    ]
    return stream, chosen, windows, losses


def _windows(stream: Stream, settings: Settings) -> tuple[list[int], list[Span]]:
    """The numbers of those that are scored, and all."""
    windows = spans(len(stream), settings.window, settings.stride)
    if not windows:
        raise DataError(f"{len(stream)} tokens leave nothing to score", next="give more text")
    return evenly_spaced(len(windows), settings.limit), windows
