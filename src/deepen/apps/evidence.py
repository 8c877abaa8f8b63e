"""What a question asks about, which passages speak of it, and whether they carry an answer: decided without a model.

Ranking is BM25's, with the best passage of each document before any second one. Whether a passage carries an answer is a number
made of two: the share of the question that it covers, each word weighing as much as it is rare among the passages, and how much
of the passage is about these words. Words that a language model's embeddings hold to be alike count in part; names do not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deepen.apps.alike import Alike
from deepen.apps.knowledge import Hit, Knowledge, plain

NEEDED = 1.30
"""Coverage + prominence / 2 from which a passage carries an answer, less `EACH_WORD` for each of the first words of a question:
the fewer words there are, the more depends on each. Chosen on 136 questions to two handbooks, 56 of them without an answer."""

EACH_WORD, _FIRST_WORDS = 0.06, 8
_WITHOUT_ALIKE = 0.15  # where words count only as they are written, a good passage has fewer of them
_MOST_WORDS = 64  # of a question
_CANDIDATES = 8  # passages that are weighed
_LIGHT = 0.3  # what an everyday word weighs, against what its rarity says
_NAME = 1.5  # what a name weighs
_SATURATION, _LENGTH = 1.2, 0.75  # k1 and b of BM25
_TITLE = 2.0  # a word in a heading counts so many times
_USUAL_WORDS = 110  # of a passage
_NEARLY = 0.9  # of the best passage's weight: nearly as good

_WORD = re.compile(r"\w+")
_STOP = frozenset(
    re.findall(
        r"\w+",
        """
    a about across after against all along also am among an and any are as at be because been before being between
    both but by can could d did do does doing down during each few for from get had has have having he her here him
    his how i if in into is it its just let ll m may me might more most must my need no nor not of off ok okay on
    only or other our out over own please re s same shall she should so some such t tell than that the their them
    then there these they this those through to too toward towards until up us ve very want was we were what when
    where which while who whom whose why will with within would you your
""",
    )
)
_EVERYDAY = frozenset(
    re.findall(
        r"\w+",
        """
    able again allowed already always another anybody anyone anything back begin come end even ever every everything
    find first give go goes going good got happen happens help keep kind know last left like long look made make
    makes many mean much never new now often old one people person possible put quickly really rid right say see
    somebody someone something soon sort still take thing things think try two use used using way well went without
    work working works yet
