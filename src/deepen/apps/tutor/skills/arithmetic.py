"""Exercises on whole numbers: the four operations, order, negative numbers, powers and roots, divisors."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, lcm
from random import Random

from deepen.apps.tutor.skills.draft import Draft, Skill, signed
from deepen.apps.tutor.turn import LEVELS, Level


def _add(largest: int) -> Skill:
    def make(random: Random) -> Draft:
        a, b = random.randint(largest // 9, largest), random.randint(largest // 9, largest)
        tens = b // 10 * 10
        return Draft(
            f"What is {a} + {b}?", str(a + b),
            "Which column do you add first, and what do you do when it comes to more than one digit holds?",
            f"Split the second number: first add {tens} to {a}, then add what is left of {b}." if b % 10 and tens else
            f"Count on from {max(a, b)}, or make a round number first.",
            f"{a} + {tens} = {a + tens}. Now add the other {b % 10}." if b % 10 and tens else
            f"Begin with {max(a, b)} and go on by ones or tens.",
            f"{a} + {tens} = {a + tens}, and {a + tens} + {b % 10} = {a + b}." if tens and b % 10 else f"{a} + {b} = {a + b}.",
        )  # fmt: skip

    return Skill(
        f"adding up to {largest}", _SIZE_LEVELS[largest], "Add ones to ones, tens to tens, and carry what is over.", make
    )


def _subtract(largest: int) -> Skill:
    def make(random: Random) -> Draft:
        b = random.randint(largest // 9, largest)
        a = b + random.randint(2, largest)
        tens = b // 10 * 10
        return Draft(
            f"What is {a} - {b}?", str(a - b),
            f"How far is it from {b} up to {a}?",
            f"Take it away in parts: first {tens}, then what is left of {b}." if tens and b % 10 else
            f"Count up from {b} to {a}; the steps are the difference.",
            f"{a} - {tens} = {a - tens}. Now take away the other {b % 10}." if tens and b % 10 else
            f"Begin at {b} and go up to the next round number.",
            f"{a} - {tens} = {a - tens}, and {a - tens} - {b % 10} = {a - b}." if tens and b % 10 else f"{a} - {b} = {a - b}.",
        )  # fmt: skip

    return Skill(
        f"subtracting up to {2 * largest}", _SIZE_LEVELS[largest], "Take away in parts, or count up to the larger number.", make
    )


def _multiply(first: int, second: int, level: int) -> Skill:
    def make(random: Random) -> Draft:
        a, b = random.randint(3, first), random.randint(max(3, second // 4), second)
        tens, ones = b // 10 * 10, b % 10
        split = bool(tens and ones)
        return Draft(
            f"What is {a} × {b}?", str(a * b),
            f"How many groups are there, and how large is each, if you take {a} groups of {b}?",
            f"Split the larger number: {b} is {tens} and {ones}." if split else
            f"Use a product near it that you know, such as {a} × {b - 1}.",
            f"{a} × {tens} = {a * tens}. Now add {a} × {ones}." if split else
            f"{a} × {b - 1} = {a * (b - 1)}. Now add one more {a}.",
            f"{a} × {tens} = {a * tens} and {a} × {ones} = {a * ones}; together {a * b}." if split else
            f"{a} × {b - 1} = {a * (b - 1)}, and one more {a} makes {a * b}.",
        )  # fmt: skip

    return Skill(f"multiplying up to {first} × {second}", LEVELS[level],
        "To multiply is to add equal groups; a large factor may be split.", make)  # fmt: skip


def _divide(largest: int, level: int) -> Skill:
    def make(random: Random) -> Draft:
        b, result = random.choice((3, 4, 5, 6, 7, 8, 9, 12)), random.randint(largest // 4, largest)
        a, half = b * result, result // 10 * 10 or result // 2
        return Draft(
            f"What is {a} ÷ {b}?", str(result),
            f"Which number times {b} gives {a}?",
            f"Take away a large multiple of {b} that you know, such as {b * half}, and see what is left of {a}.",
            f"{b} × {half} = {b * half}; {a - b * half} is left to be divided by {b}.",
            f"{a - b * half} ÷ {b} = {result - half}, and {half} + {result - half} = {result}.",
        )  # fmt: skip

    return Skill(f"dividing with results up to {largest}", LEVELS[level],
        "To divide is to ask how many times one number fits into another.", make)  # fmt: skip


def _order_simple(random: Random) -> Draft:
    a, b, c = random.randint(2, 30), random.randint(2, 9), random.randint(2, 9)
    return Draft(
        f"What is {a} + {b} × {c}?", str(a + b * c),
        "Which operation comes first here?",
        "Multiplication binds closer than addition, wherever it stands.",
        f"{b} × {c} = {b * c}. Now add {a}.",
        f"{b} × {c} = {b * c}, and {a} + {b * c} = {a + b * c}.",
    )  # fmt: skip


def _order_brackets(random: Random) -> Draft:
    a, b, c, d = (random.randint(2, 12) for _ in range(4))
    return Draft(
        f"What is {a} × ({b} + {c}) - {d}?", str(a * (b + c) - d),
        "What do brackets tell you to do?",
        "First what is in the brackets, then the multiplication, then the subtraction.",
        f"{b} + {c} = {b + c}, so it becomes {a} × {b + c} - {d}.",
        f"{a} × {b + c} = {a * (b + c)}, and {a * (b + c)} - {d} = {a * (b + c) - d}.",
    )  # fmt: skip


def _order_powers(random: Random) -> Draft:
    a, b, c, d = random.randint(2, 6), random.randint(3, 9), random.randint(2, 9), random.randint(2, 9)
    inner = b * b - c
    return Draft(
        f"What is {a} × ({b}^2 - {c}) + {d}?", str(a * inner + d),
        "In which order do brackets, powers, products and sums come?",
        "Begin inside the brackets, and there with the power.",
        f"{b}^2 = {b * b}, so the brackets hold {b * b} - {c}.",
        f"{b * b} - {c} = {inner}; {a} × {inner} = {a * inner}; {a * inner} + {d} = {a * inner + d}.",
    )  # fmt: skip


def _negative_sum(random: Random) -> Draft:
    a, b = -random.randint(3, 20), random.randint(2, 20)
    return Draft(
        f"What is {a} + {b}?", str(a + b),
        "Where on the number line do you begin, and which way do you go?",
        f"Begin at {a} and go {b} to the right.",
        f"Compare {abs(a)} and {b}: the result has the sign of the larger one.",
        f"The difference of {abs(a)} and {b} is {abs(a + b)}, with the sign of the larger one: {a + b}.",
    )  # fmt: skip


def _negative_difference(random: Random) -> Draft:
    a, b = random.choice([-1, 1]) * random.randint(2, 20), -random.randint(2, 20)
    return Draft(
        f"What is {a} - ({b})?", str(a - b),
        "What is it to take away something negative?",
        "Taking away a debt is the same as adding as much.",
        f"{a} - ({b}) is the same as {a} + {-b}.",
        f"{a} + {-b} = {a - b}.",
    )  # fmt: skip


def _negative_product(random: Random) -> Draft:
    a, b, c = (random.choice([-1, 1]) * random.randint(2, 9) for _ in range(3))
    a = -abs(a)
    return Draft(
        f"What is {a} × {signed(b)} × {signed(c)}?", str(a * b * c),
        "How many of the factors are negative, and what does that say about the sign?",
        "An even number of negative factors gives a positive product, an odd number a negative one.",
        f"{a} × {signed(b)} = {a * b}. Now the last factor.",
        f"{a * b} × {signed(c)} = {a * b * c}.",
    )  # fmt: skip


def _power(random: Random) -> Draft:
    base, exponent = random.randint(2, 9), random.randint(2, 4)
    before = base ** (exponent - 1)
    return Draft(
        f"What is {base}^{exponent}?", str(base**exponent),
        f"How often does {base} stand as a factor?",
        f"Write it out: {' × '.join([str(base)] * exponent)}.",
        f"{base} × {base} comes first." if exponent == 2 else f"All but the last factor make {before}. Now times {base}.",
        f"{' × '.join([str(base)] * exponent)} = {base**exponent}.",
    )  # fmt: skip


def _power_rule(random: Random) -> Draft:
    base, m, n = random.choice("abxyz"), random.randint(3, 12), random.randint(2, 9)
    product = random.random() < 0.5
    m = m if product else m + n
    result = m + n if product else m - n
    return Draft(
        f"{base}^{m} {'×' if product else '÷'} {base}^{n} = {base}^n. What is n?", str(result),
        f"How many factors {base} are there in each power?",
        "The exponents are added when powers of one base are multiplied, and subtracted when they are divided.",
        f"Write the exponents with the right sign between them: {m} {'+' if product else '-'} {n}.",
        f"{m} {'+' if product else '-'} {n} = {result}, so it is {base}^{result}.",
    )  # fmt: skip


def _power_negative(random: Random) -> Draft:
    base, exponent = random.randint(2, 6), random.randint(1, 3)
    return Draft(
        f"What is {base}^(-{exponent}), as a fraction?", str(Fraction(1, base**exponent)),
        "What does the minus in an exponent stand for?",
        "A negative exponent means one divided by the power.",
        f"It is one divided by {base}^{exponent}.",
        f"{base}^{exponent} = {base**exponent}, so it is {Fraction(1, base**exponent)}.", "fraction",
    )  # fmt: skip


def _root(random: Random) -> Draft:
    root = random.randint(4, 20)
    return Draft(
        f"What is the square root of {root * root}?", str(root),
        f"Which positive number times itself gives {root * root}?",
        f"Look for round numbers around it: {root // 10 * 10}^2 is {(root // 10 * 10) ** 2}, which is less."
        if root > 10 else "Go through the squares that you know.",
        f"Its last digit must be one whose square ends in {root * root % 10}.",
        f"{root} × {root} = {root * root}, so the root is {root}.",
    )  # fmt: skip


def _divisor(random: Random) -> Draft:
    common = random.randint(2, 12)
    a, b = common * random.randint(2, 9), common * random.randint(2, 9)
    return Draft(
        f"What is the greatest common divisor of {a} and {b}?", str(gcd(a, b)),
        "Which numbers divide both?",
        f"What divides {a} and {b} also divides their difference, {abs(a - b)}." if a != b else "A number divides itself.",
        f"Write {a} and {b} as products of primes, and take those that they share.",
        f"{a} = {gcd(a, b)} × {a // gcd(a, b)} and {b} = {gcd(a, b)} × {b // gcd(a, b)}, which share no more: {gcd(a, b)}.",
    )  # fmt: skip


def _multiple(random: Random) -> Draft:
    a, b = random.randint(4, 18), random.randint(4, 18)
    common = gcd(a, b)
    return Draft(
        f"What is the least common multiple of {a} and {b}?", str(lcm(a, b)),
        f"Which numbers are multiples of {a} and of {b}?",
        f"Go through the multiples of {max(a, b)} until {min(a, b)} divides one.",
        f"Their greatest common divisor is {common}; divide the product {a} × {b} by it.",
        f"{a} × {b} = {a * b}, and {a * b} ÷ {common} = {lcm(a, b)}.",
    )  # fmt: skip


_SIZE_LEVELS: dict[int, Level] = dict(zip((20, 100, 1000), LEVELS, strict=True))
_FIRST = "Brackets first, then powers, then products and quotients, then sums and differences."
_SIGNS = "On the number line, adding goes right, subtracting left; two minus signs side by side make a plus."

ADDITION = tuple(map(_add, _SIZE_LEVELS))
SUBTRACTION = tuple(map(_subtract, _SIZE_LEVELS))
MULTIPLICATION = (_multiply(10, 10, 0), _multiply(9, 40, 1), _multiply(25, 60, 2))
DIVISION = (_divide(10, 0), _divide(40, 1), _divide(150, 2))
OPERATIONS = (
    Skill("product before sum", "beginner", _FIRST, _order_simple),
    Skill("brackets first", "intermediate", _FIRST, _order_brackets),
    Skill("powers in brackets", "advanced", _FIRST, _order_powers),
)
NEGATIVE = (
    Skill("adding to a negative number", "beginner", _SIGNS, _negative_sum),
    Skill("subtracting a negative number", "intermediate", _SIGNS, _negative_difference),
    Skill(
        "products of negative numbers",
        "advanced",
        "Equal signs give a positive product, different ones a negative.",
        _negative_product,
    ),
)
POWERS = (
    Skill("powers", "beginner", "A power is a product of equal factors; the exponent says how many.", _power),
    Skill("square roots", "intermediate", "The square root of a number is what gives that number when it is squared.", _root),
    Skill("rules of exponents", "intermediate", "Powers of one base are multiplied by adding their exponents.", _power_rule),
    Skill("negative exponents", "advanced", "A negative exponent means one divided by the power.", _power_negative),
)
DIVISORS = (
    Skill("common divisors", "beginner", "A divisor divides without a remainder; a common one divides both numbers.", _divisor),
    Skill("common multiples", "intermediate", "A common multiple can be divided by both numbers.", _multiple),
)
