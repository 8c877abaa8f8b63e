"""Maths problems made from others by a model, with answers that are checked against their seeds'; and preferences from them.

What SOLAR calls Synth. Math-Instruct and Synth. Math-Alignment (Kim et al. 2023, arXiv:2312.15166, sections 3 and 4), by the
transformations of MetaMath (Yu et al. 2023, arXiv:2309.12284, section 3).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.data.contamination import BenchmarkIndex, open_index, without_matches
from deepen.engine.openai import KEY_VARIABLES
from deepen.errors import NetworkError, OptionError
from deepen.journal import Journal
from deepen.output import check_target, new_file, partial_path
from deepen.progress import say
from deepen.synthesize import judge
from deepen.synthesize.answer import Answer
from deepen.synthesize.check import Result, check_values, drop_benchmarks, drop_repeated
from deepen.synthesize.client import Client
from deepen.synthesize.gather import Sampling, Task, gather, replay, tasks_of, used_keys
from deepen.synthesize.kinds import KINDS, Drawing
from deepen.synthesize.report import Usage, by_kind, markdown, samples_of, usage_of
from deepen.synthesize.seeds import Seed, read_seeds
from deepen.synthesize.similar import Similar

__all__ = ["Synthesis", "synthesize"]


@dataclass(frozen=True)
class Synthesis:
    """What a synthesis came to.

    Attributes:
        out: the rows.
        pairs_out: the preferences, if they were asked for.
        report: what lies beside `out` as `NAME.report.json`, and for people as `NAME.report.md`: seeds and why some were left
            out, drafts, `kept` and `acceptance_rate` in all and by kind with the reasons of refusals, requests, tokens, cost,
            and 20 samples.
        asked: requests that this run was answered; the others had been paid for.
        retried: requests that were sent again.
        seconds: of this run.
    """

    out: Path
    pairs_out: Path | None
    report: Mapping[str, Any]
    asked: int
    retried: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All of it as one object."""
        run = {"asked": self.asked, "retried": self.retried, "seconds": self.seconds}
        return {"out": self.out, "pairs_out": self.pairs_out, **self.report, **run}


