"""Conversations in the layouts that people publish them in, read into one form; what is malformed is refused by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepen.data.rows import Layouts, malformed, read_rows
from deepen.data.text import Paths
from deepen.errors import DataError


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: its text.
        learned: whether the model learns to say it.
    """

    role: str
    content: str
    learned: bool


@dataclass(frozen=True)
class Conversation:
    """One row of a data set. It begins with the user (after at most one system turn) and ends with an answer to be learned.

    Attributes:
        messages: its turns.
        tools: descriptions of the tools that the assistant may call, as JSON schemas.
        plain: a prompt and its completion as mere texts, which no template goes around.
        where: file and row, for messages to the user.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    plain: bool
    where: str


_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "function_call": "assistant", "observation": "tool", "tool": "tool",
}  # fmt: skip
_LAYOUTS: Layouts = {
    "messages": (("messages",), ("tools",)),
    "ShareGPT": (("conversations",), ("tools", "system")),
    "prompt and completion": (("prompt", "completion"), ("tools",)),
    "Alpaca": (("instruction", "output"), ("input", "system")),
    "Alpaca with response": (("instruction", "response"), ("input", "system")),
}


SOLAR_EXCLUDED = (
    "task228_arc_answer_generation_easy", "ai2_arc/ARC-Challenge:1.0.0", "ai2_arc/ARC-Easy:1.0.0",
    "task229_arc_answer_generation_hard", "hellaswag:1.1.0", "task1389_hellaswag_completion", "cot_gsm8k", "cot_gsm8k_ii",
    "drop:2.0.0", "winogrande:1.1.0",
)  # fmt: skip
"""The FLAN tasks that SOLAR left out, since benchmarks are made of them (Kim et al. 2023, arXiv:2312.15166, table 8)."""
_TASK_COLUMNS = ("task_name", "_task_name", "task")


def read_conversations(
    data: Paths, *, cap: Sequence[str] = (), seed: int = 0, exclude_tasks: Sequence[str] = ()
) -> list[Conversation]:
    """Read conversations from files and data sets of the Hub; what each was read as is printed on stderr.

    Layouts: Alpaca (`instruction`, `input`, `output` or `response`; the input follows the instruction on a new line), ShareGPT
    (`conversations` of `from` and `value`), `messages` of `role` and `content`, and `prompt` with `completion`, both texts or
    both messages, of which only the completion is learned. The first row's columns decide for the whole file. A system turn
    without text is left out, and so is what follows the last turn that is learned.

    Args:
        data: one path or several, as for `read_rows`.
        cap: `PATH=N` takes N rows of that path, drawn by the seed and kept in order.
        seed: of the drawing.
        exclude_tasks: leave rows out whose `task_name`, `_task_name` or `task` is one of these; `solar` stands for
            `SOLAR_EXCLUDED`.

    Returns:
        All conversations, in the order of the files and rows.

    Raises:
        DataError: a file is missing, empty or of an unknown layout, or a row is malformed; the message names file and row.
        OptionError: a cap is no `PATH=N`, or names none of the files.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
    """
    excluded = {name for each in exclude_tasks for name in (SOLAR_EXCLUDED if each == "solar" else (each,))}

    def read(row: Mapping[str, Any], layout: str, where: str) -> Conversation | None:
        if any(row.get(column) in excluded for column in _TASK_COLUMNS):
            return None
        return _conversation(row, layout, where)

    found = read_rows(data, _LAYOUTS, read, cap=cap, seed=seed, reason="are of excluded tasks")
    return [each for conversations in found for each in conversations]


def text_of_turns(conversation: Conversation) -> str:
    """What is said in a conversation, one turn after the other."""
    return "\n".join(message.content for message in conversation.messages)


def _conversation(row: Mapping[str, Any], layout: str, where: str) -> Conversation:
    plain = False
    match layout:
        case "messages":
            messages = read_turns(row["messages"], openai_turn, where)
        case "ShareGPT":
            messages = read_system(row, where) + read_turns(row["conversations"], sharegpt_turn, where)
        case "prompt and completion":
            plain = isinstance(row["prompt"], str) and isinstance(row["completion"], str)
            messages = _prompt_and_completion(row, where)
        case _:
            answer = "output" if layout == "Alpaca" else "response"
            messages = [
                *read_request(row, where),
                Message("assistant", read_text(row[answer], f"{where}, {answer}"), learned=True),
            ]
    messages = [message for message in messages if message.content or message.role != "system"]
    if not plain:
        check_order(messages, where)
    while messages and not messages[-1].learned:
        messages.pop()
    if not messages:
        raise malformed("no assistant's turn that is to be learned", where)
    return Conversation(tuple(messages), read_tools(row.get("tools"), where), plain, where)


def read_request(row: Mapping[str, Any], where: str) -> list[Message]:
    """Alpaca's `instruction`, with the `input` on a new line, as the user's turn; the `system` turn before it."""
    request = read_text(row["instruction"], f"{where}, instruction")
    details = row.get("input")
    if details is not None and read_text(details, f"{where}, input", empty=True).strip():
        request += f"\n{details}"
    return [*read_system(row, where), Message("user", request, learned=False)]


def read_turns(value: object, read: Callable[[Mapping[str, Any], str], Message], where: str) -> list[Message]:
    """Turns of a list, each as `read` makes it of an object and of where it stands."""
    if not isinstance(value, list) or not value:
        raise malformed("the conversation is not a list with at least one turn", where)
    messages = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise malformed("not an object", f"{where}, turn {number}")
        messages.append(read(turn, f"{where}, turn {number}"))
    return messages


def openai_turn(turn: Mapping[str, Any], where: str) -> Message:
    """A turn of `role` and `content`, with which OpenAI's `loss_weight` may stand."""
    role = turn.get("role")
    if role not in _ROLES:
        raise malformed(f"the role {role!r} is none of {', '.join(_ROLES)}", where)
    if turn.get("tool_calls"):
        raise DataError("`tool_calls` are not read", where=where, next="write the call as the text of the turn")
    content = turn.get("content")
    if isinstance(content, list):  # parts of a multimodal turn
        content = "".join(_part(part, where) for part in content)
    learned = role == "assistant"
    weight = turn.get("loss_weight")
    if weight is not None and weight not in (0, int(learned)):
        raise malformed(f"a `loss_weight` of {weight!r} for a turn of the {role}", where)
    text = read_text(content, where, empty=role == "system")
    return Message(str(role), text, learned and weight != 0)


