"""The tutor's parts without a model: the ladder, Leitner's boxes, exercises, answers that are judged, the filter."""

import re
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from deepen.apps.numbers import in_words, numbers_in_words, with_digits
from deepen.apps.tutor import spacing
from deepen.apps.tutor.exercise import Exercise, judge
from deepen.apps.tutor.guard import gives_away, names_answer, usable
from deepen.apps.tutor.ladder import State, climb
from deepen.apps.tutor.skills import TOPICS, example, find_skills, make_exercise, skills_for
from deepen.apps.tutor.turn import LEVELS, RUNGS

EVENTS = some.lists(some.sampled_from(["right", "wrong", "near", "stuck", "hint", "skip"]), max_size=12)
SKILLS = {skill.name: skill for subject in TOPICS.values() for skill in subject.skills}


def exercise(question, answer, form="number", unit=""):
    return Exercise("k", "program", "beginner", question, answer, form, "", "", "", "", unit)


# --- the ladder


@given(EVENTS)
def test_the_ladder_is_climbed_one_rung_at_a_time_and_the_answer_comes_last(events):
    state = State()
    for event in events:
        before, (state, action) = state, climb(state, event)
        rise = RUNGS.index(state.rung) - RUNGS.index(before.rung)
        assert rise in {0, 1}
        assert state.attempts - before.attempts in {0, 1}
        if before.end is not None:
            assert (state, action) == (before, "nothing")
        if action == "worked":
            assert before.rung == "step"
            assert event in {"wrong", "near", "stuck"}
        assert (state.rung == "worked") == (state.end == "worked")
        if event == "right" and before.end is None:
            assert state.end == "solved"
        if event == "hint":
            assert state.rung != "worked" or before.end is not None
        assert climb(before, event) == (state, action), "it depends on nothing else"


def test_four_failures_are_the_four_kinds_of_help():
    state, actions = State(), []
    for _ in range(5):
        state, action = climb(state, "wrong")
        actions.append(action)
    assert actions == ["question", "hint", "step", "worked", "nothing"]


@given(some.integers(1, 5), EVENTS)
def test_boxes_and_credit_follow_the_help_that_was_needed(box, events):
    state = State()
    for event in (*events, "skip"):
        state, _ = climb(state, event)
    after, earned = spacing.next_box(box, state), spacing.credit(state)
    assert after == (1 if state.end != "solved" else min(box + 1, 5) if state.rung == "attempt" else box)
    assert 0 <= earned <= 1
    assert (earned == 1) == (state.end == "solved" and state.rung == "attempt")
    rests = [spacing.seconds_until_due(each) / 86400 for each in range(1, 6)]
    assert rests == [0, 1, 2, 4, 8]


def test_levels_move_up_after_five_good_ones_and_down_after_three_bad_ones():
    assert spacing.next_level("beginner", [1.0] * 4) == "beginner"
    assert spacing.next_level("beginner", [1.0] * 5) == "intermediate"
    assert spacing.next_level("advanced", [1.0] * 5) == "advanced"
    assert spacing.next_level("advanced", [1.0, 1.0, 0.0, 0.0, 0.0]) == "intermediate"
    assert spacing.next_level("beginner", [0.0] * 9) == "beginner"
    assert spacing.mastery([1.0] * 5) == 0.5
    assert spacing.mastery([0.0] * 5 + [1.0] * 10) == 1.0


# --- exercises


@pytest.mark.parametrize("name", SKILLS)
def test_an_exercise_has_its_answer_and_help_that_does_not_tell_it(name):
    for seed in range(12):
        made = make_exercise(SKILLS[name], Random(seed))
        for answer in (made.answer, f"{made.answer} {made.unit}", f"The answer is {made.answer}."):
            assert judge(made, answer) == "right", (made, answer)
        for text in (made.question, made.guide, made.hint, made.step):
            assert not re.search(rf"(?<!\d){re.escape(made.answer)}(?!\d)", text), made
        assert not any(names_answer(text, made) for text in (made.guide, made.hint, made.step))
        assert made.answer.replace(" ", "") in made.worked.replace(" ", "")
        assert judge(made, made.question) in {"wrong", "near"}
        assert made.question == make_exercise(SKILLS[name], Random(seed)).question
        assert not (text := example(SKILLS[name], Random(seed + 1), made)) or not names_answer(text, made)


