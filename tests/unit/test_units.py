import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.errors import OptionError
from deepen.units import (
    format_bytes,
    format_count,
    format_energy,
    format_grams,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_seconds,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        (4096, 4096),
        ("100M", 100_000_000),
        ("1.5k", 1500),
        ("1_000_000", 1_000_000),
        (" 2 B ", 2_000_000_000),
        ("0", 0),
        ("9007199254740993", 9007199254740993),  # beyond what a float holds
    ],
)
def test_parse_count(text: str | int, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("5GB", 5 * 10**9), ("2GiB", 2**31), ("1.5kb", 1500), ("7", 7), ("3b", 3), ("1Ti", 2**40), ("500 MB", 5 * 10**8)],
)
def test_parse_bytes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("30min", 1800), ("2h", 7200), ("1.5d", 129600), (0.25, 0.25)])
def test_parse_seconds(text: str | float, value: float) -> None:
    assert parse_seconds(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "-1", "M", "1.2.3", "1,000", "1e3", "5 GBit", "nan", "inf", "1__0", "_1", "10_00", "٣", "9" * 400, True, "1\n2"],
)
@pytest.mark.parametrize("parse", [parse_count, parse_bytes, parse_seconds])
def test_what_is_no_number_with_a_unit_is_refused(parse, text: str) -> None:
    with pytest.raises(OptionError, match="is not a"):
        parse(text)


@pytest.mark.parametrize(("parse", "text"), [(parse_count, "1.5"), (parse_count, 0.5), (parse_bytes, "1.0001kB")])
def test_parts_of_a_token_or_byte_are_refused(parse, text: str | float) -> None:
    with pytest.raises(OptionError, match="is not a whole number"):
        parse(text)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (21_463_000_000, "21.5 GB"), (999_600, "1 MB"), (10**18, "1000 PB")],
)
def test_format_bytes(number: int, text: str) -> None:
    assert format_bytes(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (134_515_008, "135M"), (10_731_524_096, "10.7B"), (99_960, "100k"), (1e18, "1000Q")]
)
def test_format_count(number: float, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (125, "2 min 05 s"), (11_220, "3 h 07 min")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.integers(min_value=0, max_value=10**18 - 1))
def test_every_whole_number_is_read_back_exactly(number: int) -> None:
    assert parse_count(str(number)) == parse_bytes(f"{number}B") == number


@given(st.integers(min_value=0, max_value=10**17))
def test_what_is_printed_is_within_half_a_percent(number: int) -> None:
    assert abs(parse_bytes(format_bytes(number)) - number) <= 0.005 * number


@pytest.mark.parametrize(
    ("joules", "text"),
    [
        (0, "0 J"), (0.5, "0.5 J"), (999.9, "1000 J"), (3599, "3599 J"), (3600, "1 Wh"), (44_280, "12.3 Wh"),
        (3.59e6, "997 Wh"), (3.6e6, "1 kWh"), (4.464e6, "1.24 kWh"), (1.8e10, "5 MWh"),
    ],
)  # fmt: skip
def test_format_energy(joules: float, text: str) -> None:
    assert format_energy(joules) == text


@pytest.mark.parametrize(("grams", "text"), [(0.5239, "0.524 g"), (999, "999 g"), (999.9, "1 kg"), (2.5e6, "2.5 t")])
def test_format_grams(grams: float, text: str) -> None:
    assert format_grams(grams) == text
