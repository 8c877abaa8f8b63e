"""What a synthesis came to: how many drafts of each kind were kept, why others were not, what it cost, and samples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepen.synthesize.answer import Answer
from deepen.synthesize.check import Result

SAMPLES = 20
_NO_NUMBER = "-"


@dataclass(frozen=True)
class Usage:
    """What the answers that drafts were made of cost, in whichever run they were paid for.

    Attributes:
        requests: that were answered.
        prompt_tokens: of those answers that say.
        completion_tokens: the same.
        uncounted_requests: answers that do not say.
        cost: by the prices given; None without.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    uncounted_requests: int
    cost: float | None


def usage_of(answers: Iterable[Answer], price: tuple[float, float] | None) -> Usage:
    """The sums over answers; `price` is that of a million tokens of prompts and of answers."""
    requests = prompts = completions = uncounted = 0
    for answer in answers:
        requests += 1
        uncounted += answer.prompt_tokens is None or answer.completion_tokens is None
        prompts += answer.prompt_tokens or 0
        completions += answer.completion_tokens or 0
    cost = None if price is None else (prompts * price[0] + completions * price[1]) / 1e6
    return Usage(requests, prompts, completions, uncounted, cost)


def by_kind(results: Sequence[Result], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each kind how many drafts there were, how many are kept, their share, and how many were refused for each reason."""
    counts = {}
    for kind in kinds:
        of_kind = [result for result in results if result.task.kind == kind]
        kept = sum(result.kept for result in of_kind)
        reasons = Counter(result.reason for result in of_kind if not result.kept)
        counts[kind] = {
            "drafts": len(of_kind),
            "kept": kept,
            "acceptance_rate": kept / len(of_kind) if of_kind else 0.0,
            "refused": dict(sorted(reasons.items(), key=lambda each: (-each[1], each[0]))),
        }
    return counts


def samples_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Twenty results, half of them kept where there are as many."""
    kept = [result for result in results if result.kept]
    refused = [result for result in results if not result.kept]
    of_kept = min(len(kept), max(SAMPLES // 2, SAMPLES - len(refused)))
    chosen = _draw(kept, of_kept) + _draw(refused, SAMPLES - of_kept)
    return [
        {
            "kept": result.kept,
            "reason": result.reason or None,
            "kind": result.task.kind,
            "seed_row": result.task.seed.number,
            "seed_question": result.task.seed.question,
            "question": result.question,
            "answer": result.answer,
            "final": result.final,
            "expected": result.gold,
        }
        for result in chosen
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# Synthetic maths",
        "",
        f"{report['kept']:,} of {report['drafts']:,} drafts from {report['seeds']:,} seeds are kept; model {report['model']}.",
        "",
        "| kind | drafts | kept | acceptance |",
        "|---|---:|---:|---:|",
    ]
    for kind, counts in report["kinds"].items():
        lines.append(f"| {kind} | {counts['drafts']:,} | {counts['kept']:,} | {counts['acceptance_rate']:.1%} |")
    lines += ["", "| kind | refused because | drafts |", "|---|---|---:|"]
    for kind, counts in report["kinds"].items():
        lines += [f"| {kind} | {reason} | {number:,} |" for reason, number in counts["refused"].items()]
    cost = "" if report["cost"] is None else f", cost {report['cost']:.4f}"
    lines += [
        "",
        f"{report['requests']:,} answers, {report['prompt_tokens']:,} tokens of prompts and {report['completion_tokens']:,} of"
        f" answers{cost}.",
    ]
    if report["uncounted_requests"]:
        lines += ["", f"The endpoint did not count the tokens of {report['uncounted_requests']:,} answers."]
    if report["pairs"] is not None:
        lines += ["", f"{report['pairs']:,} preference pairs."]
    for number, sample in enumerate(report["samples"], start=1):
        verdict = "kept" if sample["kept"] else f"refused: {sample['reason']}"
        lines += ["", f"## {number}. {sample['kind']}, seed {sample['seed_row']}: {verdict}", ""]
        lines += _block("Seed", sample["seed_question"]) + _block("Question", sample["question"])
        lines += _block("Answer", sample["answer"])
        lines += [f"Final value: {_code(sample['final'])}; expected: {_code(sample['expected'])}"]
    return "\n".join(lines) + "\n"


def _draw(results: Sequence[Result], count: int) -> list[Result]:
    """Some results, drawn by a hash: every kind has its chance, and a run that is continued draws the same."""

    def rank(place: int) -> bytes:
        task = results[place].task
        return hashlib.sha256(f"{task.seed.hash}\0{task.kind}\0{task.drawing.sample}".encode()).digest()

    return [results[place] for place in sorted(sorted(range(len(results)), key=rank)[:count])]


def _block(title: str, text: str) -> list[str]:
    if not text:
        return []
    return [f"{title}:", "", *(f"    {line}" for line in text.splitlines()), ""]


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`" if text else _NO_NUMBER
