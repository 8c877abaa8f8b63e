"""What a killed run had is read again: no value is lost or made up, and nobody's file is harmed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.errors import OutputError
from deepen.journal import Journal

VALUES = {"3": {"n": 1.5}, "1": "ä \u2028 line", "10": [None, True, [0.1]]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with Journal(tmp_path / "new" / "journal.jsonl") as journal:
        for name, value in VALUES.items():
            journal.keep(name, value)
    return tmp_path / "new" / "journal.jsonl"


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), min_size=1))
def test_values_come_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    place = tmp_path_factory.mktemp("values") / "journal.jsonl"
    for _ in range(2):
        with Journal(place) as journal:
            for name, value in values.items():
                if name not in journal:
                    journal.keep(name, value)
            assert {name: journal.get(name) for name in values} == values
            assert journal.get("not " + "".join(values)) is None
    assert place.read_bytes().count(b"\n") == len(values)


def test_a_torn_row_is_cut_off_wherever_it_ends(file: Path) -> None:
    whole = file.read_bytes()
    for size in range(len(whole) + 1):
        file.write_bytes(whole[:size])
        with Journal(file) as journal:
            rows = whole[:size].count(b"\n")
            assert len(journal) == rows
            assert {name: journal.get(name) for name in [*VALUES][:rows]} == dict([*VALUES.items()][:rows])
            journal.keep("7", "é")
            assert journal.get("7") == "é"
        with Journal(file) as journal:
            assert (len(journal), journal.get("7")) == (rows + 1, "é")


@pytest.mark.parametrize("torn", [b"\0\0\0", b"\0\n", b'["3", 1]', b'["3", ', b"{"])
def test_what_a_crash_leaves_at_the_end_goes(file: Path, torn: bytes) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    with Journal(file) as journal:
        assert len(journal) == len(VALUES)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("content", [b"a diary\nof mine\n", b"{}\n", b'{"a": 1, "b": 2}\n', b'[1, 2]\n["a", 1]\n', b"mine"])
def test_a_file_of_something_else_is_refused_and_not_touched(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "mine.txt"
    place.write_bytes(content)
    with pytest.raises(OutputError, match="row 1: not a value as it is kept here"):
        Journal(place)
    assert place.read_bytes() == content


def test_one_run_at_a_time(file: Path) -> None:
    with Journal(file), pytest.raises(OutputError, match="another run uses this file"):
        Journal(file)


def test_values_of_another_head_are_not_taken(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.head == {}
        journal.begin({"seed": 1}, tmp_path)
        journal.begin({"seed": 2, "size": [3]}, tmp_path)  # nothing depends on the first one yet
        assert not list(tmp_path.iterdir())
        journal.keep("a", 1)
        assert (journal.head, len(journal)) == ({"seed": 2, "size": [3]}, 1)
        journal.begin({"seed": 2, "size": (3,)}, tmp_path)
        with pytest.raises(OutputError, match=r"seed was 2, now 4; size was .3., now nothing"):
            journal.begin({"seed": 4}, tmp_path)