@pytest.mark.parametrize(
    "name",
    [
        "adding up to 1000", "multiplying up to 25 × 60", "brackets first", "products of negative numbers",
        "fractions with different denominators", "quotients of fractions", "products of decimals",
    ],
)  # fmt: skip
def test_answers_agree_with_pythons_own_arithmetic(name):
    for seed in range(40):
        made = make_exercise(SKILLS[name], Random(seed))
        asked = made.question.removeprefix("What is ").rstrip("?")
        numbers = re.sub(r"(?<!/)\b(\d+)/(\d+)\b", r"Fraction(\1,\2)", asked)
        numbers = re.sub(r"\b\d+\.\d+\b", lambda each: f"Fraction('{each[0]}')", numbers)
        numbers = re.sub(r"(?<![\w,(.'])(\d+)(?![\w,).'])", r"Fraction(\1)", numbers)
        value = eval(numbers.replace("×", "*").replace("÷", "/"), {"Fraction": Fraction})
        assert Fraction(made.answer) == value, made


@pytest.mark.parametrize(
    "name", ["equations of one step", "equations of two steps", "equations with brackets", "x on both sides"]
)
def test_solutions_solve_their_equations(name):
    for seed in range(40):
        made = make_exercise(SKILLS[name], Random(seed))
        left, right = made.question.removeprefix("Solve ").rstrip(".").split(" = ")
        sides = [re.sub(r"(\d)([x(])", r"\1*\2", side) for side in (left, right)]
        assert len({eval(side, {"x": int(made.answer)}) for side in sides}) == 1, made


@pytest.mark.parametrize(
    ("topic", "first", "strict"),
    [
        ("fractions", "lowest terms", True), ("Adding fractions", "lowest terms", True), ("times tables", "multiplying", True),
        ("solving linear equations", "equations of one", True), ("percentages in shopping", "a percentage", True),
        ("powers of ten", "powers", True), ("unit conversion", "to a smaller", True), ("maths", "adding up to 20", True),
        ("history of fractions in Egypt", "lowest terms", False), ("quadratic equations", "quadratic", True),
        ("The power of Rome", None, False), ("the meaning of life", None, False), ("conflict of interest", None, False),
        ("cell division", None, False), ("volcanoes", None, False), ("French verbs", None, False), ("the", None, False),
    ],
)  # fmt: skip
def test_topics_are_mathematics_or_not(topic, first, strict):
    found = find_skills(topic, strict=False)
    assert (found[0].name.startswith(first) if found else None) == (True if first else None)
    assert bool(find_skills(topic, strict=True)) == (strict and first is not None)
    for level in LEVELS:
        assert not found or skills_for(found, level)


# --- answers

RIGHT, NEAR, WRONG, STUCK = "right", "near", "wrong", "stuck"


@pytest.mark.parametrize(
    ("answer", "form", "unit", "text", "verdict"),
    [
        ("42", "number", "", "6*7", WRONG), ("42", "number", "", "6*7 = 42", RIGHT), ("42", "number", "", "84/2", NEAR),
        ("42", "number", "", "forty-two", RIGHT), ("42", "number", "", "42 or 43", WRONG),
        ("42", "number", "", "not 42", WRONG),
        ("42", "number", "", "I'm not sure, maybe 42?", RIGHT), ("42", "number", "", r"\boxed{42}", RIGHT),
        ("1/2", "number", "", "0,5", RIGHT), ("1/2", "number", "", ".5", RIGHT), ("1/2", "number", "", "one half", RIGHT),
        ("1/2", "number", "", "1/4+1/4", WRONG), ("1/2", "number", "", r"$\frac12$", RIGHT),
        ("7/2", "number", "", "3½", RIGHT),
        ("1/2", "lowest", "", "2/4", NEAR), ("1/2", "lowest", "", "0.5", NEAR), ("0.75", "decimal", "", "3/4", NEAR),
        ("75%", "percent", "", "75", RIGHT), ("75%", "percent", "", "75 percent", RIGHT), ("75%", "percent", "", "3/4", NEAR),
        ("50", "number", "", "50%", WRONG), ("3000", "number", "meters", "3,000m", RIGHT),
        ("24", "number", "", "24 cm²", RIGHT),
        ("3000", "number", "meters", "3 km", WRONG), ("3000", "number", "meters", "3000 km", WRONG),
        ("1234", "number", "", "1 234", RIGHT),
        ("-7", "number", "", "\u22127", RIGHT), ("7", "number", "", "-7", WRONG), ("5", "number", "", "x = 5", RIGHT),
        ("5", "number", "", "5, because 2*5=10", RIGHT), ("60", "number", "km/h", "60 kmh", RIGHT),
        ("11x - 5", "expression", "", "-5+11x", RIGHT),
        ("42", "number", "", "I don't know", STUCK), ("42", "number", "", "?", STUCK), ("42", "number", "", "no idea", STUCK),
        ("certificate", "words", "", "The Certificates.", RIGHT), ("certificate", "words", "", "certifcate", NEAR),
        ("certificate", "words", "", "it is the certificate", RIGHT), ("certificate", "words", "", "key", WRONG),
        ("90", "words", "", "ninety", WRONG), ("90", "words", "", "90 days", RIGHT), ("Málaga", "words", "", "malaga", RIGHT),
        ("Because it is hot", "open", "", "The sun heats it", "open"),
    ],
)  # fmt: skip
def test_answers_are_judged(answer, form, unit, text, verdict):
    assert judge(exercise("?", answer, form, unit), text) == verdict


