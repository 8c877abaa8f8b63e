r"""Expressions of school mathematics in a normal form, in which two that are equal are the same: exact, and never by floats.

A form is a sum of terms. A term is a rational number times powers of symbols; a symbol is a letter, pi, or the square root of a
prime, so that \frac{1}{\sqrt{2}} and \frac{\sqrt{2}}{2} are one form. What this cannot hold is refused.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import isqrt

Term = tuple[tuple[str, int], ...]
Form = frozenset[tuple[Term, Fraction]]

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+"
_PIECE = re.compile(
    rf"\s*(?:(?P<number>(?:{NUMBER})(?:[eE][+-]?\d+)?(?!\.?\d))|(?P<name>\\?[a-zA-Z]+|[π∞])|(?P<mark>[-+*/^(){{}}\[\]]))"
)
_MIXED = re.compile(r"\s*([+-]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)\s*")
_LONGEST, _MOST_NESTED, _MOST_TERMS, _MOST_DIGITS, _MOST_POWER = 400, 60, 100, 400, 200
_LARGEST_ROOT = 10**10  # so that finding its primes takes no time
_ONE: Form = frozenset({((), Fraction(1))})


class Unreadable(Exception):
    """Not an expression that has a form here; not for users."""


def read_form(text: str) -> Form:
    """The form of an expression: LaTeX or plain.

    Raises:
        Unreadable: it has none.
    """
    if len(text) > _LONGEST or sum(map(text.count, "([{-+")) > _MOST_NESTED:
        raise Unreadable(text)
    if mixed := _MIXED.fullmatch(text):  # 3 1/2
        sign, whole, above, below = mixed.groups()
        return _number((-1 if sign == "-" else 1) * (int(whole) + _ratio(int(above), int(below))))
    reader = _Reader(text)
    form = reader.sum()
    if reader.next is not None:
        raise Unreadable(text)
    return form


def scaled(form: Form, factor: Fraction) -> Form:
    """A form times a number."""
    return _times(form, _number(factor))


def rational(form: Form) -> Fraction | None:
    """The number that a form is, if it is a rational one."""
    return dict(form).get((), Fraction(0)) if all(term == () for term, _ in form) else None


class _Reader:
    """Reads an expression from left to right; `next` is the piece that comes."""

    def __init__(self, text: str) -> None:
        self._pieces, place, text = [], 0, text.rstrip()
        while place < len(text):
            found = _PIECE.match(text, place)
            if not found:
                raise Unreadable(text)
            self._pieces.append(found[0].strip())
            place = found.end()
        self._place = 0

    @property
    def next(self) -> str | None:
        return self._pieces[self._place] if self._place < len(self._pieces) else None

    def take(self, expected: str | None = None) -> str:
        piece = self.next
        if piece is None or (expected is not None and piece != expected):
            raise Unreadable
        self._place += 1
        return piece

    def sum(self) -> Form:
        form = self.product()
        while self.next in {"+", "-"}:
            form = _plus(form, scaled(self._after(self.product), Fraction(1 if self._taken == "+" else -1)))
        return form

    def product(self) -> Form:
        form = self.signed()
        while (piece := self.next) is not None and piece not in {"+", "-", ")", "}", "]"}:
            if piece == "/":
                form = _times(form, _inverse(self._after(self.signed)))
            elif piece == "*":
                form = _times(form, self._after(self.signed))
            elif _is_number(piece):  # two numbers side by side are no product
                raise Unreadable
            else:
                form = _times(form, self.power())
        return form

    def signed(self) -> Form:
        if self.next in {"+", "-"}:
            sign = -1 if self.take() == "-" else 1
            return scaled(self.signed(), Fraction(sign))
        return self.power()

    def power(self) -> Form:
        whole = self._whole_number()
        form = self.atom()
        if whole and self.next == "\\frac":  # 3\frac{1}{2}
            part = rational(self.atom())
            if part is None or not 0 < part < 1:
                raise Unreadable
            return _plus(form, _number(part))
        if self.next != "^":
            return form
        self.take()
        exponent = rational(self.signed() if self.next in {"+", "-"} else self.atom())
        return _power(form, exponent)

    def atom(self) -> Form:
        piece = self.take()
        if _is_number(piece):
            return _number(_read_number(piece))
        if piece in {"(", "{"}:
            form = self.sum()
            self.take(")" if piece == "(" else "}")
            return form
        if piece == "\\frac":
            above = self._argument()
            return _times(above, _inverse(self._argument()))
        if piece in {"\\sqrt", "sqrt"}:
            if self.next == "[":
                self.take()
                degree = rational(self.sum())
                self.take("]")
                return _power(self._argument(), None if not degree else 1 / degree)
            return _power(self._argument(), Fraction(1, 2))
        if piece in {"π", "∞"} or (len(piece) == 1 and piece.isalpha()):
            return frozenset({(((piece, 1),), Fraction(1))})
        if piece in {"\\pi", "pi"}:
            return frozenset({((("π", 1),), Fraction(1))})
        raise Unreadable(piece)

    def _after(self, read: object) -> Form:
        self._taken = self.take()
        assert callable(read)
        form: Form = read()
        return form

    def _argument(self) -> Form:
        r"""What \frac or \sqrt is applied to: braces, a digit of a number such as the 1 and 2 of \frac12, or a letter."""
        piece = self.next
        if piece is not None and piece.isdigit() and len(piece) > 1:
            self._pieces[self._place : self._place + 1] = [piece[0], piece[1:]]
        return self.atom()

    def _whole_number(self) -> bool:
        return self.next is not None and self.next.isdigit()


def _is_number(piece: str) -> bool:
    return piece[0].isdigit() or piece[0] == "."


def _read_number(piece: str) -> Fraction:
    digits, _, exponent = piece.replace(",", "").lower().partition("e")
    if len(exponent) > 4 or abs(int(exponent or 0)) > _MOST_DIGITS:
        raise Unreadable(piece)
    return Fraction(digits) * Fraction(10) ** int(exponent or 0)


def _number(value: Fraction) -> Form:
    return frozenset({((), value)}) if value else frozenset()


def _ratio(above: int, below: int) -> Fraction:
    if not below:
        raise Unreadable
    return Fraction(above, below)


def _plus(first: Form, second: Form) -> Form:
    total = dict(first)
    for term, factor in second:
        total[term] = total.get(term, Fraction(0)) + factor
    return _form(total)


def _times(first: Form, second: Form) -> Form:
    total: dict[Term, Fraction] = {}
    for one, one_factor in first:
        for other, other_factor in second:
            term, factor = _join(one, other)
            total[term] = total.get(term, Fraction(0)) + one_factor * other_factor * factor
    return _form(total)


def _form(terms: dict[Term, Fraction]) -> Form:
    kept = frozenset((term, factor) for term, factor in terms.items() if factor)
    if len(kept) > _MOST_TERMS or any(
        max(f.numerator.bit_length(), f.denominator.bit_length()) > 4 * _MOST_DIGITS for _, f in kept
    ):
        raise Unreadable
    return kept


def _join(one: Term, other: Term) -> tuple[Term, Fraction]:
    """The product of two terms; the square of a root is the number under it."""
    powers, factor = dict(one), Fraction(1)
    for symbol, power in other:
        powers[symbol] = powers.get(symbol, 0) + power
    for symbol, power in powers.items():
        if symbol[0] == "√":
            factor *= Fraction(int(symbol[1:])) ** (power // 2)
            powers[symbol] = power % 2
    if "∞" in powers and len(powers) > 1:
        raise Unreadable
    return tuple(sorted((symbol, power) for symbol, power in powers.items() if power)), factor


def _inverse(form: Form) -> Form:
    if len(form) != 1:
        raise Unreadable
    [(term, factor)] = form
    inverse, more = _join((), tuple((symbol, -power) for symbol, power in term))
    return frozenset({(inverse, more / factor)})


def _power(form: Form, exponent: Fraction | None) -> Form:
    if exponent is None or abs(exponent) > _MOST_POWER:
        raise Unreadable
    if exponent.denominator != 1:
        return _power(_root(form, exponent.denominator), Fraction(exponent.numerator))
    base = _inverse(form) if exponent < 0 else form
    result = _ONE
    for _ in range(abs(int(exponent))):
        result = _times(result, base)
    return result


def _root(form: Form, degree: int) -> Form:
    value = rational(form)
    if value is None or degree > _MOST_POWER or (value < 0 and degree % 2 == 0):
        raise Unreadable
    if degree > 2:
        sign = -1 if value < 0 else 1
        return _number(sign * Fraction(_whole_root(abs(value.numerator), degree), _whole_root(value.denominator, degree)))
    left = value.numerator * value.denominator  # √(a/b) = √(ab) / b
    root = isqrt(left)
    if root * root == left:
        return _number(Fraction(root, value.denominator))
    if left > _LARGEST_ROOT:
        raise Unreadable
    outside, symbols, prime = 1, [], 2
    while prime * prime <= left:
        while left % (prime * prime) == 0:
            outside, left = outside * prime, left // (prime * prime)
        if left % prime == 0:
            symbols.append((f"√{prime}", 1))
            left //= prime
        prime += 1
    if left > 1:
        symbols.append((f"√{left}", 1))
    return frozenset({(tuple(sorted(symbols)), Fraction(outside, value.denominator))})


def _whole_root(number: int, degree: int) -> int:
    if number.bit_length() > 200:
        raise Unreadable
    root = round(float(number ** (1 / degree)))
    if root**degree != number:
        raise Unreadable
    return root
