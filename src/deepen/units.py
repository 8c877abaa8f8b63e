"""Numbers with units: "100M" tokens, "5GB" of bytes, "2h" of time. Parse and print."""

from __future__ import annotations

import re
from decimal import Decimal

from deepen.errors import OptionError

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTES = {"": 1, "b": 1} | {
    f"{prefix}{tail}": base**power
    for power, prefix in enumerate("kmgtp", start=1)
    for tail, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"\s*([0-9]{1,3}(?:_[0-9]{3})+|[0-9]{1,18})(\.[0-9]{1,9})?\s*([A-Za-z]*)\s*")


def parse_count(text: str | int) -> int:
    """A count such as `100M`, `1.5k` or `4096` (decimal multiples) as an integer."""
    return _whole(_parse(text, _COUNTS, "a count such as 4096, 100k or 1.5M"), text)


def parse_bytes(text: str | int) -> int:
    """A size such as `5GB` (10^9) or `2GiB` (2^30) in bytes."""
    return _whole(_parse(text, _BYTES, "a size such as 500MB, 5GB or 2GiB"), text)


def parse_seconds(text: str | float) -> float:
    """A duration such as `90s`, `30min` or `2h` in seconds."""
    return float(_parse(text, _SECONDS, "a duration such as 90s, 30min or 2h"))


def format_bytes(number: float) -> str:
    """Bytes for people, decimal: `21.5 GB`."""
    return f"{int(number)} B" if number < 1000 else _scaled(number, (" kB", " MB", " GB", " TB", " PB"))


def format_count(number: float) -> str:
    """A count for people: `10.7B`, `135M`, `999`."""
    return f"{number:.3g}" if number < 1000 else _scaled(number, ("k", "M", "B", "T", "Q"))


def format_seconds(seconds: float) -> str:
    """A duration for people: `0.4 s`, `2 min 05 s`, `3 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_energy(joules: float) -> str:
    """Energy for people: `512 J`, `12.3 Wh`, `1.24 kWh`."""
    hours = joules / 3600
    if hours < 1:
        return f"{joules:.3g} J" if joules < 999.5 else f"{joules:.0f} J"
    return f"{hours:.3g} Wh" if hours < 999.5 else _scaled(hours, (" kWh", " MWh", " GWh", " TWh"))


def format_grams(grams: float) -> str:
    """A mass for people: `0.52 g`, `12.3 kg`, `1.24 t`."""
    return f"{grams:.3g} g" if grams < 999.5 else _scaled(grams, (" kg", " t", " kt"))


def _parse(text: str | float, units: dict[str, int], expected: str) -> Decimal:
    if isinstance(text, float):
        text = f"{text:.9f}"
    match = _NUMBER.fullmatch(str(text))
    if match is None or match[3].lower() not in units:
        measures = {"bytes": _BYTES, "time": _SECONDS}.items()
        other = next((name for name, known in measures if match and known is not units and match[3].lower() in known), None)
        wrong = f": {match[3]} is a unit of {other}" if match and other else ""
        raise OptionError(f"{text!r} is not {expected}{wrong}", next="write a non-negative number and, if needed, a unit")
    return Decimal(match[1].replace("_", "") + (match[2] or "")) * units[match[3].lower()]


def _whole(value: Decimal, text: str | int) -> int:
    if value != int(value):
        raise OptionError(f"{text!r} is not a whole number", next="use a smaller unit")
    return int(value)


def _scaled(number: float, suffixes: tuple[str, ...]) -> str:
    power = 1
    while power < len(suffixes) and number / 1000**power >= 999.5:
        power += 1
    scaled = number / 1000**power
    return f"{scaled:.3g}{suffixes[power - 1]}" if scaled < 99.95 else f"{scaled:.0f}{suffixes[power - 1]}"
