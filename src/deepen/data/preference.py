"""Pairs of answers to one prompt, of which one is preferred, in the layouts that people publish them in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepen.data.chat import (
    Conversation,
    Message,
    check_order,
    openai_turn,
    read_request,
    read_system,
    read_text,
    read_tools,
    read_turns,
    sharegpt_turn,
)
from deepen.data.rows import Layouts, malformed, read_rows
from deepen.data.template import Row, cut_row, encode_conversations
from deepen.data.text import Paths
from deepen.errors import DataError
from deepen.progress import say


@dataclass(frozen=True)
class Preference:
    """One row of a data set: two conversations with a common beginning, the prompt, of which nothing is learned.

    Attributes:
        chosen: the prompt and the preferred answer.
        rejected: the prompt and the other answer.
    """

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True)
class Pair:
    """A preference as a model is trained on it; the labels of both rows are those of the answers."""

    chosen: Row
    rejected: Row

    @property
    def rows(self) -> tuple[Row, Row]:
        """Both, the chosen one first."""
        return self.chosen, self.rejected

    @property
    def tokens(self) -> int:
        """How many tokens are read, the prompt with each answer."""
        return len(self.chosen.tokens) + len(self.rejected.tokens)


_LAYOUTS: Layouts = {
    "prompt, chosen and rejected": (("prompt", "chosen", "rejected"), ("tools",)),
    "Orca pairs": (("question", "chosen", "rejected"), ("system",)),
    "OpenAI pairs": (("input", "preferred_output", "non_preferred_output"), ()),
    "Alpaca pairs": (("instruction", "chosen", "rejected"), ("input", "system")),
    "ShareGPT pairs": (("conversations", "chosen", "rejected"), ("tools", "system")),
    "chosen and rejected": (("chosen", "rejected"), ("tools",)),
}
_ANSWERS = {"OpenAI pairs": ("preferred_output", "non_preferred_output")}
# Where data sets say how good they hold the answers to be, beside them or under `metadata`
_RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_score", "rejected_score"),
)
_Read = Callable[[Mapping[str, Any], str], Message]


def read_preferences(data: Paths, *, cap: Sequence[str] = (), seed: int = 0) -> list[list[Preference]]:
    """Read preferences from files and data sets of the Hub; what each was read as is printed on stderr.

    Layouts (TRL's names): `prompt`, `chosen` and `rejected`, as texts (which no chat template goes around) or as messages of
    `role` and `content`; `chosen` and `rejected` as whole conversations, whose common beginning is the prompt (UltraFeedback;
    a `prompt` beside them must be found in it); Orca's `system`, `question`, `chosen`, `rejected`;
    OpenAI's `input.messages`, `preferred_output`, `non_preferred_output`; Alpaca's `instruction` and `input`, or ShareGPT's
    `conversations`, with `chosen` and `rejected`. The first row's columns decide for the whole file.

    A tie says nothing about what is preferred, and an empty answer nothing at all. Rows whose answers are the same text, or are
    rated the same in columns such as `score_chosen` and `score_rejected`, or one of whose answers is empty, are left out and
    counted: published sets have them.

    Args:
        data: one path or several, as for `read_rows`.
        cap: `PATH=N` takes N rows of that path, drawn by the seed and kept in order.
        seed: of the drawing.

    Returns:
        For each path its preferences, in order.

    Raises:
        DataError: a file is missing, empty or of an unknown layout, or a row is malformed or has two different prompts; the
            message names file and row.
        OptionError: a cap is no `PATH=N`, or names none of the files.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
    """
    return read_rows(data, _LAYOUTS, _preference, cap=cap, seed=seed, reason="are ties or have an empty answer")


def encode_preferences(
    preferences: Sequence[Preference], tokenizer: Any, template: str, *, ends: Collection[int] = ()
) -> list[Pair]:
    """Preferences as tokens and labels: each answer is encoded as `encode_conversations` does, prompt included."""
    both = [each for preference in preferences for each in (preference.chosen, preference.rejected)]
    rows = encode_conversations(both, tokenizer, template, ends=ends)
    return [Pair(*rows[first : first + 2]) for first in range(0, len(rows), 2)]


def limit_pairs(pairs: Sequence[Pair], length: int, *, too_long: str) -> list[Pair]:
    """Pairs of rows of at most `length` tokens each; how many had longer ones is printed on stderr.

    Args:
        pairs: of any length.
        length: the longest row that is let through: a prompt with one answer.
        too_long: what happens to longer ones: `error`, `truncate` (the first `length` tokens of each row stay) or `drop`.

    Raises:
        DataError: there are longer ones and `too_long` is `error`; a truncated answer has nothing left; or no pair is left.
    """
    longest = max(len(row.tokens) for pair in pairs for row in pair.rows)
    kept = [pair for pair in pairs if all(len(row.tokens) <= length for row in pair.rows)]
    if len(kept) == len(pairs):
        return kept
    count = f"{len(pairs) - len(kept):,} of {len(pairs):,} pairs are longer than {length} tokens, up to {longest}"
    where = next(row.where for pair in pairs for row in pair.rows if len(row.tokens) > length)
    if too_long == "error":
        raise DataError(
            count,
            where=where,
            next=f"pass --sequence-length {longest} if the model takes that, or --too-long truncate or drop",
        )
    say(f"{count}: {'truncated' if too_long == 'truncate' else 'dropped'}")
    if too_long == "truncate":
        return [Pair(cut_row(pair.chosen, length), cut_row(pair.rejected, length)) for pair in pairs]
    if not kept:
        raise DataError(f"{count}: none is left", where=where, next=f"pass --sequence-length {longest}")
    return kept


def _preference(row: Mapping[str, Any], layout: str, where: str) -> Preference | None:
    first, second = _ANSWERS.get(layout, ("chosen", "rejected"))
    if _is_empty(row[first]) or _is_empty(row[second]):
        return None
    read = sharegpt_turn if layout == "ShareGPT pairs" else openai_turn
    prompt = _prompt(row, layout, where)
    chosen = _answer(row[first], read, f"{where}, {first}")
    rejected = _answer(row[second], read, f"{where}, {second}")
    plain = layout.startswith("prompt") and all(isinstance(row[key], str) for key in ("prompt", first, second))
    if _is_whole(chosen) != _is_whole(rejected):
        raise malformed(f"one of {first} and {second} has the prompt in it, and the other has not", where)
    if _is_whole(chosen):
        prompt, chosen, rejected = _part(chosen, rejected, prompt, where)
    elif not prompt:
        raise malformed(f"no prompt: neither a column of its own, nor turns at the beginning of {first} and {second}", where)
    if [_said(turn) for turn in chosen] == [_said(turn) for turn in rejected] or _rated_the_same(row):
        return None
    tools = read_tools(row["input"].get("tools") if layout == "OpenAI pairs" else row.get("tools"), where)
    sides = {first: chosen, second: rejected}
    return Preference(*(_conversation(prompt, answer, tools, plain, f"{where}, {key}") for key, answer in sides.items()))


def _prompt(row: Mapping[str, Any], layout: str, where: str) -> list[Message]:
    match layout:
        case "prompt, chosen and rejected" if isinstance(row["prompt"], str):
            return [Message("user", read_text(row["prompt"], f"{where}, prompt"), learned=False)]
        case "prompt, chosen and rejected":
            return read_turns(row["prompt"], openai_turn, f"{where}, prompt")
        case "Orca pairs":
            question = read_text(row["question"], f"{where}, question")
            return [*read_system(row, where), Message("user", question, learned=False)]
        case "OpenAI pairs":
            given = row["input"]
            if not isinstance(given, dict):
                raise malformed("`input` is not an object with `messages`", where)
            return read_turns(given.get("messages"), openai_turn, f"{where}, input.messages")
        case "Alpaca pairs":
            return read_request(row, where)
        case "ShareGPT pairs":
            return read_system(row, where) + read_turns(row["conversations"], sharegpt_turn, f"{where}, conversations")
        case _:
            return []


def _answer(value: object, read: _Read, where: str) -> list[Message]:
    if isinstance(value, str):
        return [Message("assistant", read_text(value, where), learned=True)]
    return read_turns([value] if isinstance(value, dict) else value, read, where)


def _is_empty(answer: object) -> bool:
    last = answer[-1] if isinstance(answer, list) and answer else answer
    text = last.get("content", last.get("value")) if isinstance(last, dict) else last
    return isinstance(text, str) and not text.strip()


def _is_whole(turns: Sequence[Message]) -> bool:
    """Whether the prompt comes before the answer."""
    return turns[0].role in {"system", "user"}


def _said(turn: Message) -> tuple[str, str]:
    return turn.role, turn.content.strip()


def _part(
    chosen: list[Message], rejected: list[Message], prompt: list[Message], where: str
) -> tuple[list[Message], list[Message], list[Message]]:
    """The common beginning of two conversations, and how each goes on; at least the last turn of each is an answer."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and _said(chosen[shared]) == _said(rejected[shared]):
        shared += 1
    if {chosen[shared].role, rejected[shared].role} != {"assistant"}:
        raise malformed(f"the prompts differ: turn {shared + 1} is not the same, and no answer", where)
    if not {_said(turn) for turn in prompt} <= {_said(turn) for turn in chosen[:shared]}:
        raise malformed("`prompt` is not in the common beginning of the conversations", where)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _rated_the_same(row: Mapping[str, Any]) -> bool:
    details = row.get("metadata")
    columns = {**details, **row} if isinstance(details, dict) else row
    return any(columns.get(one) is not None and columns.get(one) == columns.get(other) for one, other in _RATINGS)


def _conversation(
    prompt: Sequence[Message], answer: Sequence[Message], tools: tuple[dict[str, Any], ...], plain: bool, where: str
) -> Conversation:
    turns = [*(replace(turn, learned=False) for turn in prompt), *answer]
    turns = [turn for turn in turns if turn.content or turn.role != "system"]
    if not plain:
        check_order(turns, where)
    while not turns[-1].learned:
        turns.pop()
        if not turns:
            raise malformed("no answer of the assistant that is to be learned", where)
    return Conversation(tuple(turns), tools, plain, where)
