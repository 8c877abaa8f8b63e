"""Exercises from documents: sentences with a gap, whose answer stands in the text. No model is asked."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass

from deepen.apps.evidence import USUAL
from deepen.apps.knowledge import Hit, Knowledge, readable
from deepen.apps.tutor.exercise import Exercise, plain_words
from deepen.apps.tutor.guard import names_answer
from deepen.apps.tutor.turn import Level
from deepen.errors import DataError

GAP = "____"
_PASSAGES, _MOST = 40, 200  # passages that are looked at, and gaps that are made from them
_SHORTEST, _LONGEST = 8, 32  # words of a sentence
_CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|^(?: {4}|\t)[^\n]*$", re.S | re.M)
_LINE = re.compile(r"^\s*(?:#{1,6}\s|[-*+>|]\s|\d+[.)]\s|\||---).*$", re.M)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\u201d]*\s+(?=[\"'(\u201c]?[A-Z])")
_ODD = re.compile(r"[|{}<>\\=#~\^`\[\]]|https?:|\w/\w+/|\.\.\.|\u2026|:$")
_VAGUE = re.compile(
    r"^[\"'\u201c(]*(?:it|its|this|that|these|those|they|he|she|his|her|we|i|you|your|our|here|there|such|however|but|and|so|also"
    r"|then|as)\b",
    re.I,
)
_CANDIDATE = re.compile(r"(?<![\w.,$-])(?:\d+(?:[.,]\d+)*(?![\w%-])|[A-Za-z][A-Za-z]{4,})(?![\w'\u2019-])")
_MANY = 6  # passages about the topic; a word that so many of them have is not worth more with others
_EACH, _SMALL_MATERIAL = 6, 600  # gaps of a passage; words of a material that is small
_NUMBER = 8.0  # what a number is worth as a gap


@dataclass(frozen=True)
class Gap:
    """A sentence and the word of it that is asked for."""

    key: str
    before: str
    answer: str
    after: str
    hit: Hit


def find_gaps(knowledge: Knowledge, topic: str) -> tuple[Gap, ...]:
    """Gaps in sentences about a topic, those of the best passages first.

    Raises:
        DataError: no passage has a word of the topic, or none has a sentence to ask about.
    """
    words = [each for each in plain_words(topic) if each not in USUAL] or plain_words(topic)
    hits = knowledge.search(words, _PASSAGES)
    if not hits:
        raise DataError(
            f"nothing in the material is about {topic!r}", where="--material", next="name a topic in the words of the material"
        )
    gaps: dict[str, Gap] = {}
    known = Counter(stem for hit in hits for stem in set(knowledge.stems(readable(hit.text))))
    topics = {stem for word in words for stem in knowledge.stems(word)}
    per_passage = [_gaps(knowledge, hit, topics, known) for hit in hits]
    # one of each passage before the second of any
    for turn in range(max(map(len, per_passage))):
        for found in per_passage:
            if turn < len(found) and len(gaps) < _MOST:
                gaps.setdefault(found[turn].key, found[turn])
    if not gaps:
        raise DataError(
            f"no sentence of the material about {topic!r} makes an exercise", where="--material",
            next="add documents with plain sentences about it",
        )  # fmt: skip
    return tuple(gaps.values())


def make_exercise(gap: Gap, level: Level) -> Exercise:
    """The exercise of a gap; a beginner is told how the word begins, an advanced learner nothing."""
    number = gap.answer[0].isdigit()
    size = len(gap.answer)
    told = {
        "beginner": "" if number else f" (a word of {size} letters that begins with “{gap.answer[0]}”)",
        "intermediate": "" if number else f" (a word of {size} letters)",
        "advanced": "",
    }[level]
    what = "Which number" if number else "Which word"
    sentence = f"{gap.before}{GAP}{gap.after}"
    return Exercise(
        key=gap.key,
        origin="material",
        level=level,
        question=f"{what} is missing{told}?\n{sentence}",
        answer=gap.answer,
        form="words",
        guide=_guide(gap),
        hint=_number_hint(gap.answer) if number else f"It begins with “{gap.answer[:1]}” and has {size} letters.",
        step=_number_step(gap.answer) if number else f"Fill in the rest: {_half(gap.answer)}",
        worked=f"“{gap.before}{gap.answer}{gap.after}” ({gap.hit.place})",
        place=gap.hit.place,
        about=gap.hit.text,
    )


def _guide(gap: Gap) -> str:
    """A question that sends the learner to the place, without the answer."""
    heading = gap.hit.heading
    probe = Exercise(gap.key, "material", "beginner", "", gap.answer, "words", "", "", "", "")
    under = f" under “{heading}”" if heading and not names_answer(heading, probe) else ""
    return f"What does the text say about this{under}? It stands in {gap.hit.place}."


def _half(word: str) -> str:
    """A word with its first half, and dots for the rest."""
    shown = max(2, len(word) // 2)
    return word[:shown] + " _" * (len(word) - shown)


def _number_hint(answer: str) -> str:
    digits = sum(each.isdigit() for each in answer)
    return "It has a single digit." if digits == 1 else f"It has {_COUNT.get(digits, 'many')} digits."


_COUNT = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}


def _number_step(answer: str) -> str:
    value = float(answer.replace(",", ""))
    bound, name = (1000, "thousand") if value == 100 else (100, "hundred")
    return f"It is {'even' if value % 2 == 0 else 'not even'}, and {'less' if value < bound else 'not less'} than a {name}."


def _gaps(knowledge: Knowledge, hit: Hit, topic: set[str], known: Counter[str]) -> list[Gap]:
    """Gaps of a passage, the best sentence first; one that has a word of the topic is worth more."""
    found = []
    given = topic | set(knowledge.stems(f"{hit.heading} {re.sub(r'[-_./]', ' ', hit.file)}"))
    for sentence in sentences(hit.text):
        stems = Counter(knowledge.stems(sentence))
        if (best := _best_word(knowledge, sentence, stems, given, known)) is not None:
            worth, start, end = best
            key = hashlib.sha256(f"{sentence}\n{start}".encode(errors="surrogateescape")).hexdigest()[:16]
            gap = Gap(f"gap: {key}", sentence[:start], sentence[start:end], sentence[end:], hit)
            found.append((worth * (2 if topic & stems.keys() else 1), gap))
    return [gap for _, gap in sorted(found, key=lambda each: -each[0])[:_EACH]]


def sentences(text: str) -> list[str]:
    """Plain sentences of a passage that can be understood alone."""
    prose = _LINE.sub("\n", _CODE.sub("\n", readable(text)))
    found = []
    for paragraph in re.split(r"\n\s*\n", prose):
        flat = re.sub(r"[*_]{1,3}(\S[^*_]*?)[*_]{1,3}", r"\1", " ".join(paragraph.split()))
        for sentence in _SENTENCE_END.split(flat[:4000]):
            words = sentence.split()
            whole = sentence[:1].isupper() and sentence[-1:] in {".", "!"}
            if whole and _SHORTEST <= len(words) <= _LONGEST and not _ODD.search(sentence) and not _VAGUE.match(sentence):
                found.append(sentence)
    return found


def _best_word(
    knowledge: Knowledge, sentence: str, stems: Counter[str], given: set[str], known: Counter[str]
) -> tuple[float, int, int] | None:
    """What is worth asking for most, and where it stands: a number, or a word that is rare but used again where it matters.

    It comes up once in the sentence, and neither the topic nor the heading tells it.
    """
    best: tuple[float, int, int] | None = None
    for match in _CANDIDATE.finditer(sentence):
        word = match[0]
        own = knowledge.stems(word)
        if match.start() == 0 or word.lower() in USUAL or len(own) != 1 or stems[own[0]] != 1 or own[0] in given:
            continue
        if word[0].isdigit():
            worth = _NUMBER if len(word) > 1 else 0.0
        elif word.endswith("ly") or known[own[0]] < 2:
            continue
        else:
            worth = knowledge.rarity(knowledge.frequencies(own)[own[0]]) * min(known[own[0]], _MANY) ** 0.5
        if worth and (best is None or worth > best[0]):
            best = worth, match.start(), match.end()
    if best is not None or len(known) > _SMALL_MATERIAL:
        return best
    # a page or two, in which hardly any word comes up twice
    words = [each for each in _CANDIDATE.finditer(sentence) if each.start() and each[0].lower() not in USUAL]
    words = [each for each in words if not given & set(knowledge.stems(each[0]))]
    longest = max(words, key=lambda each: len(each[0]), default=None)
    return None if longest is None else (1.0, longest.start(), longest.end())
