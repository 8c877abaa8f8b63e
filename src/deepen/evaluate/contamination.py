"""Whether a model may have seen the benchmarks that it is judged by: in its training data, and by what it finds likely."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deepen.data.benchmarks import Row, read_benchmarks
from deepen.data.contamination import SHARE, Match, find_matches, index_benchmarks
from deepen.data.ngrams import LONGEST
from deepen.data.sources import Paths
from deepen.errors import CheckpointError, OptionError
from deepen.evaluate.results import Item, TaskResult
from deepen.evaluate.statistics import mean_interval, ratio_interval
from deepen.evaluate.tasks import check_limit, evenly_spaced
from deepen.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

LISTED = 100
"""Matching rows that are listed in the facts; the number of all is there too."""
LIKELIER, PREFIX, TOP = 0.1, 0.4, 50
"""Of SOLAR's tool: the share of neighbours that a row must not fall behind, the share of the row's words that they begin with,
and the likeliest tokens that each next one is drawn from."""
_ROUNDS = 5  # in which the neighbours are written: most rows are decided by the first ones
_OVERLAP_MEANS = (
    "share of the benchmark's rows that the training files repeat: runs of 13 words or more that both have (all words of a row"
    " of 8 to 12) cover four fifths of the row; 0 % = none"
)
_MIN_K_MEANS = (
    "share of rows that the model finds likelier, by Min-K% probability, than nine in ten continuations of their first words"
    " that the reference writes; above 90 % the benchmark was very likely learned"
)


def contamination(
    train_files: Paths, benchmarks: Paths, *, data: Path | None = None, share: float = SHARE
) -> dict[str, TaskResult]:
    """Compare training files with benchmarks by n-grams of words; see `deepen.data.contamination` for the rule.

    Args:
        train_files: see `find_matches`.
        benchmarks: see `read_benchmarks`.
        data: a folder with a folder for each benchmark; by default they are read from the Hub.
        share: of a row's words that must be in common runs; 0 for every row with a common n-gram.

    Returns:
        For each benchmark the share of its rows that training rows repeat. That is a count of all, not a sample, so it has no
        interval. Facts: `matches` (at most `LISTED`; `file`, `row`, `benchmark_row`, `share`, `words`), how many there are in
        all (`matches_found`), in how many training rows (`training_rows`); the same for matches with a smaller
        share (`partial`, `partial_found`); rows with too few words to be compared (`too_short`), and `meaning`. Rows are
        numbered from 1.

    Raises:
        DataError, MissingDependencyError, NetworkError, OptionError: as `read_benchmarks` and `find_matches`.
    """
    start = time.monotonic()
    index = index_benchmarks(read_benchmarks(benchmarks, data))
    matches = find_matches(index, train_files, share=0)
    seconds = (time.monotonic() - start) / len(index.rows)
    results = {}
    for name, rows in index.rows.items():
        own = [match for match in matches if match.benchmark == name]
        results[name] = _overlap(name, own, share, index.compared[name], rows, seconds)
    return results


def min_k(
    model: str | Path,
    reference: str | Path,
    benchmarks: Paths,
    *,
    data: Path | None = None,
    k: float = 20.0,
    neighbours: int = 20,
    limit: int | None = 100,
    device: str | None = None,
    dtype: str | None = None,
    plan: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, TaskResult]:
    """Ask whether a model knows a benchmark's rows better than text of their kind: Min-K% probability with a reference model.

    A text's score is the mean log-probability of the k % of its tokens that the model finds least likely (Shi et al. 2023,
    arXiv:2310.16789, section 3). The text is the question with its right answer. It is compared as in SOLAR's table 9 (Kim et
    al. 2023, arXiv:2312.15166), by the tool of Shi et al. for it (github.com/swj0419/detect-pretrain-code-contamination): the
    reference continues the first two fifths of the row's words several times to the row's length, and a row counts if fewer
    than a tenth of these neighbours have a higher score under the model than the row itself. That tool scores by the mean
    over all tokens, which the fact `all_tokens` does too, and takes a hundred neighbours. A row is done as soon as enough of
    them are found to decide.

    Args:
        model: what is judged: a checkpoint folder, a Hub id or a `.gguf` file.
        reference: a model that has not seen the benchmarks, such as the base.
        benchmarks: see `read_benchmarks`.
        data: a folder with a folder for each benchmark; by default they are read from the Hub.
        k: per cent of the tokens that make the score, at least one token.
        neighbours: continuations of each row, at most; with more of them the tenth is told more sharply.
        limit: so many rows of each benchmark, evenly spread; None for all.
        device: where both run; the CPU by default.
        dtype: what they are computed in; by default each in its own.
        plan: a layer plan for the model.
        seed: of the continuations.

    Returns:
        For each benchmark, as `NAME_min_k`, the share of rows that count, with its 95 % interval. Facts: `all_tokens` (the same
        by all tokens: `value`, `low`, `high`), `score`, `reference_score` and their `score_difference` (`value`, `low`,
        `high`) as means over the rows in nats per token, `reference`, `k`, `neighbours` and `meaning`.

    Raises:
        OptionError: k, the neighbours or the limit out of their ranges; a row is longer than a model's window.
        CheckpointError, UnsupportedModelError, PlanError: as `deepen.load`, or a model has no tokenizer.
        DataError, MissingDependencyError, NetworkError: as `read_benchmarks`.
    """
    from deepen.model import load

    _check(k, neighbours, limit)
    chosen = {
        name: ([rows[place] for place in evenly_spaced(len(rows), limit)], len(rows))
        for name, rows in read_benchmarks(benchmarks, data).items()
    }
    judge = _Judge(*load(model, plan, dtype=dtype, device=device), k=k)
    writer = _Judge(*load(reference, dtype=dtype, device=device), k=k)
    results = {}
    with progress("Comparing with the reference", sum(len(rows) for rows, _ in chosen.values()), "rows") as advance:
        for name, (rows, total) in chosen.items():
            start = time.monotonic()
            verdicts = []
            for row in rows:
                verdicts.append(_verdict(row, judge, writer, neighbours, seed))
                advance(1, name)
            task = f"{name}_min_k"
            results[task] = _knowledge(task, verdicts, total, time.monotonic() - start, str(reference), k, neighbours)
    return results


class _Verdict(NamedTuple):
    """What a row's comparison gave; pairs are by Min-K% and by all tokens.

    Attributes:
        row: of the benchmark.
        score: under the model, in nats per token.
        reference: under the reference.
        ahead: how many of the neighbours had a higher score.
        compared: how many were written until it was clear.
        counts: whether the row is ahead of nine in ten.
    """

    row: Row
    score: tuple[float, float]
    reference: tuple[float, float]
    ahead: tuple[int, int]
    compared: int
    counts: tuple[bool, bool]


class _Judge:
    """A model with its tokenizer, which scores texts and continues them."""

    def __init__(self, model: Any, tokenizer: Any, *, k: float) -> None:
        if tokenizer is None:
            raise CheckpointError(
                "the checkpoint has no tokenizer", where=model.name_or_path, next="put its tokenizer files beside the weights"
            )
        self._model, self._tokenizer, self._k = model, tokenizer, k

    def scores(self, texts: Sequence[str]) -> list[tuple[float, float]]:
        """Min-K% score and mean log-probability of each text; the first token of each is given."""
        import torch

        from deepen.data.text import IGNORED
        from deepen.likelihood import check_context, evaluating, token_losses

        rows = [self._tokenizer(text, verbose=False)["input_ids"] for text in texts]
        longest = max(map(len, rows))
        check_context(self._model.config, max(2, longest), "benchmark row, in tokens")
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full_like(tokens, IGNORED)
        for place, row in enumerate(rows):  # what follows a row's end is not seen by what is before it
            tokens[place, : len(row)] = torch.tensor(row, dtype=torch.long)
            labels[place, : max(0, len(row) - 1)] = tokens[place, 1 : len(row)]
        with evaluating(self._model):
            losses = token_losses(self._model, tokens.to(self._model.device), labels.to(self._model.device))
        return [self._score(losses[place, : len(row) - 1]) for place, row in enumerate(rows)]

    def _score(self, losses: Tensor) -> tuple[float, float]:
        logs = -losses.double().cpu().numpy()
        if not len(logs):
            return -math.inf, -math.inf
        lowest = np.sort(logs)[: max(1, int(len(logs) * self._k / 100))]
        return float(lowest.mean()), float(logs.mean())

    def continued(self, text: str, count: int) -> list[str]:
        """Continuations of the first words of a text, to about its length."""
        import torch

        words = text.split()
        prefix = math.ceil(len(words) * PREFIX)
        given = self._tokenizer(" ".join(words[:prefix]), return_tensors="pt", verbose=False).to(self._model.device)
        with torch.no_grad():
            written = self._model.generate(
                input_ids=given["input_ids"].expand(count, -1),
                attention_mask=given["attention_mask"].expand(count, -1),
                do_sample=True, temperature=1.0, top_k=TOP, top_p=1.0,
                min_new_tokens=1, max_new_tokens=max(1, len(words) - prefix),
                pad_token_id=self._tokenizer.eos_token_id,
            )  # fmt: skip
        texts: list[str] = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts


def _verdict(row: Row, judge: _Judge, writer: _Judge, neighbours: int, seed: int) -> _Verdict:
    import torch

    score, reference = judge.scores([row.solved])[0], writer.scores([row.solved])[0]
    enough = LIKELIER * neighbours
    ahead, compared = np.zeros(2, dtype=np.int64), 0
    torch.manual_seed(seed + row.number)
    while compared < neighbours and ahead.min() < enough:
        count = min(math.ceil(neighbours / _ROUNDS), neighbours - compared)
        others = judge.scores(writer.continued(row.solved, count))
        ahead += (np.array(others) > np.array(score)).sum(0)
        compared += count
    return _Verdict(
        row, score, reference, (int(ahead[0]), int(ahead[1])), compared, (bool(ahead[0] < enough), bool(ahead[1] < enough))
    )


def _knowledge(
    name: str, verdicts: Sequence[_Verdict], rows: int, seconds: float, reference: str, k: float, neighbours: int
) -> TaskResult:
    share, all_tokens = (mean_interval([float(each.counts[place]) for each in verdicts]) for place in range(2))
    difference = ratio_interval([each.score[0] - each.reference[0] for each in verdicts])
    items = tuple(
        Item(
            str(each.row.number),
            float(each.counts[0]),
            {
                "question": each.row.solved,
                "score": each.score[0],
                "reference_score": each.reference[0],
                "neighbours_ahead": each.ahead[0],
                "neighbours": each.compared,
            },
        )
        for each in verdicts
    )
    facts = {
        "all_tokens": all_tokens.shown(),
        "score": float(np.mean([each.score[0] for each in verdicts])),
        "reference_score": float(np.mean([each.reference[0] for each in verdicts])),
        "score_difference": difference.shown(),
        "reference": reference,
        "k": k,
        "neighbours": neighbours,
        "meaning": _MIN_K_MEANS,
    }
    return TaskResult(
        name=name, metric="min_k", value=share.value, stderr=share.stderr, low=share.low, high=share.high, n=len(verdicts),
        rows=rows, shots=0, version="min-k 1", seconds=round(seconds, 3), energy_joules=None, facts=facts, items=items,
    )  # fmt: skip


def _overlap(name: str, found: Sequence[Match], share: float, compared: Sequence[int], rows: int, seconds: float) -> TaskResult:
    matches, partial = ([match for match in found if (match.share >= share) is whole] for whole in (True, False))
    repeated = {match.benchmark_row for match in matches}
    by_row: dict[int, list[Match]] = {}
    for match in matches:
        by_row.setdefault(match.benchmark_row, []).append(match)
    facts = {
        "matches": [_listed(match) for match in matches[:LISTED]],
        "matches_found": len(matches),
        "training_rows": len({(match.file, match.row) for match in matches}),
        "partial": [_listed(match) for match in sorted(partial, key=lambda match: -match.share)[:LISTED]],
        "partial_found": len(partial),
        "too_short": rows - len(compared),
        "meaning": _OVERLAP_MEANS,
    }
    items = tuple(
        Item(str(row), float(row in repeated), {"matches": [_listed(match) for match in by_row.get(row, [])[:LISTED]]})
        for row in compared
    )
    return TaskResult(
        name=name, metric=f"repeated_{LONGEST}_grams", value=len(repeated) / max(1, len(compared)), stderr=None, low=None,
        high=None, n=len(compared), rows=rows, shots=0, version="n-grams 1", seconds=round(seconds, 3), energy_joules=None,
        facts=facts, items=items,
    )  # fmt: skip


def _listed(match: Match) -> dict[str, Any]:
    return {key: value for key, value in match._asdict().items() if key != "benchmark"}


def _check(k: float, neighbours: int, limit: int | None) -> None:
    if not 0 < k <= 100:
        raise OptionError(f"{k} is not above 0 and up to 100", where="k", next="use 20")
    if neighbours < 10:
        raise OptionError(f"of {neighbours} neighbours there is no tenth", where="neighbours", next="use 10 or more")
    check_limit(limit)