def synthesize(
    out: str | Path,
    *,
    seeds: str | Path,
    endpoint: str,
    model: str | None = None,
    kinds: str | Sequence[str] = tuple(KINDS),
    samples: int = 1,
    pairs: str | Path | None = None,
    limit: int | None = None,
    skip_unanswered: bool = False,
    exclude_benchmarks: Sequence[str | Path] | None = None,
    similarity: float = 0.8,
    parallel: int = 8,
    max_new_tokens: int = 1024,
    temperature: float = 0.7,
    seed: int = 0,
    timeout: float = 600.0,
    retries: int = 5,
    skip_failed: bool = False,
    price: tuple[float, float] | None = None,
    api_key_file: str | Path | None = None,
    cache: str | Path | None = None,
    overwrite: bool = False,
) -> Synthesis:
    r"""Make maths problems with checked answers from seed problems, through an endpoint of OpenAI's protocol.

    A row is kept only if its answer ends with the right value: the seed's, or, where a number of the problem was masked and is
    asked for, that number. Every answer is on the disk when it has arrived, under the SHA-256 of what was asked, so nothing is
    paid for twice: a run that was killed is continued by the same call and writes the same bytes, and another call with more
    kinds or samples asks only for what is new. A kill loses at most the requests that were on their way.

    Args:
        out: the new file of rows for `instruct`: `messages` (question and answer), `kind`, `sample`, `seed_row`, `seed_id`,
            `seed_hash`, `final`, `model` and `key`, the hash of the request; in the order of the seeds.
        seeds: problems with answers; see `read_seeds`.
        endpoint: its URL, with or without `/v1`. Its key is read from `api_key_file`, `DEEPEN_API_KEY` or `OPENAI_API_KEY`.
        model: the model's name there; the first that the endpoint lists unless given.
        kinds: of `rephrase` (the question in other words), `answer` (another answer to it), `self-verification` and `backward`
            (a number is masked and asked for); names, or one text with commas.
        samples: drafts of each kind for each seed. Those of the last two kinds mask different numbers.
        pairs: also write preferences for `align`: the rephrased question, its answer as `chosen` and the seed's as `rejected`.
        limit: use only the first seeds.
        skip_unanswered: leave seeds without an answer out instead of refusing them.
        exclude_benchmarks: benchmarks, by name or as folders or files, that no seed and no row may repeat; see `instruct`.
        similarity: from which Jaccard index of the sets of runs of three words on, with the same numbers, one question repeats
            another.
        parallel: the most requests that are open at once.
        max_new_tokens: longest answer; one that is cut off is refused.
        temperature: of the sampling.
        seed: of the sampling, and of which number is masked; another one asks for other answers.
        timeout: seconds without a byte after which a request is given up.
        retries: how often a request is sent again after a time-out, a cut connection, an answer that cannot be read, or
            HTTP 429 or 5xx; after 0.5, 1, 2, … s, shortened at random, and not before a `Retry-After`.
        skip_failed: go without drafts whose requests got no usable answer, instead of ending before `out` is written.
        price: of a million tokens of prompts and of answers, for `cost`.
        api_key_file: a file with the key.
        cache: the file of answers; `NAME.answers.jsonl` beside `out` unless given.
        overwrite: replace `out`, its report and `pairs`; answers are used again.

    Returns:
        What it came to. Nothing kept is a result, too: `out` is empty then.

    Raises:
        OptionError: an option out of its range, no URL, or a missing key.
        DataError: seeds are missing, malformed or without answers (by row), or the endpoint refuses a request.
        OutputError: an output exists, or another run writes it.
        NetworkError: the endpoint does not answer; what it answered is kept.
        StorageError: the disk is full; the same.
    """
    begin = time.monotonic()
    names = _check(kinds, samples, parallel, max_new_tokens, temperature, seed, timeout, retries, similarity, limit, price)
    out = check_target(out, overwrite=overwrite)
    report_files = [out.with_name(f"{out.stem}.report{ending}") for ending in (".json", ".md")]
    pair_files = [] if pairs is None else [Path(pairs)]
    cache = Path(cache) if cache is not None else out.with_name(f"{out.stem}.answers.jsonl")
    files = [out, *report_files, *pair_files]
    _check_names([*files, cache], Path(seeds))
    # rows that are written, but have not appeared, are of a run that was killed while its files appeared one after the other
    partial = partial_path(out)
    begun = partial.is_file() and partial.stat().st_size > 0
    client = Client(endpoint, _key(api_key_file), timeout=timeout, retries=retries)
    ours: list[Path] = []

    def take_back(kind: object, *_: object) -> None:
        if kind is not None and not out.exists():  # a set of files that did not become whole would be refused as existing
            for file in ours:
                file.unlink(missing_ok=True)

    with ExitStack() as stack:
        stack.push(take_back)
        # the rows appear last of all, so that whoever sees them sees everything
        targets = [stack.enter_context(new_file(file, overwrite=overwrite or (begun and file != out))) for file in files]
        ours += [file for file in files[1:] if begun or not file.exists()]
        answers = stack.enter_context(Journal(cache))
        benchmarks = open_index(exclude_benchmarks) if exclude_benchmarks else None
        used, left_out = _seeds(seeds, limit, similarity, benchmarks, skip_unanswered=skip_unanswered)
        sampling = Sampling(model or client.first_model(), max_new_tokens, temperature)
        tasks = tasks_of(used, names, samples, Drawing(0, seed, similarity))
        before = len(answers)
        if before:
            say(f"{before:,} answers are there already, in {cache}")
        failed = gather(tasks, sampling, client, answers, parallel=parallel)
        if failed and not skip_failed:
            raise NetworkError(
                f"{len(failed):,} requests got no usable answer in {retries + 1} tries ({failed[0]});"
                f" {len(answers):,} answers are kept",
                where=client.where,
                next="run the same command again to ask only for these, or with --skip-failed to go without them",
            )
        results = check_values((task, replay(task, sampling, answers)) for task in tasks)
        results = drop_repeated(results, used, similarity)
        if benchmarks is not None:
            results = drop_benchmarks(results, benchmarks)
        spent = usage_of((Answer(**answers.get(key)) for key in used_keys(tasks, sampling, answers)), price)
        preferences = _preferences(results)
        report = _report(results, names, len(used), left_out, sampling, spent, len(preferences) if pairs is not None else None)
        _write_lines(targets[0], [_row(result, sampling.model) for result in results if result.kept])
        targets[1].write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        targets[2].write_text(markdown(report), encoding="utf-8")
        if pair_files:
            _write_lines(targets[3], preferences)
        asked = len(answers) - before
    return Synthesis(out, pair_files[0] if pair_files else None, report, asked, client.retried, time.monotonic() - begin)