@given(some.text(max_size=200))
def test_any_text_is_judged_without_an_error(text):
    for answer, form in (("1/2", "lowest"), ("42", "number"), ("3x + 1", "expression"), ("bee", "words")):
        made = exercise("What?", answer, form)
        assert judge(made, text) in {RIGHT, NEAR, WRONG, STUCK}
        gives_away(text, made)
        usable(text, made, [], question=True)


# --- the filter


@given(some.integers(0, 999_999))
def test_numbers_in_words_are_read(value):
    assert numbers_in_words(in_words(value)) == [value]
    assert with_digits(f"it is minus {in_words(value)} now") == f"it is {-value} now"


@settings(max_examples=300)
@given(some.integers(4, 9999), some.integers(1, 60), some.data())
def test_no_number_gives_the_answer_away(above, below, data):
    value = Fraction(above, below)
    made = exercise("What is it?", str(value))
    factor = data.draw(some.integers(1, 9))
    told = [f"{value.numerator * factor}/{value.denominator * factor}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"]
    told += [f"{in_words(value.numerator)} over {in_words(value.denominator)}", f"{float(value)}", " ".join(str(value))]
    if value.denominator == 1:
        told += [in_words(value.numerator), in_words(value.numerator).upper().replace(" ", ""), f"{value.numerator:,}"]
        told += [f"{value.numerator - 1} + 1", "-".join(in_words(value.numerator)), f"0x{value.numerator:x}9"]
    for each in told:
        assert gives_away(f"Look: {each}!", made), each


@pytest.mark.parametrize(
    ("question", "answer", "form", "text"),
    [
        ("What is 6 × 7?", "42", "number", "XLII"), ("What is 6 × 7?", "42", "number", "四十二"),
        ("What is 6 × 7?", "42", "number", "for\u200bty-two"),
        ("It uses a ____ key.", "certificate", "words", "etacifitrec"),
        ("It uses a ____ key.", "certificate", "words", "certi ficate"),
        ("It uses a ____ key.", "certificate", "words", "\u0441ertificate"),
        ("It uses a ____ key.", "certificate", "words", "certified"),
        ("For ____ days.", "90", "words", "ninety"), ("For ____ days.", "90", "words", "nine zero"),
        ("For ____ days.", "90", "words", "45 × 2"),
    ],
)  # fmt: skip
def test_disguises_are_seen_through(question, answer, form, text):
    assert gives_away(text, exercise(question, answer, form))


def test_help_passes_if_it_is_help():
    made = exercise("What is 6 × 7?", "42")
    good = "What does it mean to take 6 groups of 7?"
    assert usable(good, made, [], question=True) == good
    assert usable(f"Hint: {good}", made, [], question=True) == good
    assert usable(good, made, [good], question=True) is None, "never the same again"
    assert usable("Take 6 groups of 7 things.", made, [], question=True) is None, "no question"
    assert usable("I like trains a great deal, do you?", made, [], question=True) is None, "not about it"
    assert usable("The answer is what 6 groups of 7 make.", made, [], question=False) is None
