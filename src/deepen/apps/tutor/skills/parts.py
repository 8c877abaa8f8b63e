"""Exercises on parts of a whole: fractions, decimals, percentages, ratios."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, lcm
from random import Random

from deepen.apps.tutor.skills.draft import Draft, Skill, decimal


def _simplify(random: Random) -> Draft:
    part = _proper(random, 12)
    factor = random.randint(2, 9)
    a, b = part.numerator * factor, part.denominator * factor
    return Draft(
        f"Write {a}/{b} in lowest terms.", str(part),
        f"Which number divides both {a} and {b}?",
        "Divide above and below by the same number, until nothing but 1 divides both.",
        f"Both can be divided by {factor}." if factor < part.denominator else
        f"The greatest common divisor of {a} and {b} is {factor}.",
        f"{a} ÷ {factor} = {part.numerator} and {b} ÷ {factor} = {part.denominator}, so it is {part}.", "lowest",
    )  # fmt: skip


def _add_like(random: Random) -> Draft:
    below = random.randint(5, 15)
    a, b = random.randint(1, below - 2), random.randint(1, below - 2)
    return _sum(Fraction(a, below), Fraction(b, below), (a, below), (b, below))


def _add_unlike(random: Random) -> Draft:
    first, second = _proper(random, 9), _proper(random, 9)
    return _sum(first, second, (first.numerator, first.denominator), (second.numerator, second.denominator))


def _sum(first: Fraction, second: Fraction, one: tuple[int, int], other: tuple[int, int]) -> Draft:
    below = lcm(one[1], other[1])
    a, b = one[0] * below // one[1], other[0] * below // other[1]
    result = first + second
    same = one[1] == other[1]
    lowest = "" if result.denominator == below else f", in lowest terms {result}"
    return Draft(
        f"What is {one[0]}/{one[1]} + {other[0]}/{other[1]}?", str(result),
        "Are the parts of one size? If not, how can they be made so?",
        "Parts of one size are simply counted together." if same else
        f"Find a number that {one[1]} and {other[1]} both divide, as the common denominator.",
        f"Count the parts: {one[0]} and {other[0]} of them. Their size stays." if same else
        f"With the denominator {below} they are {a}/{below} and {b}/{below}.",
        f"{a}/{below} + {b}/{below} = {a + b}/{below}{lowest}.",
    )  # fmt: skip


def _multiply(random: Random) -> Draft:
    a, b = _proper(random, 9), _proper(random, 9)
    above, below = a.numerator * b.numerator, a.denominator * b.denominator
    return Draft(
        f"What is {a} × {b}?", str(a * b),
        f"How much is {a} of {b}?",
        "Multiply above with above and below with below.",
        f"Below it is {a.denominator} × {b.denominator} = {below}.",
        f"Above it is {above}, below {below}: {above}/{below}"
        f"{'' if Fraction(above, below).denominator == below else f' = {a * b}'}.",
    )  # fmt: skip


def _divide(random: Random) -> Draft:
    a, b = _proper(random, 9), _proper(random, 9)
    turned = f"{b.denominator}/{b.numerator}"
    return Draft(
        f"What is {a} ÷ {b}?", str(a / b),
        f"How often does {b} fit into {a}?",
        "To divide by a fraction, multiply by the fraction turned over.",
        f"It becomes {a} × {turned}.",
        f"{a} × {turned} = {a.numerator * b.denominator}/{a.denominator * b.numerator}; in lowest terms {a / b}.",
    )  # fmt: skip


def _of_number(random: Random) -> Draft:
    part = 1 - Fraction(1, random.randint(3, 9))
    whole = part.denominator * random.randint(3, 15)
    one = whole // part.denominator
    return Draft(
        f"What is {part} of {whole}?", str(int(part * whole)),
        f"How much is 1/{part.denominator} of {whole}?",
        f"Divide by {part.denominator} first, then multiply by {part.numerator}.",
        f"{whole} ÷ {part.denominator} = {one}.",
        f"{whole} ÷ {part.denominator} = {one}, and {one} × {part.numerator} = {int(part * whole)}.",
    )  # fmt: skip


def _decimal_sum(random: Random) -> Draft:
    a, b = Fraction(random.randint(11, 199), 10), Fraction(random.randint(101, 999), 100)
    return Draft(
        f"What is {decimal(a)} + {decimal(b)}?", decimal(a + b),
        "Which digits stand for parts of the same size?",
        "Write the numbers one below the other, point below point, and fill up with zeros.",
        f"Write {decimal(a)} as {decimal(a)}0, and add hundredths to hundredths.",
        f"{decimal(a)}0 + {decimal(b)} = {decimal(a + b)}.",
    )  # fmt: skip


def _decimal_product(random: Random) -> Draft:
    a, b = random.randint(3, 49), random.randint(3, 12)
    a, b = a + (a % 10 == 0), b + (b % 10 == 0)
    result = Fraction(a * b, 100)
    return Draft(
        f"What is {decimal(Fraction(a, 10))} × {decimal(Fraction(b, 10))}?", decimal(result),
        "How many digits stand behind the points of both factors together?",
        f"Leave the points away first, {a} × {b}, and put one into the result at the end.",
        "The result has as many digits behind its point as both factors together.",
        f"{a} × {b} = {a * b}; with two digits behind the point that is {decimal(result)}.",
    )  # fmt: skip


def _decimal_division(random: Random) -> Draft:
    b, result = random.randint(2, 12), Fraction(random.randint(11, 99), 10)
    a = result * b / 10
    return Draft(
        f"What is {decimal(a)} ÷ {decimal(Fraction(b, 10))}?", decimal(result),
        "What happens to a quotient when both numbers become ten times as large?",
        "Move both points to the right until the divisor is a whole number.",
        f"It is the same as {decimal(a * 10)} ÷ {b}.",
        f"{decimal(a * 10)} ÷ {b} = {decimal(result)}.",
    )  # fmt: skip


def _fraction_to_decimal(random: Random) -> Draft:
    below = random.choice([4, 5, 8, 20, 25, 50])
    above = random.choice([each for each in range(1, below) if gcd(each, below) == 1])
    scale = 1000 if below == 8 else 100
    return Draft(
        f"Write {above}/{below} as a decimal number.", decimal(Fraction(above, below)),
        "What does the line of a fraction stand for?",
        f"Divide {above} by {below}, or find a fraction of the same value with {scale} below.",
        f"{scale} ÷ {below} = {scale // below}, so multiply above and below by that.",
        f"{above}/{below} = {above * scale // below}/{scale} = {decimal(Fraction(above, below))}.", "decimal",
    )  # fmt: skip


def _percent_of(random: Random) -> Draft:
    rate, whole = random.choice([5, 10, 20, 25, 30, 40, 60, 75]), 20 * random.randint(3, 40)
    one = decimal(Fraction(whole, 100))
    return Draft(
        f"What is {rate}% of {whole}?", decimal(Fraction(rate * whole, 100)),
        f"How much is one percent of {whole}?",
        "One percent is a hundredth. Divide, then multiply.",
        f"One percent of {whole} is {one}.",
        f"{one} × {rate} = {decimal(Fraction(rate * whole, 100))}.",
    )  # fmt: skip


def _percent_which(random: Random) -> Draft:
    whole = random.choice([20, 25, 40, 50, 80, 200, 250])
    part = random.choice([each for each in range(1, whole) if each * 100 % whole == 0])
    return Draft(
        f"What percentage of {whole} is {part}?", f"{part * 100 // whole}%",
        f"What part of {whole} is {part}, as a fraction?",
        "Write it as a fraction, and make its denominator a hundred.",
        f"Begin with {part}/{whole}.",
        f"{part}/{whole} = {part * 100 // whole}/100 = {part * 100 // whole}%.", "percent",
    )  # fmt: skip


def _percent_change(random: Random) -> Draft:
    price, rate, up = 20 * random.randint(2, 30), random.choice([5, 10, 15, 20, 25, 30, 35]), random.random() < 0.5
    change = Fraction(price * rate, 100)
    result = price + change if up else price - change
    return Draft(
        f"A price of {price} dollars {'rises' if up else 'falls'} by {rate}%. What is the new price, in dollars?",
        decimal(result),
        f"How many dollars are {rate}% of {price}?",
        f"Find the change first, then {'add it' if up else 'take it away'}.",
        f"{rate}% of {price} is {decimal(change)}.",
        f"{price} {'+' if up else '-'} {decimal(change)} = {decimal(result)} dollars.", "number", "dollars",
    )  # fmt: skip


def _percent_back(random: Random) -> Draft:
    before, rate = 20 * random.randint(3, 30), random.choice([10, 20, 25, 30, 40])
    after = Fraction(before * (100 - rate), 100)
    return Draft(
        f"After a discount of {rate}% a coat costs {decimal(after)} dollars. What did it cost before, in dollars?", str(before),
        "What percentage of the old price is the new one?",
        f"The new price is {100 - rate}% of the old one, which is not yet known.",
        f"One percent of the old price is {decimal(after)} ÷ {100 - rate} = {decimal(after / (100 - rate))}.",
        f"{decimal(after / (100 - rate))} × 100 = {before} dollars.", "number", "dollars",
    )  # fmt: skip


def _proportion(random: Random) -> Draft:
    one, first, second = random.randint(3, 12), random.randint(2, 6), random.randint(7, 15)
    return Draft(
        f"{first} notebooks cost {one * first} dollars. What do {second} notebooks cost, in dollars?", str(one * second),
        "What does a single notebook cost?",
        "Go by way of one: divide, then multiply.",
        f"One notebook costs {one * first} ÷ {first} = {one} dollars.",
        f"{one} × {second} = {one * second} dollars.", "number", "dollars",
    )  # fmt: skip


def _share(random: Random) -> Draft:
    a, b, one = random.randint(2, 5), random.randint(6, 9), random.randint(3, 20)
    return Draft(
        f"{(a + b) * one} marbles are shared in the ratio {a}:{b}. How many are in the larger share?", str(b * one),
        "How many equal parts are there in all?",
        f"The ratio has {a} + {b} parts; find the size of a single one.",
        f"There are {a + b} parts, so one is {(a + b) * one} ÷ {a + b} = {one}.",
        f"{b} × {one} = {b * one} marbles.", "number", "marbles",
    )  # fmt: skip


def _inverse(random: Random) -> Draft:
    people, days = random.randint(2, 6), random.randint(4, 12)
    others = random.choice([each for each in range(2, 13) if people * days % each == 0 and each != people] or [1])
    return Draft(
        f"{people} painters need {days} days for a house. How many days do {others} painters need?",
        str(people * days // others),
        "Do more painters need more days, or fewer?",
        "The work in days of a single painter stays the same.",
        f"In all it is {people} × {days} = {people * days} days of a single painter.",
        f"{people * days} ÷ {others} = {people * days // others} days.", "number", "days",
    )  # fmt: skip


def _proper(random: Random, largest: int) -> Fraction:
    below = random.randint(3, largest)
    return Fraction(random.choice([each for each in range(1, below) if gcd(each, below) == 1]), below)


FRACTIONS = (
    Skill("lowest terms", "beginner", "Dividing above and below by the same number does not change a fraction.", _simplify),
    Skill("fractions with one denominator", "beginner", "Parts of one size are counted together; their size stays.", _add_like),
    Skill("a fraction of a number", "beginner", "Divide by what is below, multiply by what is above.", _of_number),
    Skill("fractions with different denominators", "intermediate",
        "Bring them to a common denominator, then add what is above.", _add_unlike),
    Skill("products of fractions", "intermediate", "Multiply above with above and below with below.", _multiply),
    Skill("quotients of fractions", "advanced", "Dividing by a fraction is multiplying by it turned over.", _divide),
)  # fmt: skip
DECIMALS = (
    Skill("sums of decimals", "beginner", "Write point below point, and add as with whole numbers.", _decimal_sum),
    Skill("fractions as decimals", "intermediate",
        "A fraction is a division: what is above divided by what is below.", _fraction_to_decimal),
    Skill("products of decimals", "intermediate",
        "Multiply without the points, then count the digits behind them.", _decimal_product),
    Skill("quotients of decimals", "advanced", "Make the divisor whole by moving both points.", _decimal_division),
)  # fmt: skip
PERCENTAGES = (
    Skill("a percentage of a number", "beginner",
        "One percent is a hundredth; take as many of them as are asked for.", _percent_of),
    Skill("which percentage", "intermediate", "Write the part over the whole, with a hundred below.", _percent_which),
    Skill("percentage changes", "intermediate",
        "Find the change from the old value, then add it or take it away.", _percent_change),
    Skill("back to the old value", "advanced",
        "The new value is what is left of the whole old one, in percent.", _percent_back),
)  # fmt: skip
RATIOS = (
    Skill("proportions", "beginner", "Go by way of a single one: divide, then multiply.", _proportion),
    Skill("sharing in a ratio", "intermediate", "Add the parts of the ratio, and find how large one part is.", _share),
    Skill("inverse proportions", "advanced",
        "Where more of one means less of the other, their product stays the same.", _inverse),
)  # fmt: skip
