"""Rows with document boundaries, rows to measure on, and the order of rows: against the plainest way to say the same."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.data.corpus import Corpus
from deepen.data.order import row_order, shares
from deepen.data.pack import hold_out, pack_rows
from deepen.data.text import IGNORED, rows_of_step
from deepen.errors import DataError, OptionError


def make(lengths: list[int], files: int = 1) -> Corpus:
    """A corpus whose documents have these lengths, with tokens that count up."""
    starts = np.cumsum([0, *lengths[:-1]])
    total = sum(lengths)
    return Corpus(np.arange(total, dtype=np.uint16), starts, np.zeros(files, np.int64), total - 1, "", "x")


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30), length=st.integers(1, 12), seed=st.integers(0, 9))
def test_rows_know_their_documents(lengths: list[int], length: int, seed: int) -> None:
    corpora = [make(lengths), make([sum(lengths)])]
    count = sum(lengths) // length
    random = np.random.default_rng(seed)
    rows, chosen = random.integers(0, max(1, count), 5 * (count > 0)), random.integers(0, 2, 5 * (count > 0))
    packed = pack_rows(corpora, chosen, rows, length)
    document = [number for number, size in enumerate(lengths) for _ in range(size)]
    several = False
    for place, (source, row) in enumerate(zip(chosen, rows, strict=True)):
        tokens = list(range(row * length, (row + 1) * length))
        belongs = [document[token] if source == 0 else 0 for token in tokens]
        inner = zip(tokens[1:], belongs[1:], belongs[:-1], strict=True)
        assert packed.tokens[place].tolist() == tokens
        assert packed.labels[place].tolist() == [token if mine == its else IGNORED for token, mine, its in inner] + [IGNORED]
        if packed.positions is not None:
            assert packed.positions[place].tolist() == [at - belongs.index(mine) for at, mine in enumerate(belongs)]
        several |= len(set(belongs)) > 1
    assert (packed.positions is not None) == several
    assert packed.tokens.dtype == packed.labels.dtype == np.int64


def test_of_one_file_the_last_rows_are_held_out() -> None:
    for rows, tokens, expected in [(100, 50, 5), (100, 5000, 10), (100, 1, 1), (15, 5000, 1), (2, 10, 1)]:
        (held,) = hold_out([make([rows * 10 + 3])], 10, tokens)
        assert held.tolist() == list(range(rows - expected, rows))


def test_of_several_files_rows_are_held_out_evenly() -> None:
    (held,) = hold_out([make([1000], files=3)], 10, 40)
    assert held.tolist() == [24, 49, 74, 99]


def test_of_several_corpora_each_holds_out_its_share() -> None:
    corpora = [make([10_000]), make([3000]), make([200]), make([10])]
    held = hold_out(corpora, 10, 400, weights=[0.5, 0.25, 0.2, 0.05])
    assert [len(rows) for rows in held] == [20, 10, 2, 0]  # of 20 rows not 8, and of one none
    assert held[0].tolist() == list(range(980, 1000))
    with pytest.raises(DataError, match="none is left to measure on"):
        hold_out([make([19]), make([10])], 10, 400, weights=[1, 1])
    with pytest.raises(DataError, match="x: 9 tokens are too few for one row of 10"):
        hold_out([make([100]), make([9])], 10, 400, weights=[1, 1])


def test_without_weights_the_order_is_that_of_rows_of_step() -> None:
    order = row_order([np.arange(3, 40)], batch=7, seed=5)
    for step in (0, 4, 90):
        sources, rows = order(step)
        assert sources.tolist() == [0] * 7
        assert rows.tolist() == (3 + rows_of_step(step, rows=37, batch=7, seed=5)).tolist()


WEIGHTS = st.lists(st.one_of(st.integers(1, 30), st.sampled_from([0.1, 0.25, 0.7, 1 / 3, 12.5])), min_size=1, max_size=6)


@given(weights=WEIGHTS, batch=st.integers(1, 9), seed=st.integers(0, 3))
def test_each_source_gives_its_share_and_each_of_its_epochs_all_rows(weights: list[float], batch: int, seed: int) -> None:
    rows = [np.arange(100 * source, 100 * source + 3 + source) for source in range(len(weights))]
    order = row_order(rows, batch=batch, seed=seed, weights=weights)
    steps = [order(step) for step in range(400 // batch)]
    sources, chosen = (np.concatenate(part) for part in zip(*steps, strict=True))
    for source, weight in enumerate(weights):
        given = np.cumsum(sources == source)
        assert np.abs(given - np.arange(1, len(given) + 1) * weight / sum(weights)).max() < 1.01
        mine, size = chosen[sources == source], len(rows[source])
        for epoch in mine[: len(mine) // size * size].reshape(-1, size):
            assert sorted(epoch) == rows[source].tolist()
    again = row_order(rows, batch=batch, seed=seed, weights=weights)(3)  # asked for out of turn
    assert [part.tolist() for part in again] == [part.tolist() for part in steps[3]]


def test_orders_differ_by_seed_source_and_epoch() -> None:
    def orders(seed: int) -> list[list[int]]:
        sources, rows = row_order([np.arange(50)] * 2, batch=200, seed=seed, weights=[1, 1])(0)
        return [rows[sources == source][epoch : epoch + 50].tolist() for source in (0, 1) for epoch in (0, 50)]

    found = orders(0) + orders(1)
    assert len({tuple(order) for order in found}) == 8
    assert all(sorted(order) == list(range(50)) for order in found)


def test_weights_as_whole_numbers() -> None:
    assert shares([0.7, 0.3]) == (7, 3)
    assert shares([2, 4, 2]) == (1, 2, 1)
    assert shares([5]) == (1,)
    assert sum(shares([123_456_789, 987_654_321, 5_000_000])) == 100_000  # no fraction of small numbers
    for weights, message in {
        (1, 0): "not all above zero",
        (1, float("nan")): "not all",
        (1, 1e-7): "less than a 100,000th",
    }.items():
        with pytest.raises(OptionError, match=message):
            shares(weights)
    with pytest.raises(OptionError, match="2 weights for 1 source"):
        row_order([np.arange(3)], batch=1, seed=0, weights=[1, 2])


def test_a_corpus_from_disk_packs_like_one_in_memory(tmp_path: Path) -> None:
    corpus = make([7, 9, 4])
    corpus.tokens.tofile(tmp_path / "tokens.bin")
    mapped = Corpus(np.memmap(tmp_path / "tokens.bin", np.uint16, mode="r"), corpus.starts, corpus.files, 19, "", "x")
    zeros, rows = np.zeros(2, np.int64), np.array([1, 0])
    for mine, its in zip(pack_rows([mapped], zeros, rows, 10), pack_rows([corpus], zeros, rows, 10), strict=True):
        assert np.array_equal(mine, its)
