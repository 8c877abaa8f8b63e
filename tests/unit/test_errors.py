import pickle

import pytest

from deepen import errors
from deepen.errors import CheckpointError, DeepenError, MachineError, Refuted, UserError, printable


def every_error() -> list[type[DeepenError]]:
    kinds, queue = [], [DeepenError]
    while queue:
        kind = queue.pop()
        kinds.append(kind)
        queue += kind.__subclasses__()
    return [kind for kind in kinds if kind.__module__ == "deepen.errors"]


def test_message_says_what_where_and_next() -> None:
    error = CheckpointError("the header lies", where="model.safetensors", next="download it again")
    assert str(error) == "model.safetensors: the header lies\n  Next: download it again"
    assert str(CheckpointError("the header lies")) == "the header lies"


@pytest.mark.parametrize(("kind", "code"), [(Refuted, 1), (UserError, 2), (MachineError, 3)])
def test_exit_code_says_who_must_act(kind: type[DeepenError], code: int) -> None:
    assert len(every_error()) == 15
    assert {each.exit_code for each in every_error() if issubclass(each, kind)} == {code}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {word for word in errors.__doc__.split() if word in {kind.__name__ for kind in every_error()}}
    assert drawn == {kind.__name__ for kind in every_error()}


def test_errors_cross_process_borders_whole() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("cut", where="a", next="b")))
    assert (type(error), error.what, error.where, error.next) == (CheckpointError, "cut", "a", "b")


def test_a_hostile_name_cannot_steer_the_terminal_or_forge_a_line() -> None:
    error = CheckpointError("cut", where="\x1b[2Jmodel\nerror: all is well")
    assert str(error) == "\\x1b[2Jmodel\\nerror: all is well: cut"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢\tand\n", "plain ü 漢\tand\n"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb", "a\\rb"),
        ("\x9b31m", "\\x9b31m"),
        ("user\u202egpj.exe", "user\\u202egpj.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
