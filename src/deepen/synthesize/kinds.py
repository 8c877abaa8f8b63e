"""The transformations of a seed problem into new ones, after MetaMath (Yu et al. 2023, arXiv:2309.12284, section 3).

Each is a generator: it yields what it asks a model for, is sent the answers, and returns a draft. So it can be run again over
answers that are kept, and gives the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from deepen.data.algebra import NUMBER
from deepen.data.values import Value, read_value, same_value
from deepen.synthesize.answer import Answer
from deepen.synthesize.seeds import Seed
from deepen.synthesize.similar import are_similar

_SOLVE = (
    "Solve this problem. Explain each step in a sentence. End with a line of its own that says "
    '"The answer is: " and then the final value, and nothing else.\n\n'
)
_REPHRASE = (
    "Write this problem in other words, as another teacher would. Keep every number, every unit and what is asked for. "
    "Do not solve it. Reply with the new problem alone.\n\n"
)
_STATE = (
    "Here is a question and its answer. Write both together as one plain statement, in which the answer stands as it is "
    "written here. Reply with the statement alone.\n\n"
)
_LABEL = re.compile(
    r"\s*(?:\*\*)?(?:here(?: is|'s) )?(?:the )?(?:rephrased|rewritten|new)?\s*(?:problem|question|statement)\s*:(?:\*\*)?\s*",
    re.IGNORECASE,
)
_MASKABLE = re.compile(rf"(?<![\w.^_{{/\\-])(?<!\d,)(?:{NUMBER})(?![\w}}/^]|,\d|\.\d)")
_LETTERS = "xyznktw"
_LAST_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^.!?]*\?\s*$)")


class Refused(Exception):
    """A draft that cannot be used; not for users.

    Args:
        reason: in a few words, the same for all that are refused for it.
        question: of the draft, as far as there is one.
        answer: what was said.
    """

    def __init__(self, reason: str, question: str = "", answer: str = "") -> None:
        super().__init__(reason)
        self.reason, self.question, self.answer = reason, question, answer


@dataclass(frozen=True)
class Draft:
    """A new problem with an answer that is still to be checked.

    Attributes:
        question: the problem.
        answer: to it.
        gold: the value that the answer must end with.
        written: the same as text.
    """

    question: str
    answer: str
    gold: Value
    written: str


@dataclass(frozen=True)
class Drawing:
    """What is drawn for a draft.

    Attributes:
        sample: which of the drafts of one seed and kind it is, from 0.
        seed: of the run.
        similarity: from which Jaccard index on one question repeats another.
    """

    sample: int
    seed: int
    similarity: float


Steps = Generator[str, Answer, Draft]


def answer(seed: Seed, _drawing: Drawing) -> Steps:
    """Another answer to the same question (answer augmentation)."""
    return Draft(seed.question, (yield from _solve(seed.question)), seed.value, seed.final)


def rephrase(seed: Seed, drawing: Drawing) -> Steps:
    """The question in other words, and an answer to it: that it is the seed's says that the new question asks for the same."""
    question = _clean(_whole((yield _REPHRASE + seed.question)))
    if not question:
        raise Refused("no question")
    if are_similar(question, seed.question, drawing.similarity):
        raise Refused("repeats its seed", question)
    if _mentions(question, seed.value) and not _mentions(seed.question, seed.value):
        raise Refused("gives its answer away", question)
    return Draft(question, (yield from _solve(question)), seed.value, seed.final)


def self_verification(seed: Seed, drawing: Drawing) -> Steps:
    """A number of the problem is masked, what was asked for is stated, and the number is asked for.

    Weng et al. 2022, arXiv:2212.09561; MetaMath, section 3.
    """
    parts = _LAST_SENTENCE.split(seed.question, maxsplit=1)
    if len(parts) != 2:
        raise Refused("no last sentence that asks")
    told, asked = parts
    masked, name, number = _mask(told, seed, drawing)
    said = _clean(_whole((yield f"{_STATE}Question: {asked}\nAnswer: {seed.final}")))
    if not _states(said, seed.value):
        raise Refused("the statement is not one with the answer in it", said)
    question = f"{masked} {said} What is the value of the unknown {name}?"
    return Draft(question, (yield from _solve(question)), read_value(number), number)


def backward(seed: Seed, drawing: Drawing) -> Steps:
    """A number of the problem is masked, its answer is given, and the number is asked for (FOBAR).

    Jiang et al. 2023, arXiv:2308.07758; MetaMath, section 3.
    """
    masked, name, number = _mask(seed.question, seed, drawing)
    question = f"{masked}\nSuppose that the answer to this question is {seed.final}. What is the value of the unknown {name}?"
    return Draft(question, (yield from _solve(question)), read_value(number), number)


KINDS: Mapping[str, Callable[[Seed, Drawing], Steps]] = {
    "rephrase": rephrase,
    "answer": answer,
    "self-verification": self_verification,
    "backward": backward,
}


def _solve(question: str) -> Generator[str, Answer, str]:
    return _whole((yield _SOLVE + question), question)


def _whole(said: Answer, question: str = "") -> str:
    """The text of an answer, without what a reasoning model thinks before it."""
    text = said.text.rpartition("</think>")[2].strip()
    if said.finish_reason == "length":
        raise Refused("cut off", question, text)
    if not text:
        raise Refused("an empty answer", question)
    return text


def _clean(text: str) -> str:
    """A reply without a heading and quotation marks around it."""
    text = text.strip()
    if label := _LABEL.match(text):
        text = text[label.end() :]
    for begin, end in ('""', "“”"):
        if len(text) > 1 and text.startswith(begin) and text.endswith(end):
            text = text[1:-1]
    return text.strip()


def _mask(text: str, seed: Seed, drawing: Drawing) -> tuple[str, str, str]:
    """The text with a letter for one of its numbers, the letter, and the number; another one for each sample."""
    places = list(_MASKABLE.finditer(text))
    if drawing.sample >= len(places):
        raise Refused("no number to mask, or no other one")
    order = sorted(places, key=lambda place: hashlib.sha256(f"{drawing.seed}\0{seed.hash}\0{place.start()}".encode()).digest())
    found = order[drawing.sample]
    name = next((letter for letter in _LETTERS if not re.search(rf"(?<![a-zA-Z]){letter}(?![a-zA-Z])", seed.question)), None)
    if name is None:
        raise Refused("no letter that is free")
    return text[: found.start()] + name + text[found.end() :], name, found[0]


def _states(text: str, value: Value) -> bool:
    """Whether a text is a statement in which a value stands."""
    return bool(text) and "?" not in text and "\n" not in text and (value.form is None or _mentions(text, value))


def _mentions(text: str, value: Value) -> bool:
    """Whether a number, or a piece of LaTeX, of a text is a value."""
    pieces = re.findall(rf"[-\u2212]?[$€£]?(?:{NUMBER}|\\frac\{{\d+\}}\{{\d+\}}|\d+/\d+)%?|\$[^$]+\$", text)
    return any(same_value(value, read_value(piece)) for piece in pieces)
