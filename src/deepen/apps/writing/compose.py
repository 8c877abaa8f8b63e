"""From an assignment to a text: an outline, section after section, each drafted, checked and revised."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, Literal

from deepen.apps.claims import Known, unsupported_numbers
from deepen.apps.grounded import sentences
from deepen.apps.writing.assemble import Assembly, shows_headings
from deepen.apps.writing.draft import TOLERANCE, Draft, is_better, put_first, quote
from deepen.apps.writing.facts import Fact, Facts, Verdict
from deepen.apps.writing.kinds import Assignment, Planned, most_sections, share
from deepen.apps.writing.outline import Outline, fallback, parse, sound, sound_title
from deepen.apps.writing.part import Checked, Part, read_part
from deepen.apps.writing.prompts import Asked, Prompts
from deepen.apps.writing.prose import Sentence, Sieve, count_words, is_whole, joined
from deepen.apps.writing.result import Writing
from deepen.engine import Chunk, Engine
from deepen.errors import UnsupportedModelError
from deepen.journal import Journal

_ATTEMPTS = 6  # to get a section as long as it shall be
_FULL = 0.93  # of its words: it is long enough
_FEWEST_WORDS = 15  # of a section, however little is left
_FEWEST_OF_A_SENTENCE = 3  # words; less is a stammer, but in stories and in languages that are written without spaces
_WARM = 0.7  # temperature of another attempt, after one that brought nothing
_TOKENS_PER_WORD, _MORE_TOKENS = 2.5, 48
_OUTLINE_TOKENS = 300
_FACTS_TO_RETELL = 5
_UNKNOWN_CONTEXT = 4096  # tokens, of a server that does not tell
_BYTES_PER_TOKEN = 3.0
_SPARE_TOKENS, _OTHER_TOKENS = 64, 400
_FACT_TOKENS = 2500  # of facts that a section is shown: more would be read slowly, and by small models not at all


def compose(
    engine: Engine,
    assignment: Assignment,
    *,
    facts: Facts | None = None,
    outline: Outline | None = None,
    outline_only: bool = False,
    revise: bool = True,
    temperature: float = 0.0,
    seed: int | None = None,
    on_text: Callable[[str], None] | None = None,
    on_step: Callable[[str], None] | None = None,
    journal: Journal | None = None,
) -> Writing:
    """Write a text with a model that is loaded already.

    Args:
        engine: the model; not closed here.
        assignment: what shall be written.
        facts: what it may rest on, from `read_facts`.
        outline: its sections; the model plans them unless given.
        outline_only: stop after the outline.
        revise: let the model go over each section once more; without it, sentences come to `on_text` one by one.
        temperature: 0 takes the likeliest token each time, but where the model repeats itself.
        seed: makes sampling repeatable.
        on_text: called with each piece of the text as it is certain; joined they are `Writing.text`.
        on_step: called with a few words on what is being done, for people who wait.
        journal: keeps what is done, for a run that continues this one.

    Raises:
        UnsupportedModelError: nothing that the model wrote could be kept, and there are no facts.
        DataError: the assignment does not fit the model's context.
    """
    start = time.perf_counter()
    author = _Author(engine, assignment, facts, temperature, seed, on_step or (lambda _: None))
    tokens = 0
    if outline is None:
        planned = journal.get("outline") if journal is not None else None
        if planned is None:
            outline, tokens = author.plan()
            if journal is not None:
                journal.keep("outline", {"outline": asdict(outline), "tokens": tokens})
        else:
            outline, tokens = _outline(planned["outline"]), planned["tokens"]
    elif not outline.title:
        outline = replace(outline, title=sound_title("", assignment))
    tell = on_text or (lambda _: None)
    if outline_only:
        tell(outline.text)
        return Writing(
            kind=assignment.kind, about=assignment.about, title=outline.title, outline=outline.sections,
            outline_origin=outline.origin, sections=(), text=outline.text, words=0, target_words=assignment.words,
            within_target=None, citations=(), unsupported=(), passages=facts.passages if facts else 0, passages_left_out=0,
            tokens=tokens, seconds=time.perf_counter() - start, engine=engine.name,
        )  # fmt: skip
    if outline.origin == "file":
        author.brief += f"\n{outline.text}"
    assembly = Assembly(assignment, outline, tell)
    parts: list[Part] = []
    for place, section in enumerate(outline.sections):
        name = f"section {place}"
        kept = journal.get(name) if journal is not None else None
        if kept is None:
            live = None if revise or facts is not None else assembly.add  # what may still change is not shown
            assembly.open(section)
            part = author.write(outline, place, parts, assembly.words, revise=revise, on_kept=live)
            if journal is not None:
                journal.keep(name, asdict(part))
            for each in part.kept if live is None or part.origin == "facts" else ():
                assembly.add(each.sentence, each.verdict)
        else:
            part = read_part(kept)
            assembly.open(section)
            for each in part.kept:
                assembly.add(each.sentence, each.verdict)
        tokens += part.tokens
        parts.append(part)
    if not any(part.kept for part in parts):
        raise UnsupportedModelError(
            "nothing that the model wrote could be kept",
            where=engine.name,
            next="use a larger model, --temperature 0.7, or give it --facts",
        )
    return assembly.close(
        parts, facts, author.brief, tokens=tokens, seconds=time.perf_counter() - start, engine=engine.name, tolerance=TOLERANCE
    )


class _Author:
    """Asks the model and keeps of its answers what may stand."""

    def __init__(
        self,
        engine: Engine,
        assignment: Assignment,
        facts: Facts | None,
        temperature: float,
        seed: int | None,
        on_step: Callable[[str], None],
    ) -> None:
        self._engine, self._assignment, self._facts = engine, assignment, facts
        self._prompts = Prompts(engine, assignment)
        self._temperature, self._seed, self._step = temperature, seed, on_step
        self.brief = assignment.brief
        """What the user said: numbers and names in it are given."""

    def plan(self) -> tuple[Outline, int]:
        """The model's outline, or the template's where it is none; and the tokens that it took."""
        self._step("Outline")
        common, _ = self._common(self._assignment.about, _OUTLINE_TOKENS)
        asked = self._prompts.outline(common)
        answer = list(self._stream(asked, _OUTLINE_TOKENS, self._temperature, self._seed))
        tokens = answer[-1][1] if answer else 0
        begun = "" if self._engine.has_template else "Title:"
        text = begun + "".join(piece for piece, _ in answer)
        # a last line that the limit cut is none
        title, sections = parse(text.rpartition("\n")[0] if tokens >= _OUTLINE_TOKENS else text)
        title = sound_title(title if self._known(title) else "", self._assignment)
        most = most_sections(self._assignment)
        # a heading with a number that nobody gave is none
        usable = [each for each in sound(sections, most) if self._known(each.heading)]
        told = [Planned(each.heading, tuple(filter(self._known, each.points))) for each in usable]
        if len(told) < min(2, most):
            return fallback(self._assignment, title), tokens
        return Outline(title, tuple(told), "model"), tokens

    def write(
        self,
        outline: Outline,
        place: int,
        before: Sequence[Part],
        words: int,
        *,
        revise: bool,
        on_kept: Callable[[Sentence, Verdict], None] | None,
    ) -> Part:
        """Write a section.

        Args:
            outline: of the text.
            place: of the section in it, from 0.
            before: the sections before it.
            words: that the text has already, this section's heading included.
            revise: go over it once more.
            on_kept: called with each sentence of the draft.
        """
        planned, kind = outline.sections[place], self._assignment.kind
        shares = [share(kind, each.heading) for each in outline.sections[place:]]
        left = self._assignment.words - words
        if shows_headings(self._assignment, outline):
            left -= sum(count_words(each.heading) for each in outline.sections[place + 1 :])
        budget = max(_FEWEST_WORDS, round(left * shares[0] / sum(shares)))
        self._step(f"Section {place + 1} of {len(outline.sections)}: {planned.heading} (about {budget} words)")
        topic = " ".join((planned.heading, *planned.points, self._assignment.about))
        common, passages = self._common(topic, 2 * self._room(budget))
        text = "\n\n".join(part.text for part in before if part.kept)
        asked = self._prompts.section(common, outline, place, text, budget)
        said = [each.sentence.text for part in before for each in part.kept]
        draft = self._draft(asked, outline, planned, said, passages, budget, on_kept)
        origin: Literal["model", "facts", "nothing"] = "model"
        revised = False
        unused = self._unused(topic, passages, before)
        if unused and not draft.resting:
            self._retell(outline, planned, said, passages, budget, draft, unused)
        if unused and not draft.resting:
            quote(draft, unused, budget)
            origin = "facts"
        elif not draft.kept:
            origin = "nothing"
        elif revise:
            better = self._revise(common, outline, planned, said, passages, budget, draft)
            draft.tokens += better.tokens
            if is_better(better, draft, budget):
                revised, better.tokens = True, draft.tokens
                better.removed = draft.removed
                draft = better
        return Part(tuple(draft.kept), tuple(draft.removed), budget, revised, origin, passages, draft.tokens)

    def _draft(
        self,
        asked: Asked,
        outline: Outline,
        planned: Planned,
        said: Sequence[str],
        passages: Sequence[int],
        budget: int,
        on_kept: Callable[[Sentence, Verdict], None] | None,
    ) -> Draft:
        """Ask until a section is long enough, or the model has no more to say."""
        draft = Draft()
        sieve = self._sieve(asked, outline, planned, said)
        temperature, seed = self._temperature, self._seed
        for attempt in range(_ATTEMPTS):
            before = draft.words
            if attempt:
                asked = self._prompts.more(asked, joined([each.sentence for each in draft.kept]), budget - draft.words)
            sieve.begin()
            self._collect(draft, sieve, asked, passages, budget, budget - draft.words, temperature, seed, on_kept)
            if draft.words >= _FULL * budget or (draft.words and budget - draft.words < _FEWEST_WORDS / 2):
                break
            if draft.words == before:
                # the same question brings the same answer; drawn from a seed, so that it stays repeatable
                temperature, seed = max(self._temperature, _WARM), 1000 * len(said) + attempt + (self._seed or 0)
        return draft

    def _unused(self, topic: str, passages: Sequence[int], before: Sequence[Part]) -> list[Fact]:
        """Facts that say something of a topic and that no section before rests on, the best first; none for a story."""
        if self._facts is None or self._assignment.kind == "story":
            return []
        used = {number for part in before for each in part.kept for number in each.verdict.facts}
        return [fact for fact in self._facts.best(topic, passages) if fact.number not in used]

    def _retell(
        self,
        outline: Outline,
        planned: Planned,
        said: Sequence[str],
        passages: Sequence[int],
        budget: int,
        draft: Draft,
        unused: Sequence[Fact],
    ) -> None:
        """Ask again, with nothing but the facts that say most of a section."""
        asked = self._prompts.retell(planned, [fact.text for fact in unused[:_FACTS_TO_RETELL]], budget)
        told = Draft()
        sieve = self._sieve(asked, outline, planned, said)
        self._collect(told, sieve, asked, passages, budget, budget, self._temperature, self._seed, None)
        draft.tokens += told.tokens
        draft.removed += told.removed
        put_first(draft, [each for each in told.kept if each.verdict.facts], budget)

    def _revise(
        self,
        common: str,
        outline: Outline,
        planned: Planned,
        said: Sequence[str],
        passages: Sequence[int],
        budget: int,
        draft: Draft,
    ) -> Draft:
        text = joined([each.sentence for each in draft.kept])
        asked = self._prompts.revision(common, planned, text, budget)
        better = Draft()
        sieve = self._sieve(asked, outline, planned, said)
        self._collect(better, sieve, asked, passages, 2 * budget, 2 * draft.words, self._temperature, self._seed, None)
        return better

    def _collect(
        self,
        draft: Draft,
        sieve: Sieve,
        asked: Asked,
        passages: Sequence[int],
        budget: int,
        wanted: int,
        temperature: float,
        seed: int | None,
        on_kept: Callable[[Sentence, Verdict], None] | None,
    ) -> None:
        """Take sentences from the model until there are enough of them."""
        tokens = 0
        finished = False

        def pieces(stream: Iterator[tuple[str, int]]) -> Iterator[str]:
            nonlocal tokens, finished
            for piece, count in stream:
                tokens = count
                yield piece
            finished = True

        limit = self._room(wanted)
        with closing(self._stream(asked, limit, temperature, seed)) as stream:
            for piece in sentences(pieces(stream)):
                if finished and tokens >= limit and not is_whole(piece):
                    draft.cut = True
                    break  # the limit cut it
                sentence = sieve.take(piece)
                if sieve.ended or sieve.stuck:
                    break
                if sentence is None:
                    continue
                verdict = self._verdict(sentence.text, passages)
                if verdict.contradicts:
                    draft.removed.append(Checked(sentence, verdict))
                    continue
                words = draft.words + count_words(sentence.text)
                if draft.kept and words > budget and words - budget > budget - draft.words:
                    break  # nearer without it
                draft.kept.append(Checked(sentence, verdict))
                draft.words = words
                if on_kept is not None:
                    on_kept(sentence, verdict)
                if words >= _FULL * budget:
                    break
        draft.tokens += tokens

    def _verdict(self, sentence: str, passages: Sequence[int]) -> Verdict:
        if self._facts is None:
            return Verdict(absent=tuple(unsupported_numbers(sentence, Known([self.brief]))))
        return self._facts.check(sentence, passages, self.brief)

    def _known(self, text: str) -> bool:
        """Whether the numbers of a heading are given; without facts, the model plans as it likes."""
        if self._facts is None:
            return True
        return not self._facts.check(text, (), self.brief).absent

    def _sieve(self, asked: Asked, outline: Outline, planned: Planned, said: Sequence[str]) -> Sieve:
        more = self._prompts.more(asked, "", 0).more
        return Sieve(
            instruction=self._prompts.instruction((asked.task, more)),
            headings=[outline.title, *(each.heading for each in outline.sections)],
            own=planned.heading,
            said=said,
            letter=self._assignment.kind == "email" and self._assignment.is_english,
            fewest=1 if self._assignment.kind == "story" or not self._assignment.is_english else _FEWEST_OF_A_SENTENCE,
        )

    def _common(self, topic: str, room: int) -> tuple[str, tuple[int, ...]]:
        """Brief and facts that leave room for an answer, and the passages of these facts."""
        if self._facts is None:
            return self._prompts.common(""), ()
        context = self._engine.context or _UNKNOWN_CONTEXT
        # the outline and the text before it take some, too
        spent = self._count(self._prompts.system + self._prompts.common("")) + min(_OTHER_TOKENS, context // 4)
        left = min(_FACT_TOKENS, context - min(room, context // 3) - spent - _SPARE_TOKENS)
        shown, passages = self._facts.choose(topic, lambda text: self._count(text) <= left)
        return self._prompts.common(shown), passages

    def _count(self, text: str) -> int:
        if self._engine.context is None:
            return round(len(text.encode(errors="surrogatepass")) / _BYTES_PER_TOKEN)
        return len(self._engine.tokenize(text))

    def _room(self, words: int) -> int:
        tokens = round(max(words, _FEWEST_WORDS) * _TOKENS_PER_WORD) + _MORE_TOKENS
        return min(tokens, (self._engine.context or _UNKNOWN_CONTEXT) // 4)

    def _stream(self, asked: Asked, limit: int, temperature: float, seed: int | None) -> Generator[tuple[str, int]]:
        """Pieces of an answer, and how many tokens it has so far: pieces, until the engine says it."""
        count, last = 0, Chunk("")
        prompt = self._prompts.prompt(asked)
        with closing(self._engine.stream(prompt, max_new_tokens=limit, temperature=temperature, seed=seed, stop=())) as chunks:
            for last in chunks:
                count = last.completion_tokens or count + 1
                yield last.text, count


def _outline(kept: dict[str, Any]) -> Outline:
    sections = tuple(Planned(each["heading"], tuple(each["points"])) for each in kept["sections"])
    return Outline(kept["title"], sections, kept["origin"])
