"""What plans are scored on: windows of text, answers in chats, questions with choices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepen.data.chat import read_conversations
from deepen.data.rows import Layouts, malformed, read_rows
from deepen.data.template import encode_conversations, find_template, limit_rows
from deepen.data.text import IGNORED, Paths, Tokens, encoder, read_tokens
from deepen.errors import DataError, OptionError

OBJECTIVES = ("perplexity", "choices", "mixture")
_QUESTIONS: Layouts = {
    "ARC": (("question", "choices", "answerKey"), ()),
    "question, choices and answer": (("question", "choices", "answer"), ()),
    "HellaSwag": (("ctx", "endings", "label"), ()),
}


@dataclass(frozen=True)
class Unit:
    """What is sampled as a whole: a window, a conversation, or a question with one row for each choice.

    Attributes:
        rows: token ids and labels (as for `token_losses`), each of shape (length,). The last token of a text, from
            which nothing is predicted, is no part of them: as no token looks ahead, leaving it out changes nothing.
        right: which row is the right choice; None where every label counts alike.
    """

    rows: tuple[tuple[Tokens, Tokens], ...]
    right: int | None = None

    @property
    def counts(self) -> NDArray[np.int64]:
        """Labels of each row."""
        return np.array([(labels != IGNORED).sum() for _, labels in self.rows])

    @property
    def tokens(self) -> int:
        """Tokens that are read."""
        return sum(len(tokens) for tokens, _ in self.rows)


Part = tuple[Unit, ...]
"""Units of one kind; a score is the mean over parts of their means."""


def read_parts(
    data: Paths, tokenizer: Any, *, objective: str, window: int, longest: int, template: str, ends: Sequence[int]
) -> list[Part]:
    """Read data as parts: text in windows, chats, questions. What a file is, its rows say.

    Args:
        data: text as for `read_tokens`, chats as for `read_conversations`, or rows of questions with choices: `question`,
            `choices` and `answer` (or `answerKey`, or HellaSwag's `ctx`, `endings` and `label`).
        tokenizer: a transformers tokenizer.
        objective: `perplexity` takes text and chats, `choices` questions, `mixture` both.
        window: tokens of a window; a rest that fills none is left out.
        longest: tokens of a chat or of a question with a choice; longer ones are left out.
        template: of chats, as for `find_template`.
        ends: of answers, as for `encode_conversations`.

    Raises:
        DataError: the data is missing, malformed, or of another kind than the objective takes.
        OptionError: the objective is unknown.
    """
    if objective not in OBJECTIVES:
        raise OptionError(f"no objective is called {objective!r}", where="--objective", next=f"use {', '.join(OBJECTIVES)}")
    paths = [data] if isinstance(data, str | Path) else list(data)
    by_kind: dict[str, list[str | Path]] = {}
    for path in paths:
        by_kind.setdefault(_kind(Path(path)), []).append(path)
    wanted = {"perplexity": {"text", "chat"}, "choices": {"choices"}, "mixture": {"text", "chat", "choices"}}[objective]
    for kind in by_kind:
        if kind not in wanted:
            advice = "give a file of text or chats" if kind == "choices" else "give rows with question, choices and answer"
            raise DataError(
                f"{kind} is nothing for the objective {objective}",
                where=by_kind[kind][0],
                next=f"{advice}, or another --objective",
            )
    if objective == "mixture" and ("choices" not in by_kind or len(by_kind) < 2):
        raise DataError("a mixture needs text or chats, and questions with choices", next="give --data one of each")
    parts: list[Part] = []
    if "text" in by_kind:
        stream = read_tokens(by_kind["text"], encoder(tokenizer), end_of_text=tokenizer.eos_token_id)
        parts.append(tuple(_window(stream[at : at + window]) for at in range(0, len(stream) - window + 1, window)))
    if "chat" in by_kind:
        rows = encode_conversations(
            read_conversations(by_kind["chat"]), tokenizer, find_template(template, tokenizer), ends=ends
        )
        chats = limit_rows(rows, longest, too_long="drop")
        parts.append(tuple(Unit(((row.tokens[:-1], row.labels[:-1]),)) for row in chats))
    if "choices" in by_kind:
        encode = _with_beginning(tokenizer)

        def read(row: Mapping[str, Any], layout: str, where: str) -> Unit | None:
            unit = _question(row, layout, where, encode)
            return unit if max(len(tokens) for tokens, _ in unit.rows) <= longest else None

        found = read_rows(by_kind["choices"], _QUESTIONS, read, reason=f"are longer than {longest} tokens")
        parts.append(tuple(unit for units in found for unit in units))
    return parts


def first_tokens(part: Part, tokens: int) -> tuple[Part, Part]:
    """The first units of a part, up to so many tokens, and the rest."""
    total = np.cumsum([unit.tokens + len(unit.rows) for unit in part])  # with the last of each row
    count = int(np.searchsorted(total, tokens, side="right"))
    return part[:count], part[count:]


def _window(tokens: Tokens) -> Unit:
    return Unit(((tokens[:-1], tokens[1:]),))


def _kind(path: Path) -> str:
    columns = _columns(path)
    if columns is None or "text" in columns:
        return "text"
    return "choices" if any(columns >= set(wanted) for wanted, _ in _QUESTIONS.values()) else "chat"


def _columns(path: Path) -> set[str] | None:
    """The columns of a file's first row; None where there are no rows, or they cannot be told without reading it all."""
    if not path.is_file() or path.suffix not in {".json", ".jsonl", ".parquet"}:
        return None
    if path.suffix == ".parquet":
        try:
            from pyarrow.parquet import read_schema

            return set(read_schema(path).names)
        except (ImportError, OSError, ValueError):  # whoever reads it next says so
            return None
    with path.open("rb") as stream:
        text = stream.read() if path.suffix == ".json" else next((line for line in stream if line.strip()), b"")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None if path.suffix == ".jsonl" else set()
    row = value[0] if isinstance(value, list) and value else value
    return set(row) if isinstance(row, dict) else set()


def _with_beginning(tokenizer: Any) -> Any:
    """Text to tokens, beginning as the tokenizer lets every text begin."""
    plain, bos = encoder(tokenizer), tokenizer.bos_token_id
    starts = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]
    return lambda text: [bos, *plain(text)] if starts else plain(text)