def _check(
    kinds: str | Sequence[str],
    samples: int,
    parallel: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    timeout: float,
    retries: int,
    similarity: float,
    limit: int | None,
    price: tuple[float, float] | None,
) -> list[str]:
    """Refuse what is out of range; the kinds as names."""
    least = {"--samples": samples, "--parallel": parallel, "--max-new-tokens": max_new_tokens, "--limit": limit}
    for option, number in least.items():
        if number is not None and number < 1:
            raise OptionError(f"{number} is too small", where=option, next="use 1 or more")
    if seed < 0 or retries < 0:
        raise OptionError("below 0", where="--seed" if seed < 0 else "--retries", next="use 0 or more")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise OptionError(f"{temperature} is no temperature", where="--temperature", next="use 0 or more")
    if not (math.isfinite(timeout) and timeout > 0):
        raise OptionError(f"{timeout} is no time", where="--timeout", next="give seconds, more than 0")
    if not 0 < similarity <= 1:
        raise OptionError(f"{similarity} is no share", where="--similarity", next="use more than 0 and at most 1")
    if price is not None and not (len(price) == 2 and all(math.isfinite(each) and each >= 0 for each in price)):
        raise OptionError("not two prices", where="--price", next="write IN,OUT per million tokens, such as 0.15,0.6")
    names = [name.strip() for name in (kinds.split(",") if isinstance(kinds, str) else kinds)]
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        told = f"{unknown[0]!r} is no kind" if unknown else "no kind"
        raise OptionError(told, where="--kinds", next=f"use some of {','.join(KINDS)}")
    return list(dict.fromkeys(names))


def _check_names(files: Sequence[Path], seeds: Path) -> None:
    """No two files are one."""
    places = [file.absolute() for file in (*files, seeds)]
    for number, place in enumerate(places):
        if place in places[:number] or (number < len(files) and place.exists() and seeds.exists() and place.samefile(seeds)):
            raise OptionError("this file would be two things at once", where=place, next="choose another name")


def _key(file: str | Path | None) -> str | None:
    if file is None:
        return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
    key = Path(file).read_text(encoding="utf-8").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise OptionError("a key is printable ASCII without spaces", where=file, next="write it alone into the file")
    return key


def _seeds(
    path: str | Path, limit: int | None, similarity: float, benchmarks: BenchmarkIndex | None, *, skip_unanswered: bool
) -> tuple[list[Seed], dict[str, int]]:
    """The seeds that are used, and how many were left out for each reason; before anything is paid for."""
    seeds, unanswered = read_seeds(path, skip_unanswered=skip_unanswered)
    read = seeds[:limit]
    kept, before = [], Similar(similarity)
    for seed in read:
        if not before.has(seed.question):
            before.add(seed.question)
            kept.append(seed)
    repeated = len(read) - len(kept)
    if repeated:
        say(f"{repeated:,} seeds repeat others and are left out")
    left = kept
    if benchmarks is not None:
        left, _ = without_matches(kept, lambda seed: f"{seed.question}\n{seed.solution}", benchmarks, what="seeds")
    return left, {"unanswered": unanswered, "repeated": repeated, "benchmarks": len(kept) - len(left)}


def _row(result: Result, model: str) -> dict[str, Any]:
    task: Task = result.task
    return {
        "messages": [{"role": "user", "content": result.question}, {"role": "assistant", "content": result.answer}],
        "kind": task.kind,
        "sample": task.drawing.sample,
        "seed_row": task.seed.number,
        "seed_id": task.seed.id,
        "seed_hash": task.seed.hash,
        "final": result.final,
        "model": model,
        "key": result.key,
    }


def _preferences(results: Sequence[Result]) -> list[dict[str, Any]]:
    """SOLAR's Synth. Math-Alignment (section 3): the rephrased question, its answer preferred to the seed's own."""
    return [
        {
            "prompt": [{"role": "user", "content": result.question}],
            "chosen": [{"role": "assistant", "content": result.answer}],
            "rejected": [{"role": "assistant", "content": result.task.seed.solution}],
            "seed_row": result.task.seed.number,
            "seed_id": result.task.seed.id,
            "key": result.key,
        }
        for result in results
        if result.kept and result.task.kind == "rephrase" and result.answer.strip() != result.task.seed.solution.strip()
    ]


def _report(
    results: Sequence[Result],
    kinds: Sequence[str],
    seeds: int,
    left_out: Mapping[str, int],
    sampling: Sampling,
    spent: Usage,
    pairs: int | None,
) -> dict[str, Any]:
    kept = sum(result.kept for result in results)
    return {
        "model": sampling.model,
        "seeds": seeds,
        "seeds_left_out": dict(left_out),
        "drafts": len(results),
        "kept": kept,
        "acceptance_rate": kept / len(results) if results else 0.0,
        "kinds": by_kind(results, kinds),
        "pairs": pairs,
        **vars(spent),
        "checked_by": ["exact values", *(["math-verify"] if judge.is_available() else [])],
        "samples": samples_of(results),
    }


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
