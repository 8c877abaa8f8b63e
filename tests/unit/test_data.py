"""Text to rows of tokens: what is read, where documents end, which order, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.data.text import check_vocabulary, encoder, pack, read_tokens, rows_of_step
from deepen.errors import DataError
from trainable import write_checkpoint

END = 999


def utf8(text: str) -> Sequence[int]:
    return list(text.encode())


def test_a_file_is_one_document_in_one_piece(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\r\n\r\ntwo \xc3\xbc\n")
    assert read_tokens(file, utf8, end_of_text=END).tolist() == list(b"one\r\n\r\ntwo \xc3\xbc\n")
    assert read_tokens([str(file)], utf8, end_of_text=None).dtype == np.int32


def test_documents_are_joined_by_the_end_of_text(tmp_path: Path) -> None:
    first, second = tmp_path / "a.md", tmp_path / "b.jsonl"
    first.write_text("A")
    second.write_text('{"text": "B"}\n\n{"text": " "}\n{"text": "C", "id": 3}')
    assert read_tokens([first, second], utf8, end_of_text=END).tolist() == [65, END, 66, END, 67]
    with pytest.raises(DataError, match="no end-of-text token"):
        read_tokens([first, second], utf8, end_of_text=None)


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfA")
    assert read_tokens(file, utf8, end_of_text=END).tolist() == [65]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: there is no text"),
        ("a.txt", b" \n\t", r"a\.txt: there is no text"),
        ("a.txt", b"abc\xff", r"a\.txt: not UTF-8 \(byte 3\)"),
        ("a.jsonl", b'{"text": ""}\n', r"a\.jsonl: there is no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, row 2: not valid JSON"),
        (
            "a.jsonl",
            b'{"text": "x"}\n\n{"id": 1, "texts": "y"}\n',
            r"(?s)row 3: no column 'text'.*id, texts.*-column texts",
        ),
        ("a.jsonl", b'{"text": "x"}\n{}', r"a\.jsonl, row 2: no column 'text'; the columns are: none"),
        ("a.jsonl", b'{"text": 1}', r"a\.jsonl, row 1: int instead of text in the column 'text'"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl, row 1: nothing instead of text"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"a\.jsonl, row 1: half a character"),
        ("a.jsonl", b'["text"]', r"a\.jsonl, row 1: not an object"),
        ("a.jsonl", b'{"a":' * 100_000, r"a\.jsonl, row 1: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', r"a\.jsonl, row 2: not UTF-8"),
        ("a.parquet", b"", r"a\.parquet: not a Parquet file that can be read"),
        ("a.parquet", b"PAR1", r"a\.parquet: not a Parquet file that can be read"),
        ("a.csv", b"text\nx", r"a\.csv: not a \.txt, \.md, \.jsonl or \.parquet file"),
    ],
)
def test_bad_files_are_refused_by_name_and_row(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_tokens(tmp_path / name, utf8, end_of_text=END)


def test_missing_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.txt" / ".hidden").mkdir(parents=True)
    for name in ("folder.txt/.a.txt", "folder.txt/.hidden/a.txt", "folder.txt/a.csv"):
        (tmp_path / name).write_text("not read")
    for name, message in {"none.txt": "no such file", "folder.txt": "it has no", "*.md": "it matches no"}.items():
        with pytest.raises(DataError, match=message):
            read_tokens(tmp_path / name, utf8, end_of_text=END)
    with pytest.raises(DataError, match="no data"):
        read_tokens([], utf8, end_of_text=END)


def test_the_encoder_adds_no_special_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_checkpoint(tmp_path))
    assert list(encoder(tokenizer)("Aü" * 100)) == [byte + 1 for byte in ("Aü" * 100).encode()]


def test_rows_are_full_and_the_rest_is_left_out() -> None:
    assert pack(np.arange(11, dtype=np.int32), 3, where="x").tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(DataError, match=r"x: 2 tokens are too few for one row of 3"):
        pack(np.arange(2, dtype=np.int32), 3, where="x")


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    check_vocabulary(np.array([[0, 9]], dtype=np.int32), 10)
    with pytest.raises(DataError, match="token 10, but the model's vocabulary has 10"):
        check_vocabulary(np.array([[0, 10]], dtype=np.int32), 10)


@given(rows=st.integers(1, 20), batch=st.integers(1, 30), seed=st.integers(0, 5))
def test_each_epoch_takes_every_row_once(rows: int, batch: int, seed: int) -> None:
    steps = -(-3 * rows // batch)
    order = np.concatenate([rows_of_step(step, rows=rows, batch=batch, seed=seed) for step in range(steps)])[: 3 * rows]
    for epoch in order.reshape(3, rows):
        assert sorted(epoch) == list(range(rows))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    orders = {seed: rows_of_step(0, rows=50, batch=100, seed=seed).tolist() for seed in (0, 1)}
    assert orders[0] != orders[1]
    assert orders[0][:50] != orders[0][50:]
    later = rows_of_step(7, rows=50, batch=10, seed=0).tolist()  # asked for out of turn
    assert later == orders[0][70:80]
    assert json.dumps(orders[0][:5]) == json.dumps(rows_of_step(0, rows=50, batch=5, seed=0).tolist())
