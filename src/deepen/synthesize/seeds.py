"""Seed problems with answers, in the layouts that people publish them in; problems without an answer are refused by row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.data.chat import read_text
from deepen.data.rows import Layouts, read_rows
from deepen.data.values import Value, final_answer, is_understood, read_value
from deepen.errors import DataError

_ANSWERS = ("final", "final_answer", "expected_answer", "answer")
_SOLUTIONS = ("solution", "response", "output", "answer")
_LAYOUTS: Layouts = {
    name: ((question,), (*dict.fromkeys(_ANSWERS + _SOLUTIONS), "id", "unique_id"))
    for name, question in {
        "questions": "question", "problems": "problem", "queries": "query", "instructions": "instruction", "prompts": "prompt",
    }.items()
}  # fmt: skip
_NAMED = 10  # rows that are named in a message


@dataclass(frozen=True)
class Seed:
    """A problem with its answer.

    Attributes:
        number: of the row in its file, from 1.
        id: as the row gives it, or its number.
        question: as it stands in the row.
        solution: the whole answer, as it stands there.
        final: the final value of it, as it is written.
        value: the same as it is compared.
        hash: SHA-256 of question and solution.
    """

    number: int
    id: str
    question: str
    solution: str
    final: str
    value: Value
    hash: str


def read_seeds(path: str | Path, *, skip_unanswered: bool = False) -> tuple[list[Seed], int]:
    r"""Read problems from a `.json`, `.jsonl` or `.parquet` file, or a data set of the Hub.

    The problem is the column `question`, `problem`, `query`, `instruction` or `prompt`. The final value is `final`,
    `final_answer` or `expected_answer`; or else what `solution`, `response`, `output` or `answer` ends with (GSM8K's `####`,
    MATH's \boxed{}, MetaMath's "The answer is:"); or all of `answer`.

    Args:
        path: the file.
        skip_unanswered: leave problems without an answer out, and count them, instead of refusing them.

    Returns:
        The seeds, and how many were left out.

    Raises:
        DataError: the file is missing, malformed, or has problems without an answer; the message names the rows.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
    """
    unanswered: list[int] = []

    def read(row: Mapping[str, Any], layout: str, where: str) -> Seed | None:
        number = int(where.rpartition(" ")[2])
        question = row[_LAYOUTS[layout][0][0]]
        seed = _seed(number, row, read_text(question, where).strip())
        if seed is None:
            unanswered.append(number)
        return seed

    try:
        [seeds] = read_rows(path, _LAYOUTS, read, reason="have no answer")
    except DataError as error:
        raise (_without_answers(path, unanswered) if "have no answer" in error.what else error) from None
    if unanswered and not skip_unanswered:
        raise _without_answers(path, unanswered)
    return seeds, len(unanswered)


def _without_answers(path: str | Path, rows: list[int]) -> DataError:
    named = ", ".join(map(str, rows[:_NAMED])) + (f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else "")
    count = f"{len(rows):,} problems have" if len(rows) > 1 else "1 problem has"
    return DataError(
        f"{count} no answer that ends with a value: row{'s' * (len(rows) > 1)} {named}",
        where=path,
        next="give each an answer (#### 42, \\boxed{42}, or a column `final`), or pass --skip-unanswered",
    )


def _seed(number: int, row: Mapping[str, Any], question: str) -> Seed | None:
    texts = {name: _text(row.get(name)) for name in (*_ANSWERS, *_SOLUTIONS)}
    solution = next((texts[name] for name in _SOLUTIONS if texts[name]), "")
    final = next((texts[name] for name in _ANSWERS[:-1] if texts[name]), None)
    if final is None and texts["answer"] and texts["answer"] != solution and len(texts["answer"]) <= 100:
        final = texts["answer"]
    if final is None:
        final = final_answer(solution)
    if final is None and solution == texts["answer"] and is_understood(read_value(solution)):
        final = solution
    if not final:
        return None
    name = next((str(row[key]) for key in ("id", "unique_id") if row.get(key) is not None), str(number))
    digest = hashlib.sha256(f"{question}\0{solution or final}".encode()).hexdigest()
    return Seed(number, name, question, solution or final, final, read_value(final), digest)


def _text(value: object) -> str:
    text = "" if value is None or isinstance(value, bool | dict | list) else str(value).strip()
    return text.encode(errors="replace").decode()
