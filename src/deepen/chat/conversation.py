"""A conversation as a value: its turns, what can be done to them, and how they stand in a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepen.data.chat import check_order, openai_turn, read_turns
from deepen.engine import Message
from deepen.errors import DataError, OptionError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side said, and for an answer what it took."""

    role: Role
    content: str
    stopped: bool = False
    """An answer that was stopped before the model ended it, or that broke off."""
    completion_tokens: int | None = None
    """None where they are not known."""
    seconds: float = 0.0
    energy_joules: float | None = None


Turns = tuple[Turn, ...]
"""A conversation: at most one system turn, then the user and the assistant; a question may have no answer (yet)."""


def whole(text: str) -> str:
    """A text without lone surrogates, which bytes that are no UTF-8 become on the way in and no file can hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if not text.isascii() else text


def system_text(turns: Turns) -> str | None:
    """The system turn's text, if there is one."""
    return turns[0].content if turns and turns[0].role == "system" else None


def with_system(turns: Turns, text: str | None) -> Turns:
    """The same conversation under another system turn, or under none."""
    rest = turns[1:] if system_text(turns) is not None else turns
    return rest if text is None else (Turn("system", text), *rest)


def last_question(turns: Turns) -> int | None:
    """Where the user's last turn stands."""
    return next((place for place in reversed(range(len(turns))) if turns[place].role == "user"), None)


def exchanges(turns: Turns) -> Turns:
    """The turns that make sense to a model: questions without an answer are left out, but for the last turn of all."""
    return tuple(
        turn
        for place, turn in enumerate(turns)
        if turn.role != "user" or place + 1 == len(turns) or turns[place + 1].role == "assistant"
    )


def messages(turns: Turns) -> list[Message]:
    """What an engine is asked with."""
    return [{"role": turn.role, "content": turn.content} for turn in exchanges(turns)]


def to_rows(turns: Turns) -> list[dict[str, Any]]:
    """The turns of `exchanges` in the layout `messages`; what was stopped is marked."""
    return [
        {"role": turn.role, "content": turn.content} | ({"stopped": True} if turn.stopped else {}) for turn in exchanges(turns)
    ]


def to_jsonl(turns: Turns) -> str:
    """One line in the layout `messages`, which `deepen instruct --data` reads."""
    return json.dumps({"messages": to_rows(turns)}, ensure_ascii=False) + "\n"


_TITLES: dict[Role, str] = {"system": "System", "user": "User", "assistant": "Assistant"}
_STOPPED = " (stopped)"
_HEADING = re.compile(r"^## (System|User|Assistant)( \(stopped\))?$", re.MULTILINE)
_LIKE_HEADING = re.compile(r"^(\\*## (?:System|User|Assistant)(?: \(stopped\))?)$", re.MULTILINE)
_ESCAPED_HEADING = re.compile(r"^\\(\\*## (?:System|User|Assistant)(?: \(stopped\))?)$", re.MULTILINE)


def to_markdown(turns: Turns) -> str:
    """The conversation for people: a heading for each turn. `from_markdown` reads it back exactly.

    A line of a turn that looks like such a heading gets a backslash before it.
    """
    return "\n".join(
        f"## {_TITLES[turn.role]}{_STOPPED * turn.stopped}\n\n" + _LIKE_HEADING.sub(r"\\\1", turn.content) + "\n"
        for turn in turns
    )


def from_markdown(text: str) -> Turns:
    """What `to_markdown` wrote; what stands before the first heading is no part of it."""
    headings = list(_HEADING.finditer(text))
    ends = [*(heading.start() for heading in headings[1:]), len(text) + 1][: len(headings)]
    roles: dict[str, Role] = {title: role for role, title in _TITLES.items()}
    return tuple(
        Turn(
            roles[heading[1]],
            _ESCAPED_HEADING.sub(r"\1", text[heading.end() : end - 1].removeprefix("\n\n").removesuffix("\n")),
            stopped=heading[2] is not None,
        )
        for heading, end in zip(headings, ends, strict=True)
    )


def to_file_text(turns: Turns, path: Path) -> str:
    """The conversation as a file of this name holds it: Markdown or JSONL.

    Raises:
        OptionError: the name ends in neither.
    """
    return to_markdown(turns) if _kind(path) == "markdown" else to_jsonl(turns)


def read_file(path: Path) -> tuple[Turns, str]:
    """A conversation from a file that `/save` wrote, or from any JSONL file of `messages`, and a word on what was left.

    Raises:
        DataError: the file cannot be read, or holds none.
        OptionError: its name ends in neither `.md` nor `.jsonl`.
    """
    kind = _kind(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})", where=path, next="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError("not a text in UTF-8", where=path, next="convert it to UTF-8") from error
    if kind == "markdown":
        turns, note = from_markdown(text.replace("\r\n", "\n")), ""
        if not turns:
            raise DataError("no heading such as `## User`", where=path, next="load a file that /save wrote")
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if not lines:
            raise DataError("empty", where=path, next="load a file that /save wrote")
        turns = _from_row(lines[0][1], f"{path}, row {lines[0][0]}")
        note = f"the first of {len(lines)} conversations" if len(lines) > 1 else ""
    if turns[-1].role == "system" and len(turns) > 1:
        raise DataError("a system turn that is not the first", where=path, next="mend the file")
    return turns, note


def _from_row(line: str, where: str) -> Turns:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({str(error)[:200]})", where=where, next="write one JSON object per line") from error
    rows = row.get("messages") if isinstance(row, dict) else None
    if rows is None:
        raise DataError("no `messages`", where=where, next="load a file that /save wrote, or one of `messages`")
    found = read_turns(rows, openai_turn, where)
    check_order(found, where)
    return tuple(_turn(message.role, message.content, raw, where) for message, raw in zip(found, rows, strict=True))


def _turn(role: str, content: str, row: Mapping[str, Any], where: str) -> Turn:
    if role not in _TITLES:
        raise DataError(f"a turn of the {role}", where=where, next="load a conversation of user and assistant alone")
    return Turn(role, content, stopped=row.get("stopped") is True)


def _kind(path: Path) -> Literal["markdown", "jsonl"]:
    match path.suffix.lower():
        case ".md" | ".markdown":
            return "markdown"
        case ".jsonl":
            return "jsonl"
    raise OptionError("a chat is a .md or a .jsonl file", where=path, next="end the name in .md or .jsonl")
