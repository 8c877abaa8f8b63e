"""Exercises on measures: units, areas and volumes, right triangles, time and speed, averages, chance, interest."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from deepen.apps.tutor.skills.draft import Draft, Skill, decimal

_UNITS = (
    ("kilometers", "meters", 1000), ("meters", "centimeters", 100), ("centimeters", "millimeters", 10),
    ("kilograms", "grams", 1000), ("liters", "milliliters", 1000), ("hours", "minutes", 60),
    ("minutes", "seconds", 60), ("days", "hours", 24),
)  # fmt: skip
_TRIPLES = ((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29))


def _to_smaller(random: Random) -> Draft:
    large, small, factor = random.choice(_UNITS)
    value = random.randint(2, 30)
    return Draft(
        f"How many {small} are {value} {large}?", str(value * factor),
        f"How many {small} are one of the {large}?",
        "The smaller unit needs more of them, so multiply.",
        f"There are {factor} {small} in one of the {large}.",
        f"{value} × {factor} = {value * factor} {small}.", "number", small,
    )  # fmt: skip


def _to_larger(random: Random) -> Draft:
    large, small, factor = random.choice(_UNITS)
    value = Fraction(random.randint(3, 50), 4 if factor in {60, 24} else 10)
    return Draft(
        f"How many {large} are {decimal(value * factor)} {small}?", decimal(value),
        f"How many {small} are one of the {large}?",
        "The larger unit needs fewer of them, so divide.",
        f"There are {factor} {small} in one of the {large}.",
        f"{decimal(value * factor)} ÷ {factor} = {decimal(value)} {large}.", "number", large,
    )  # fmt: skip


def _square_units(random: Random) -> Draft:
    value = Fraction(random.randint(2, 90), 10)
    return Draft(
        f"How many square centimeters are {decimal(value)} square meters?", decimal(value * 10_000),
        "How many small squares lie along one side of a square meter, and how many rows are there?",
        "Along each side there are 100 centimeters.",
        "One square meter has 100 × 100 square centimeters.",
        f"{decimal(value)} × 10000 = {decimal(value * 10_000)} square centimeters.",
    )  # fmt: skip


def _rectangle(random: Random) -> Draft:
    a, b = random.randint(3, 20), random.randint(3, 20)
    if random.random() < 0.5:
        return Draft(
            f"A rectangle is {a} cm long and {b} cm wide. What is its area, in square centimeters?", str(a * b),
            "How many squares of one centimeter fit in a row, and how many rows are there?",
            "The area is length times width.",
            f"There are {b} rows of {a} squares.",
            f"{a} × {b} = {a * b} square centimeters.",
        )  # fmt: skip
    return Draft(
        f"A rectangle is {a} cm long and {b} cm wide. What is its perimeter, in centimeters?", str(2 * (a + b)),
        "How long is the way once around it?",
        "Each length comes up twice on the way around.",
        f"Length and width together are {a} + {b} = {a + b}.",
        f"Twice {a + b} is {2 * (a + b)} centimeters.", "number", "cm",
    )  # fmt: skip


def _triangle(random: Random) -> Draft:
    base, height = 2 * random.randint(3, 15), random.randint(3, 20)
    return Draft(
        f"A triangle has a base of {base} cm and a height of {height} cm. What is its area, in square centimeters?",
        str(base * height // 2),
        "Which part of a rectangle of the same base and height does the triangle fill?",
        "It fills half of the rectangle.",
        f"The rectangle has {base} × {height} = {base * height} square centimeters.",
        f"Half of {base * height} is {base * height // 2} square centimeters.",
    )  # fmt: skip


def _box(random: Random) -> Draft:
    a, b, c = random.randint(3, 12), random.randint(3, 12), random.randint(3, 12)
    return Draft(
        f"A box is {a} cm long, {b} cm wide and {c} cm high. What is its volume, in cubic centimeters?", str(a * b * c),
        "How many cubes of one centimeter cover the floor, and how many layers are there?",
        "The volume is length times width times height.",
        f"The floor takes {a} × {b} = {a * b} cubes.",
        f"{a * b} × {c} = {a * b * c} cubic centimeters.",
    )  # fmt: skip


def _hypotenuse(random: Random) -> Draft:
    factor = random.randint(1, 4)
    a, b, c = (each * factor for each in random.choice(_TRIPLES))
    return Draft(
        f"A right triangle has legs of {a} cm and {b} cm. How long is its hypotenuse, in centimeters?", str(c),
        "Which squares add up in a right triangle?",
        "The squares of the legs together are the square of the hypotenuse (Pythagoras).",
        f"{a}^2 + {b}^2 = {a * a} + {b * b}.",
        f"{a * a} + {b * b} = {c * c}, whose square root is {c}.", "number", "cm",
    )  # fmt: skip


def _leg(random: Random) -> Draft:
    factor = random.randint(1, 4)
    a, b, c = (each * factor for each in random.choice(_TRIPLES))
    return Draft(
        f"A right triangle has a leg of {b} cm and a hypotenuse of {c} cm. How long is the other leg, in centimeters?", str(a),
        "Which square is the sum of the two others?",
        "Take the square of the known leg away from the square of the hypotenuse.",
        f"{c}^2 - {b}^2 = {c * c} - {b * b}.",
        f"{c * c} - {b * b} = {a * a}, whose square root is {a}.", "number", "cm",
    )  # fmt: skip


def _distance(random: Random) -> Draft:
    speed, hours = 5 * random.randint(4, 24), random.randint(2, 7)
    return Draft(
        f"A train goes {speed} km in an hour. How many kilometers does it go in {hours} hours?", str(speed * hours),
        "How far does it go in each hour?",
        "It goes as far in every hour, so multiply.",
        f"In the first hour and the second one it goes {speed} + {speed} = {2 * speed} km."
        if hours > 2 else f"Add {speed} km for every hour.",
        f"{speed} × {hours} = {speed * hours} kilometers.", "number", "km",
    )  # fmt: skip


def _speed(random: Random) -> Draft:
    speed, quarters = 4 * random.randint(5, 30), random.choice([2, 3, 5, 6, 7, 10])
    minutes, way = 15 * quarters, speed * quarters // 4
    return Draft(
        f"A car goes {way} km in {minutes} minutes. What is its speed, in kilometers per hour?", str(speed),
        "How far would it go in a whole hour?",
        "Find the way in a quarter of an hour first.",
        f"In 15 minutes it goes {way} ÷ {quarters} = {decimal(Fraction(way, quarters))} km.",
        f"Four times {decimal(Fraction(way, quarters))} is {speed} kilometers per hour.", "number", "km/h",
    )  # fmt: skip


def _meeting(random: Random) -> Draft:
    a, b, hours = 5 * random.randint(3, 12), 5 * random.randint(3, 12), random.randint(2, 6)
    return Draft(
        f"Two cyclists start {(a + b) * hours} km apart and ride towards each other at {a} and {b} km/h."
        " After how many hours do they meet?", str(hours),
        "By how much does the distance between them shrink in an hour?",
        "Their speeds add up.",
        f"In each hour they come {a} + {b} = {a + b} km nearer.",
        f"{(a + b) * hours} ÷ {a + b} = {hours} hours.", "number", "hours",
    )  # fmt: skip


def _mean(random: Random) -> Draft:
    mean, count = random.randint(5, 30), random.choice([3, 4])
    values = [mean + random.randint(-4, 4) for _ in range(count - 1)]
    values.append(mean * count - sum(values))
    total = sum(values)
    return Draft(
        f"What is the mean of {', '.join(map(str, values))}?", str(mean),
        "If all of them were shared out equally, how much would each be?",
        "Add them up, and divide by how many there are.",
        f"Their sum is {total}.",
        f"{total} ÷ {count} = {mean}.",
    )  # fmt: skip


def _median(random: Random) -> Draft:
    values = random.sample(range(3, 60), 4)
    ordered = sorted(values)
    middle = Fraction(ordered[1] + ordered[2], 2)
    return Draft(
        f"What is the median of {', '.join(map(str, values))}?", decimal(middle),
        "What stands in the middle when they are put in order?",
        "With an even number of values it is the mean of the middle pair.",
        f"In order they are {', '.join(map(str, ordered))}.",
        f"The mean of {ordered[1]} and {ordered[2]} is {decimal(middle)}.",
    )  # fmt: skip


def _missing_value(random: Random) -> Draft:
    mean, known = random.randint(8, 30), [random.randint(5, 30) for _ in range(3)]
    missing = 4 * mean - sum(known)
    return Draft(
        f"Four numbers have the mean {mean}. Three of them are {known[0]}, {known[1]} and {known[2]}. What is the fourth?",
        str(missing),
        "What is the sum of all four?",
        "The sum is the mean times how many there are.",
        f"All four together are 4 × {mean} = {4 * mean}.",
        f"{4 * mean} - {sum(known)} = {missing}.",
    )  # fmt: skip


def _chance(random: Random) -> Draft:
    red, blue = random.randint(2, 12), random.randint(2, 12)
    return Draft(
        f"A bag holds {red} red and {blue} blue balls. What is the probability of drawing a red one, as a fraction?",
        str(Fraction(red, red + blue)),
        "How many outcomes are there in all, and how many of them are red?",
        "Divide the favourable outcomes by all outcomes.",
        f"There are {red} + {blue} = {red + blue} balls in all.",
        f"{red} of {red + blue} are red: {Fraction(red, red + blue)}.",
    )  # fmt: skip


def _two_draws(random: Random) -> Draft:
    red, blue = random.randint(2, 6), random.randint(2, 6)
    total = red + blue
    result = Fraction(red, total) * Fraction(red - 1, total - 1)
    return Draft(
        f"A bag holds {red} red and {blue} blue balls. Two are drawn, and none is put back. What is the probability that both"
        " are red, as a fraction?", str(result),
        "What has changed in the bag before the second draw?",
        "Multiply the probability of the first draw by that of the second.",
        f"After a red ball there are {total - 1} balls left, of which {red - 1} are red.",
        f"{red}/{total} × {red - 1}/{total - 1} = {result}.",
    )  # fmt: skip


def _interest(random: Random) -> Draft:
    amount, rate, years = 100 * random.randint(3, 40), random.randint(2, 8), random.randint(2, 6)
    one = amount * rate // 100
    return Draft(
        f"{amount} dollars earn {rate}% simple interest a year. How much interest is that in {years} years, in dollars?",
        str(one * years),
        "How much is it in a single year?",
        "Find the interest of a year, and multiply it by the years.",
        f"In a year it is {rate}% of {amount}, which is {one} dollars.",
        f"{one} × {years} = {one * years} dollars.", "number", "dollars",
    )  # fmt: skip


def _compound(random: Random) -> Draft:
    amount, rate = 1000 * random.randint(2, 12), random.choice([5, 10, 20])
    first = amount * (100 + rate) // 100
    result = Fraction(first * (100 + rate), 100)
    return Draft(
        f"{amount} dollars grow by {rate}% a year, interest included. How much is it after two years, in dollars?",
        decimal(result),
        "What is it after a single year, and what grows in the second year?",
        "In the second year the interest of the first one grows too.",
        f"After the first year it is {first} dollars.",
        f"{rate}% of {first} is {decimal(result - first)}, and with {first} that is {decimal(result)} dollars.",
        "number", "dollars",
    )  # fmt: skip


def _angle(random: Random) -> Draft:
    a, b = random.randint(25, 85), random.randint(25, 85)
    return Draft(
        f"A triangle has angles of {a} and {b} degrees. How many degrees has the third?", str(180 - a - b),
        "What do the angles of a triangle add up to?",
        "Together they are 180 degrees.",
        f"The two known ones are {a} + {b} = {a + b} degrees.",
        f"180 - {a + b} = {180 - a - b} degrees.", "number", "degrees",
    )  # fmt: skip


UNITS = (
    Skill("to a smaller unit", "beginner",
        "A smaller unit needs more of them: multiply by how many fit into the larger one.", _to_smaller),
    Skill("to a larger unit", "intermediate",
        "A larger unit needs fewer of them: divide by how many of the smaller one fit in.", _to_larger),
    Skill("square units", "advanced", "Areas grow with the square of the lengths.", _square_units),
)  # fmt: skip
GEOMETRY = (
    Skill("rectangles", "beginner", "The area is length times width; the perimeter is the way around.", _rectangle),
    Skill("angles of a triangle", "beginner", "The angles of a triangle make a straight line together.", _angle),
    Skill("triangles", "intermediate", "A triangle is half of the rectangle with its base and height.", _triangle),
    Skill("boxes", "intermediate", "The volume is the floor times the height.", _box),
    Skill("right triangles", "advanced", "The squares of the legs add up to the square of the hypotenuse.", _hypotenuse),
)
PYTHAGORAS = (
    Skill("the hypotenuse", "intermediate", "The squares of the legs add up to the square of the hypotenuse.", _hypotenuse),
    Skill("a leg", "advanced", "The square of a leg is the difference of the two others.", _leg),
)
SPEED = (
    Skill("distances", "beginner", "Distance is speed times time.", _distance),
    Skill("speeds", "intermediate", "Speed is distance divided by time.", _speed),
    Skill("meetings", "advanced", "Towards each other, speeds add up.", _meeting),
)
AVERAGES = (
    Skill("means", "beginner", "The mean is the sum divided by how many there are.", _mean),
    Skill("medians", "intermediate", "The median stands in the middle of the ordered values.", _median),
    Skill("a missing value", "advanced", "From the mean comes the sum, and from the sum what is missing.", _missing_value),
)
PROBABILITY = (
    Skill("one draw", "beginner", "The probability is the favourable outcomes divided by all of them.", _chance),
    Skill("two draws", "advanced", "Probabilities of draws one after the other are multiplied.", _two_draws),
)
INTEREST = (
    Skill("simple interest", "beginner", "Simple interest is the same each year.", _interest),
    Skill("compound interest", "advanced", "With compound interest the interest itself earns interest.", _compound),
)