def _question(row: Mapping[str, Any], layout: str, where: str, encode: Any) -> Unit:
    if layout == "HellaSwag":
        context, choices, answer = row["ctx"], row["endings"], row["label"]
        names = [str(number) for number in range(len(choices))] if isinstance(choices, list) else []
    else:
        context, choices = f"Question: {row['question']}\nAnswer:", row["choices"]
        answer = row["answerKey" if layout == "ARC" else "answer"]
        names = []
        if isinstance(choices, Mapping):
            choices, names = choices.get("text"), list(map(str, choices.get("label") or []))
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each.strip() for each in choices):
        raise malformed("the choices are not a list of at least two texts", where)
    names = names or [chr(ord("A") + number) for number in range(len(choices))]
    if isinstance(answer, int) and 0 <= answer < len(choices):
        right = answer
    elif str(answer) in names:
        right = names.index(str(answer))
    elif answer in choices:
        right = choices.index(answer)
    else:
        raise malformed(f"the answer {answer!r} is none of the choices", where)
    prompt = np.asarray(encode(str(context)), dtype=np.int32)
    return Unit(tuple(_choice(prompt, np.asarray(encode(f"{context} {each}"), dtype=np.int32)) for each in choices), right)


def _choice(prompt: Tokens, whole: Tokens) -> tuple[Tokens, Tokens]:
    length = min(len(prompt), len(whole) - 1)
    different = np.flatnonzero(prompt[:length] != whole[:length])
    start = max(1, int(different[0]) if len(different) else length)
    labels = whole[1:].copy()
    labels[: start - 1] = IGNORED
    return whole[:-1], labels
