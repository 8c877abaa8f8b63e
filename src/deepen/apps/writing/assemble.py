"""Sections put together: the text as it is shown, with numbers for its facts, and what in it rests on nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from deepen.apps.claims import Known, unsupported_names, unsupported_numbers
from deepen.apps.writing.facts import Facts, Number, Verdict
from deepen.apps.writing.kinds import KINDS, Assignment, Planned
from deepen.apps.writing.outline import Outline
from deepen.apps.writing.part import Part
from deepen.apps.writing.prose import Sentence, count_words
from deepen.apps.writing.result import Citation, Reason, Section, Unsupported, Writing

_NOUNS_HAVE_CAPITALS = {"german", "deutsch", "luxembourgish"}  # so that they tell no names
_GREETING, _FAREWELL = "Hello,", "Kind regards,"


def shows_headings(assignment: Assignment, outline: Outline) -> bool:
    """Whether a text shows its headings: one of several sections; those of the template only where it is English."""
    own = outline.origin != "template" or assignment.is_english
    return KINDS[assignment.kind].headed and len(outline.sections) > 1 and own


class Assembly:
    """The text as it grows; facts get their numbers in the order in which they are cited.

    Args:
        assignment: what is written.
        outline: title and headings.
        tell: called with each piece of the text; joined they are the text.
    """

    def __init__(self, assignment: Assignment, outline: Outline, tell: Callable[[str], None]) -> None:
        self._assignment, self._outline, self._tell = assignment, outline, tell
        self._letter = assignment.kind == "email"
        self._headed = shows_headings(assignment, outline)
        self._numbers: dict[Number, int] = {}
        self._pieces: list[str] = []
        self._texts: list[list[str]] = []
        self._heading = ""
        self.words = count_words(outline.title)
        """Of title, headings and sentences so far, and of what ends an e-mail."""
        if self._letter and assignment.is_english:
            self.words += count_words(_GREETING) + count_words(_FAREWELL)

    def open(self, section: Planned) -> None:
        """Begin a section; its heading is shown with its first sentence."""
        self._heading = section.heading if self._headed else ""
        self._texts.append([])
        self.words += count_words(self._heading)

    def add(self, sentence: Sentence, verdict: Verdict) -> None:
        """Add a sentence to the section, with the numbers of the facts that it rests on."""
        lead = sentence.lead
        if not self._texts[-1]:
            head = f"## {self._heading}\n\n" if self._heading else ""
            lead = f"\n\n{head}" if self._pieces else f"{self._beginning()}{head}"
        labels = "".join(f" [{number}]" for number in self._label(verdict))
        self._texts[-1].append(f"{sentence.lead if self._texts[-1] else ''}{sentence.text}{labels}")
        self._say(f"{lead}{sentence.text}{labels}")
        self.words += count_words(sentence.text)

    def close(
        self,
        parts: Sequence[Part],
        facts: Facts | None,
        brief: str,
        *,
        tokens: int,
        seconds: float,
        engine: str,
        tolerance: float,
    ) -> Writing:
        """End the text.

        Args:
            parts: its sections.
            facts: what it may rest on.
            brief: what the user said.
            tokens: that it took.
            seconds: that it took.
            engine: that wrote it.
            tolerance: share of the words by which it may miss its target.
        """
        assignment, outline = self._assignment, self._outline
        if self._letter and assignment.is_english:
            self._say(f"\n\n{_FAREWELL}")
        # a heading whose section is empty is not shown
        words = self.words - sum(
            count_words(section.heading)
            for section, part in zip(outline.sections, parts, strict=True)
            if self._headed and not part.kept
        )
        sections = tuple(
            Section(
                planned.heading, "".join(texts), part.words, part.target_words,
                tuple(dict.fromkeys(self._numbers[number] for each in part.kept for number in each.verdict.facts)),
                part.revised, part.origin,
            )
            for planned, texts, part in zip(outline.sections, self._texts, parts, strict=True)
        )  # fmt: skip
        shown = {passage for part in parts for passage in part.passages}
        passages = facts.passages if facts else 0
        return Writing(
            kind=assignment.kind, about=assignment.about, title=outline.title, outline=outline.sections,
            outline_origin=outline.origin, sections=sections, text="".join(self._pieces), words=words,
            target_words=assignment.words, within_target=abs(words - assignment.words) <= tolerance * assignment.words,
            citations=tuple(self._citations(facts)), unsupported=tuple(self._unsupported(parts, facts, brief)),
            passages=passages, passages_left_out=passages - len(shown), tokens=tokens, seconds=seconds, engine=engine,
        )  # fmt: skip

    def _beginning(self) -> str:
        if not self._letter:
            return f"# {self._outline.title}\n\n"
        greeting = f"{_GREETING}\n\n" if self._assignment.is_english else ""
        return f"Subject: {self._outline.title}\n\n{greeting}"

    def _say(self, text: str) -> None:
        self._pieces.append(text)
        self._tell(text)

    def _label(self, verdict: Verdict) -> list[int]:
        return sorted(self._numbers.setdefault(number, len(self._numbers) + 1) for number in verdict.facts)

    def _citations(self, facts: Facts | None) -> Iterator[Citation]:
        for number, label in self._numbers.items():
            assert facts is not None, "only facts are cited"
            fact = facts.of([number[0]])[number[1]]
            yield Citation(label, fact.hit.file, fact.line, fact.hit.page, fact.hit.headings, fact.text)

    def _unsupported(self, parts: Sequence[Part], facts: Facts | None, brief: str) -> Iterator[Unsupported]:
        given = Known([brief])
        headings = [self._outline.title, *(each.heading for each in self._outline.sections if self._headed)]
        for heading in headings:
            for number in unsupported_numbers(heading, given):
                if facts is None or unsupported_numbers(number, facts.known):
                    yield Unsupported(number, "number", "absent", heading, "", False)
        sentences = [
            (planned.heading, each.sentence.text)
            for planned, part in zip(self._outline.sections, parts, strict=True)
            for each in part.kept
        ]
        for planned, part in zip(self._outline.sections, parts, strict=True):
            for checked, removed in [*((each, False) for each in part.kept), *((each, True) for each in part.removed)]:
                sentence, verdict = checked.sentence.text, checked.verdict
                reasons: tuple[tuple[Reason, tuple[str, ...]], ...] = (
                    ("contradicts" if removed else "absent", verdict.absent),
                    ("contradicts" if removed else "elsewhere", verdict.elsewhere),
                )
                for reason, numbers in reasons:
                    for text in numbers:
                        yield Unsupported(text, "number", reason, sentence, planned.heading, removed)
        if (self._assignment.language or "").lower() in _NOUNS_HAVE_CAPITALS:
            return
        seen: set[str] = set()
        for heading, sentence in sentences:
            for name in unsupported_names(sentence, given):
                if name not in seen and (facts is None or unsupported_names(f"the {name}", facts.known)):
                    seen.add(name)
                    yield Unsupported(name, "name", "absent", sentence, heading, False)
