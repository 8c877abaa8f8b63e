"""Rows in their order, and rows set aside."""

import numpy as np
import pytest

from deepen.errors import DataError
from deepen.train.epochs import Order, split, spread


def test_an_epoch_takes_every_row_once_and_the_last_step_what_is_left() -> None:
    order = Order(range(10, 21), epochs=2, batch=4, seed=0, size=lambda row: row)
    steps = [order.rows_of(step) for step in range(order.steps)]
    assert [len(step) for step in steps] == [4, 4, 4, 4, 4, 2]
    flat = [row for step in steps for row in step]
    assert sorted(flat[:11]) == sorted(flat[11:]) == list(range(10, 21))
    assert flat[:11] != flat[11:]
    assert [order.tokens(step) for step in range(7)] == [0, *np.cumsum([sum(step) for step in steps])]
    assert Order(range(11), epochs=0.2, batch=4, seed=0, size=lambda row: row).steps == 1


def test_held_out_rows_are_spread_over_the_data() -> None:
    rows = list(range(100))
    rest, held_out = spread(rows, 5)
    assert held_out == [10, 30, 50, 70, 90]
    assert sorted(rest + held_out) == rows
    assert spread([1, 2], 9) == ([], [1, 2])
    assert len(split(rows, 32, what="row")[1]) == 10, "a tenth at most"
    with pytest.raises(DataError, match="there is one pair, and none is left"):
        split([1], 32, what="pair")