def _part(part: object, where: str) -> str:
    text = part.get("text", part.get("value")) if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise DataError("a part that is no text", where=where, next="leave out images, sounds and the like")
    return text


def sharegpt_turn(turn: Mapping[str, Any], where: str) -> Message:
    """A turn of `from` and `value`."""
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise malformed(f"from {speaker!r}, which is none of {', '.join(_SHAREGPT_ROLES)}", where)
    role = _SHAREGPT_ROLES[speaker]
    return Message(role, read_text(turn.get("value"), where, empty=role == "system"), learned=role == "assistant")


def _prompt_and_completion(row: Mapping[str, Any], where: str) -> list[Message]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        answer = Message("assistant", read_text(completion, f"{where}, completion"), learned=True)
        return [Message("user", read_text(prompt, f"{where}, prompt"), learned=False), answer]
    given = [replace(message, learned=False) for message in read_turns(prompt, openai_turn, f"{where}, prompt")]
    return given + read_turns(completion, openai_turn, f"{where}, completion")


def read_system(row: Mapping[str, Any], where: str) -> list[Message]:
    """The column `system` as a turn, if there is one; its text may be empty."""
    text = row.get("system")
    return [] if text is None else [Message("system", read_text(text, f"{where}, system", empty=True), learned=False)]


def check_order(messages: Sequence[Message], where: str) -> None:
    """User and assistant take turns; a tool answers the assistant."""
    before = ""
    for number, message in enumerate(messages, start=1):
        if message.role == "system" and before:
            raise malformed("a system turn that is not the first", where)
        if message.role in {"assistant", "tool"} and before in {"", "system"}:
            raise malformed(f"the conversation starts with the {message.role}, not with the user", where)
        if message.role == before and before != "tool":
            raise malformed(f"turns {number - 1} and {number} are both the {before}'s", where)
        if (before, message.role) in {("user", "tool"), ("tool", "user")}:
            raise malformed(f"turn {number}: the {message.role} follows the {before}, and the assistant is left out", where)
        before = message.role


def read_tools(value: object, where: str) -> tuple[dict[str, Any], ...]:
    """The column `tools`: a list of JSON schemas, or that as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise malformed("`tools` is not valid JSON", where) from error
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise malformed("`tools` is not a list of objects", where)
    return tuple(value)


def read_text(value: object, where: str, *, empty: bool = False) -> str:
    """A text of whole characters, with something in it unless it may be `empty`."""
    if not isinstance(value, str):
        raise malformed(f"{type(value).__name__} instead of text", where)
    if not value.strip():
        if empty:
            return ""
        raise malformed("empty", where)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise malformed("half a character (a lone surrogate)", where) from error
    return value
