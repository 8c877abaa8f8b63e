"""Exercises with letters: equations, expressions, sequences."""

from __future__ import annotations

from random import Random

from deepen.apps.tutor.skills.draft import Draft, Skill, plus


def _one_step(random: Random) -> Draft:
    x, a = random.randint(3, 30), random.randint(2, 30)
    if random.random() < 0.5:
        return Draft(
            f"Solve x + {a} = {x + a}.", str(x),
            "What was done to x, and what undoes it?",
            f"Do the same on both sides, so that x stands alone: take away {a}.",
            f"x = {x + a} - {a}.",
            f"{x + a} - {a} = {x}, so x = {x}.",
        )  # fmt: skip
    a = random.randint(2, 12)
    return Draft(
        f"Solve {a}x = {a * x}.", str(x),
        "What was done to x, and what undoes it?",
        f"Do the same on both sides, so that x stands alone: divide by {a}.",
        f"x = {a * x} ÷ {a}.",
        f"{a * x} ÷ {a} = {x}, so x = {x}.",
    )  # fmt: skip


def _two_steps(random: Random) -> Draft:
    x, a, b = random.randint(2, 15), random.randint(2, 9), random.choice([-1, 1]) * random.randint(2, 20)
    return Draft(
        f"Solve {a}x{plus(b)} = {a * x + b}.", str(x),
        "Which two things were done to x, and in which order are they undone?",
        f"First undo what was added last: {'take away' if b > 0 else 'add'} {abs(b)} on both sides.",
        f"{a}x = {a * x + b}{plus(-b)} = {a * x}.",
        f"{a}x = {a * x}, and {a * x} ÷ {a} = {x}, so x = {x}.",
    )  # fmt: skip


def _both_sides(random: Random) -> Draft:
    x, c = random.choice([-1, 1]) * random.randint(2, 12), random.randint(2, 6)
    a, b = c + random.randint(2, 6), random.randint(-20, 20)
    d = (a - c) * x + b
    return Draft(
        f"Solve {a}x{plus(b)} = {c}x{plus(d)}.", str(x),
        "How can all x come to one side?",
        f"Take away {c}x on both sides, then bring the numbers to the other side.",
        f"{a - c}x{plus(b)} = {d}.",
        f"{a - c}x = {d - b}, and {d - b} ÷ {a - c} = {x}, so x = {x}.",
    )  # fmt: skip


def _bracket_equation(random: Random) -> Draft:
    x, a, b, c = (
        random.randint(-9, 12),
        random.randint(2, 9),
        random.choice([-1, 1]) * random.randint(2, 9),
        random.randint(2, 20),
    )
    right = a * (x + b) - c
    return Draft(
        f"Solve {a}(x{plus(b)}) - {c} = {right}.", str(x),
        "What was done last on the left side?",
        f"Add {c} on both sides, then divide by {a}.",
        f"{a}(x{plus(b)}) = {right + c}.",
        f"{right + c} ÷ {a} = {(right + c) // a}, and {(right + c) // a}{plus(-b)} = {x}, so x = {x}.",
    )  # fmt: skip


def _quadratic(random: Random) -> Draft:
    first, second = random.randint(2, 9), -random.randint(2, 9)
    b, c = -(first + second), first * second
    middle = "" if b == 0 else f"{plus(b)}x" if abs(b) > 1 else f" {'+' if b > 0 else '-'} x"
    return Draft(
        f"What is the positive solution of x^2{middle}{plus(c)} = 0?", str(first),
        f"Which two numbers have the product {c} and the sum {b}, if the left side is (x + p)(x + q)?",
        "A product is zero exactly when one of its factors is.",
        f"One of the factors is (x{plus(-second)}), which belongs to the negative solution.",
        f"x^2{middle}{plus(c)} = (x{plus(-first)})(x{plus(-second)}), so the positive solution is {first}.",
    )  # fmt: skip


def _evaluate(random: Random) -> Draft:
    a, x, b = random.randint(2, 9), random.randint(2, 12), random.randint(2, 20)
    return Draft(
        f"What is {a}x + {b} for x = {x}?", str(a * x + b),
        "What does a number right before a letter mean?",
        f"Put {x} in the place of x, and multiply before you add.",
        f"{a} × {x} = {a * x}.",
        f"{a * x} + {b} = {a * x + b}.",
    )  # fmt: skip


