"""Which drafts are kept: those whose answer ends with the right value, and which repeat nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from deepen.data.contamination import BenchmarkIndex, without_matches
from deepen.data.values import final_answer, is_understood, read_value, same_value
from deepen.errors import DataError
from deepen.synthesize import judge
from deepen.synthesize.gather import Made, Missing, Task
from deepen.synthesize.kinds import Refused
from deepen.synthesize.seeds import Seed
from deepen.synthesize.similar import Similar

WRONG, UNSAID, DOUBLE, BENCHMARK, UNANSWERED = (
    "wrong value", "no final value", "repeats another", "repeats a benchmark", "no usable answer of the endpoint",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What became of a task.

    Attributes:
        task: this.
        reason: why it is refused; nothing if it is kept.
        question: of the draft, as far as it came.
        answer: to it.
        final: the value that the answer ends with, as written.
        gold: the one that it must end with.
        key: the name of the request that the answer came from.
    """

    task: Task
    reason: str
    question: str = ""
    answer: str = ""
    final: str = ""
    gold: str = ""
    key: str = ""

    @property
    def kept(self) -> bool:
        """Whether it is in the output."""
        return not self.reason


def check_values(outcomes: Iterable[tuple[Task, Made | Refused | Missing]]) -> list[Result]:
    """Results for drafts, with the value of each answer compared with the gold."""
    results: list[Result] = []
    doubtful: list[int] = []
    for task, made in outcomes:
        if isinstance(made, Missing):
            results.append(Result(task, UNANSWERED))
        elif isinstance(made, Refused):
            results.append(Result(task, made.reason, made.question, made.answer))
        else:
            draft = made.draft
            final = final_answer(draft.answer)
            value = read_value(final or "")
            reason = UNSAID if final is None else "" if same_value(draft.gold, value) else WRONG
            if reason == WRONG and not (is_understood(draft.gold) and is_understood(value)):
                doubtful.append(len(results))
            results.append(Result(task, reason, draft.question, draft.answer, final or "", draft.written, made.key))
    if doubtful and judge.is_available():
        pairs = [(results[place].gold, results[place].final) for place in doubtful]
        for place, equal in zip(doubtful, judge.judge(pairs), strict=True):
            if equal:
                results[place] = _with(results[place], "")
    return results


def drop_repeated(results: Sequence[Result], seeds: Sequence[Seed], similarity: float) -> list[Result]:
    """Results in which no kept one repeats one before it; the first stays.

    A rephrased question is compared with every seed and with every rephrased question that is kept. The other kinds keep the
    words of their seed by their nature, and differ in what is asked or answered: of these, a repeated question with nearly the
    same answer goes.
    """
    questions = Similar(similarity)
    for seed in seeds:
        questions.add(seed.question)
    answers: dict[str, Similar] = {}
    checked = []
    for result in results:
        if result.kept:
            repeats = False
            if result.task.kind == "rephrase":
                repeats = questions.has(result.question)
            said = answers.setdefault(result.question, Similar(similarity))
            if repeats or said.has(result.answer):
                result = _with(result, DOUBLE)
            else:
                said.add(result.answer)
                if result.task.kind == "rephrase":
                    questions.add(result.question)
        checked.append(result)
    return checked


def drop_benchmarks(results: Sequence[Result], index: BenchmarkIndex) -> list[Result]:
    """Results in which no kept one repeats a row of a benchmark."""
    kept = [place for place, result in enumerate(results) if result.kept]
    try:
        left, _ = without_matches(
            kept, lambda place: f"{results[place].question}\n{results[place].answer}", index, what="drafts"
        )
    except DataError:  # none is left
        left = []
    out = set(kept) - set(left)
    return [_with(result, BENCHMARK) if place in out else result for place, result in enumerate(results)]


def _with(result: Result, reason: str) -> Result:
    return replace(result, reason=reason)