""",
    )
)
USUAL = _STOP | _EVERYDAY
"""Words that say little by themselves."""
_POINTS_BACK = re.compile(
    r"^(and|but|so|then|also|what about|how about|why|really|more|go on)\b|\b(it|its|that|this|those|these|they|them|one|ones"
    r"|he|she|him|her|there|then|instead|the same|the other)\b",
    re.I,
)


@dataclass(frozen=True)
class Part:
    """A word of a question.

    Attributes:
        stem: as the index has it.
        word: as the user wrote it, in small letters.
        weight: how much it says.
        alike: stems that mean nearly the same, and how nearly.
    """

    stem: str
    word: str
    weight: float
    alike: Mapping[str, float]


@dataclass(frozen=True)
class Weighed:
    """A passage, and how it answers a question.

    Attributes:
        hit: the passage.
        coverage: the share of the question's words that it has, by weight.
        prominence: how much it is about these words; 1 for a short passage that has each of them once.
    """

    hit: Hit
    coverage: float
    prominence: float

    @property
    def weight(self) -> float:
        """Coverage and half the prominence."""
        return self.coverage + self.prominence / 2


@dataclass(frozen=True)
class Evidence:
    """What was found for a question.

    Attributes:
        passages: the best first.
        needed: the weight from which a passage carries an answer.
        carried: whether one does.
        choices: passages of different documents between which a short question does not tell; empty if it does.
    """

    passages: tuple[Weighed, ...]
    needed: float
    carried: bool
    choices: tuple[Weighed, ...] = ()


def find_evidence(
    knowledge: Knowledge, question: str, before: Sequence[str] = (), *, alike: Alike | None, most: int
) -> Evidence:
    """Find the passages for a question and decide whether they carry an answer.

    A question that points back (`and how long does that take?`) is looked for together with the ones before it; it is carried
    by a passage that carries them all, and its own words too.

    Args:
        knowledge: where to look.
        question: what was asked.
        before: the questions before it, the latest last.
        alike: words that mean nearly the same.
        most: how many passages are wanted.
    """
    parts = question_parts(knowledge, question, alike)
    needed = NEEDED - EACH_WORD * min(len(parts), _FIRST_WORDS) - (_WITHOUT_ALIKE if alike is None else 0.0)
    alone = _weigh_best(knowledge, parts, needed, most)
    if not before or not (_POINTS_BACK.search(question) or len(_telling(parts)) < 2):
        return _with_choices(alone, question, parts)
    context = question_parts(knowledge, " ".join(before), alike)
    known = {part.stem for part in parts}
    added = [replace(part, weight=part.weight / 2) for part in context if part.stem not in known]
    together = _weigh_best(knowledge, [*parts, *added], needed, most)
    own = [weigh(knowledge, parts, each.hit).weight if parts else needed for each in together.passages]
    carried = together.carried and any(
        each.weight >= needed and mine >= needed / 2 for each, mine in zip(together.passages, own, strict=True)
    )
    return replace(together, carried=carried) if carried or not alone.carried else alone


def question_parts(knowledge: Knowledge, question: str, alike: Alike | None) -> list[Part]:
    """The words of a question that say something, each once."""
    words = _WORD.findall(plain(question))
    found: dict[str, str] = {}
    names = set()
    for place, word in enumerate(words):
        small = word.lower()
        if small not in _STOP and len(found) < _MOST_WORDS:
            for stem in knowledge.stems(small):
                found.setdefault(stem, small)
                # `Boston` is not alike to `Chicago`; the first word has a capital in any case
                if place and word[0].isupper() and not question.isupper():
                    names.add(stem)
    near = {stem: _near(knowledge, word, stem, alike) for stem, word in found.items() if alike and stem not in names}
    count = knowledge.frequencies([*found, *(stem for each in near.values() for stem in each)])
    parts = []
    for stem, word in found.items():
        weight = knowledge.rarity(count[stem])
        weight *= _LIGHT if word in _EVERYDAY else _NAME if stem in names else 1.0
        parts.append(Part(stem, word, weight, {each: cosine for each, cosine in near.get(stem, {}).items() if count[each]}))
    return parts


def weigh(knowledge: Knowledge, parts: Sequence[Part], hit: Hit) -> Weighed:
    """How a passage answers a question of these words."""
    body = Counter(knowledge.stems(hit.text))
    title = Counter(knowledge.stems(f"{hit.heading} {re.sub(r'[-_./]', ' ', hit.file)}"))
    length = 1 - _LENGTH + _LENGTH * (body.total() + title.total()) / _USUAL_WORDS
    total = sum(part.weight for part in parts) or 1.0
    covered = prominent = 0.0
    for part in parts:
        often, credit = body[part.stem] + _TITLE * title[part.stem], 1.0
        if not often:
            credit = max((nearly for stem, nearly in part.alike.items() if body[stem] or title[stem]), default=0.0)
            often = max((nearly * (body[stem] + _TITLE * title[stem]) for stem, nearly in part.alike.items()), default=0.0)
        covered += part.weight * credit
        prominent += part.weight * often * (_SATURATION + 1) / (often + _SATURATION * length)
    return Weighed(hit, covered / total, prominent / total)


def _near(knowledge: Knowledge, word: str, own: str, alike: Alike) -> dict[str, float]:
    near: dict[str, float] = {}
    for other, cosine in alike.near(word).items():
        for stem in knowledge.stems(other):
            if stem != own:
                near[stem] = max(cosine, near.get(stem, 0.0))
    return near


def _weigh_best(knowledge: Knowledge, parts: Sequence[Part], needed: float, most: int) -> Evidence:
    words = [part.word for part in parts]
    # enough of them that there is one of each of several documents
    found = _documents_first(knowledge.search(words, 4 * max(most, _CANDIDATES)))
    weighed = [weigh(knowledge, parts, hit) for hit in found[: max(most, _CANDIDATES)]]
    carried = any(each.weight >= needed for each in weighed)
    if not carried:
        # it may be said in other words; the best of what is then found is the third, for it is found less surely
        others = knowledge.search([*words, *(stem for part in parts for stem in part.alike)], _CANDIDATES)
        seen = {(each.hit.file, each.hit.line) for each in weighed}
        more = [weigh(knowledge, parts, hit) for hit in others if (hit.file, hit.line) not in seen]
        better = [each for each in more if each.weight >= needed]
        carried = bool(better)
        weighed = [*weighed[:2], *better[:1], *weighed[2:]]
    return Evidence(tuple(weighed[:most]), needed, carried)


def _documents_first(hits: Sequence[Hit]) -> list[Hit]:
    seen: set[str] = set()
    best: list[Hit] = []
    rest: list[Hit] = []
    for hit in hits:
        (rest if hit.file in seen else best).append(hit)
        seen.add(hit.file)
    return [*best[:3], *sorted([*best[3:], *rest], key=lambda hit: -hit.score)]


def _with_choices(evidence: Evidence, question: str, parts: Sequence[Part]) -> Evidence:
    """A question of one telling word, or of two and hardly more, is asked back where several documents answer it as well."""
    telling = _telling(parts)
    words = len(_WORD.findall(question))
    if not evidence.carried or not telling or words > {1: 4, 2: 2}.get(len(telling), 0):
        return evidence
    if re.match(r"\W*(what|who)\s+(is|are|does|do|was)\b", question, re.I):
        return evidence  # for a definition one is as good as another
    first = evidence.passages[0]
    close = [
        each for each in evidence.passages if each.hit.score >= _NEARLY * first.hit.score and each.weight >= evidence.needed
    ]
    titles = {each.hit.title: each for each in reversed(close)}
    return replace(evidence, choices=tuple(titles.values())[::-1]) if len(titles) >= 3 else evidence


def _telling(parts: Sequence[Part]) -> list[Part]:
    return [part for part in parts if part.word not in _EVERYDAY]