def _expand(random: Random) -> Draft:
    a, b, c = random.randint(2, 9), random.randint(2, 9), random.choice([-1, 1]) * random.randint(2, 9)
    return Draft(
        f"Write without brackets: {a}({b}x{plus(c)}).", f"{a * b}x{plus(a * c)}",
        "With what is each term in the brackets multiplied?",
        f"Multiply both terms in the brackets by {a}.",
        f"The first term is {a} × {b}x = {a * b}x.",
        f"{a} × {b}x = {a * b}x and {a} × {c} = {a * c}, so it is {a * b}x{plus(a * c)}.", "expression",
    )  # fmt: skip


def _collect(random: Random) -> Draft:
    a, b, c, d = random.randint(3, 9), random.randint(2, 9), random.randint(2, 9), random.randint(2, 9)
    return Draft(
        f"Simplify {a}x + {b} + {c}x - {d}.", f"{a + c}x{plus(b - d) if b != d else ''}",
        "Which terms are of the same kind?",
        "Terms with x go together, and so do the numbers alone.",
        f"{a}x + {c}x = {a + c}x.",
        f"{a}x + {c}x = {a + c}x and {b} - {d} = {b - d}, so it is {a + c}x{plus(b - d) if b != d else ''}.", "expression",
    )  # fmt: skip


def _square_of_sum(random: Random) -> Draft:
    a = random.choice([-1, 1]) * random.randint(2, 12)
    return Draft(
        f"Write without brackets: (x{plus(a)})^2.", f"x^2{plus(2 * a)}x{plus(a * a)}",
        "Which products come up when the bracket is multiplied by itself?",
        "Each of the two terms meets each of the two others, so the mixed product comes up twice.",
        f"Begin with x × x and {abs(a)} × {abs(a)}; the mixed term is what is missing.",
        f"x^2, twice {a}x, and {a * a}: x^2{plus(2 * a)}x{plus(a * a)}.", "expression",
    )  # fmt: skip


def _next_term(random: Random) -> Draft:
    first, step = random.randint(2, 30), random.randint(3, 15)
    terms = [first + step * place for place in range(5)]
    return Draft(
        f"Which number comes next: {', '.join(map(str, terms[:4]))}?", str(terms[4]),
        "How does one number become the next?",
        "Look at the differences between neighbours.",
        f"The difference is {step} each time.",
        f"{terms[3]} + {step} = {terms[4]}.",
    )  # fmt: skip


def _next_product(random: Random) -> Draft:
    first, factor = random.randint(2, 7), random.randint(2, 4)
    terms = [first * factor**place for place in range(5)]
    return Draft(
        f"Which number comes next: {', '.join(map(str, terms[:4]))}?", str(terms[4]),
        "How does one number become the next?",
        "The differences grow; look at the quotients of neighbours.",
        f"Each number is {factor} times the one before.",
        f"{terms[3]} × {factor} = {terms[4]}.",
    )  # fmt: skip


def _nth_term(random: Random) -> Draft:
    first, step, place = random.randint(2, 20), random.randint(3, 9), random.randint(12, 40)
    terms = [first + step * each for each in range(4)]
    return Draft(
        f"In the arithmetic sequence {', '.join(map(str, terms))}, …, what is term number {place}?",
        str(first + step * (place - 1)),
        f"How many steps lie between the first term and term number {place}?",
        "There is one step fewer than there are terms.",
        f"Each step adds {step}, and there are {place} - 1 of them.",
        f"{first} + {place - 1} × {step} = {first + step * (place - 1)}.",
    )  # fmt: skip


EQUATIONS = (
    Skill("equations of one step", "beginner", "What was done to x is undone on both sides.", _one_step),
    Skill("equations of two steps", "intermediate", "Undo first what was done last, always on both sides.", _two_steps),
    Skill("equations with brackets", "intermediate", "Undo from outside to inside until x stands alone.", _bracket_equation),
    Skill("x on both sides", "advanced", "Bring all x to one side and all numbers to the other.", _both_sides),
)
QUADRATICS = (
    Skill("quadratic equations", "advanced", "Write the left side as a product; it is zero where a factor is.", _quadratic),
)
EXPRESSIONS = (
    Skill("putting in numbers", "beginner",
        "Put the number in the place of the letter, then calculate in the usual order.", _evaluate),
    Skill("collecting terms", "beginner", "Only terms of the same kind can be added.", _collect),
    Skill("taking brackets away", "intermediate", "What stands before the brackets multiplies each term in them.", _expand),
    Skill("the square of a sum", "advanced", "A sum squared is both squares and twice the mixed product.", _square_of_sum),
)  # fmt: skip
SEQUENCES = (
    Skill("equal differences", "beginner", "Look at what is added from one number to the next.", _next_term),
    Skill("equal quotients", "intermediate", "Look at the factor from one number to the next.", _next_product),
    Skill("any term of a sequence", "advanced", "Start with the first term and add the step as often as needed.", _nth_term),
)
