"""Text in the cache: what is found again, what an interrupted run leaves, who may write, and what sources are read as."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from deepen.data import sources
from deepen.data.corpus import Corpus, open_corpora, open_corpus
from deepen.data.sources import START, find_sources, read_pieces
from deepen.data.text import encoder, read_tokens
from deepen.errors import DataError, DeepenError, OptionError, OutputError
from trainable import write_checkpoint, write_text

END = 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Token b + 1 is byte b; 0 ends a text."""
    return AutoTokenizer.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def spell(corpus: Corpus) -> str:
    return "".join("|" if token == END else chr(token - 1) for token in corpus.tokens)


def write_parquet(path: Path, texts: list[str | None], **options: Any) -> Path:
    parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), path, **options)
    return path


def write_everything(folder: Path) -> Path:
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "x.txt").write_text("hidden")
    (folder / ".y.txt").write_text("hidden")
    (folder / "notes.csv").write_text("unknown")
    (folder / "empty.txt").write_text(" ")
    (folder / "z.txt").write_text("Z")
    (folder / "b" / "a.jsonl").write_text(
        '{"text": "A", "other": "O"}\n{"text": "", "other": ""}\n{"text": "B", "other": "P"}\n'
    )
    (folder / "b" / "deep" / "c.md").write_text("C")
    write_parquet(folder / "d.parquet", ["D", "E"])
    return folder


def test_a_folder_is_read_in_order_and_what_it_was_read_as_is_said(tmp_path, tokenizer, cache, capsys):
    folder = write_everything(tmp_path / "data")
    corpus = open_corpus(folder, tokenizer, cache=cache)
    assert spell(corpus) == "A|B|C|D|E|Z"
    assert corpus.tokens.dtype == np.uint16
    assert corpus.starts.tolist() == [0, 2, 4, 6, 8, 10]
    assert corpus.files.tolist() == [0, 4, 6, 10, 10]
    assert corpus.highest == ord("Z") + 1
    error = capsys.readouterr().err
    assert "data: files (1 JSON lines, 3 text, 1 Parquet); 6 documents, 11 tokens" in error
    assert spell(open_corpus([folder / "z.txt", f"{folder}/b/**/*.*"], tokenizer, cache=cache)) == "Z|A|B|C"
    assert read_tokens(folder, encoder(tokenizer), end_of_text=END).tolist() == corpus.tokens.tolist()


def test_another_column(tmp_path, tokenizer, cache):
    folder = write_everything(tmp_path / "data")
    assert spell(open_corpus(folder / "b" / "a.jsonl", tokenizer, column="other", cache=cache)) == "O|P"
    assert spell(open_corpus(folder / "b" / "a.jsonl", tokenizer, cache=cache)) == "A|B"
    with pytest.raises(DataError, match=r"(?s)d\.parquet: no column 'txt'; the columns are: id, text\n.*--text-column text"):
        open_corpus(folder / "d.parquet", tokenizer, column="txt", cache=cache)


def test_the_same_bytes_are_tokenised_once(tmp_path, tokenizer, cache, capsys):
    first, second = write_text(tmp_path / "a.txt", 500), tmp_path / "b.md"
    shutil.copy(first, second)
    corpus = open_corpus(first, tokenizer, cache=cache)
    (folder,) = (cache / "text").iterdir()
    written = (folder / "tokens.bin").stat().st_mtime_ns
    capsys.readouterr()
    again = open_corpus(second, tokenizer, cache=cache)
    assert "(tokenised before)" in capsys.readouterr().err
    assert again.fingerprint == corpus.fingerprint
    assert [*(cache / "text").iterdir()] == [folder]
    assert (folder / "tokens.bin").stat().st_mtime_ns == written
    first.write_text("other words")
    assert open_corpus(first, tokenizer, cache=cache).fingerprint != corpus.fingerprint
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<end>")
    other.add_tokens(["river"])
    assert len(open_corpus(second, other, cache=cache).tokens) < len(corpus.tokens)


def test_a_file_that_was_hashed_is_not_read_again(tmp_path, tokenizer, cache):
    file = write_text(tmp_path / "a.txt", 500)
    time.sleep(2.1)  # what is younger may change without a new time
    open_corpus(file, tokenizer, cache=cache)
    (note,) = (cache / "hashes").iterdir()
    state, _ = json.loads(note.read_text())
    note.write_text(json.dumps([state, "0" * 64]))  # what the note says is believed
    open_corpus(file, tokenizer, cache=cache)
    assert len([*(cache / "text").iterdir()]) == 2
    file.write_text(file.read_text().replace("the", "THE", 1))
    open_corpus(file, tokenizer, cache=cache)
    assert len([*(cache / "text").iterdir()]) == 3


def test_weights_make_a_corpus_of_each_source(tmp_path, tokenizer, cache):
    folder = write_everything(tmp_path / "data")
    corpora = open_corpora([folder / "z.txt", folder / "b"], tokenizer, weights=[1, 2], cache=cache)
    assert [spell(corpus) for corpus in corpora] == ["Z", "A|B|C"]
    assert [spell(corpus) for corpus in open_corpora([folder / "z.txt", folder / "b"], tokenizer, cache=cache)] == ["Z|A|B|C"]
    with pytest.raises(OptionError, match="1 weights for 2 sources"):
        open_corpora([folder / "z.txt", folder / "b"], tokenizer, weights=[1], cache=cache)


def test_reading_goes_on_from_any_place(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(sources, "PIECE", 64)
    monkeypatch.setattr(sources, "OVERLAP", 16)
    folder = write_everything(tmp_path / "data")
    (folder / "long.txt").write_bytes("\ufeffGrößenwahn 🙂 ".encode() * 40)
    write_parquet(folder / "many.parquet", [f"row {number}" for number in range(1000)], row_group_size=300)
    (files,) = [source.files for source in find_sources(folder)]
    pieces = list(read_pieces(files, "text"))
    assert pieces[0].place == START
    assert sum(not piece.last for piece in pieces) > 10
    for number in [*range(0, 30), *range(30, len(pieces), 101)]:
        assert list(read_pieces(files, "text", pieces[number].place)) == pieces[number:]


WRITE = """
import os, sys
from pathlib import Path
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from deepen.data import corpus, encode, sources
corpus.SAVE_SECONDS, encode._BATCH, sources.PIECE = 0.05, 1 << 15, 1 << 13
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(sys.argv[1]), eos_token="<end>")
print("ready", flush=True)
for line in sys.stdin:  # a child for each, because it takes long to import all that
    number, cache = line.split()
    if not (child := os.fork()):
        sys.stdout, sys.stderr = Path(cache + number + ".out").open("w"), Path(cache + number + ".err").open("w")
        print(corpus.open_corpus(sys.argv[2], tokenizer, cache=Path(cache)).fingerprint)
        sys.stdout.close()
        sys.stderr.close()
        os._exit(0)
    print(child, flush=True)
"""


class Writers:
    """Processes that tokenise the same data, with their state saved all the time."""

    def __init__(self, model: Path, data: Path) -> None:
        command = [sys.executable, "-c", WRITE, str(model / "tokenizer.json"), str(data)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, cache: Path, number: object) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number} {cache}\n")
        self.process.stdin.flush()
        return int(self.answer())


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    folder = tmp_path / "large"
    folder.mkdir()
    write_text(folder / "a.txt", 120_000)
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(10_000)))
    write_parquet(folder / "c.parquet", [f"row {number} " * (number % 7) for number in range(5_000)], row_group_size=700)
    made = Writers(write_checkpoint(tmp_path / "model"), folder)
    yield made
    made.process.communicate()


def ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def wait(*pids: int) -> None:
    while not all(map(ended, pids)):
        time.sleep(0.01)


def content(cache: Path) -> dict[str, bytes]:
    (folder,) = (cache / "text").iterdir()
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_killed_run_is_continued_with_the_same_bytes(tmp_path, writers):
    began = time.monotonic()
    wait(writers.start(tmp_path / "undisturbed", 0))
    seconds = time.monotonic() - began
    moments, killed = random.Random(7), tmp_path / "killed"
    saved = set()
    for number in range(8):
        pid = writers.start(killed, number)
        time.sleep(moments.uniform(0.1, 0.5) * seconds)
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        saved |= {json.loads(state.read_text())["tokens"] for state in (killed / "text").glob(".*/state.json")}
    wait(writers.start(killed, "again"))
    assert saved  # some were killed on the way
    assert content(killed) == content(tmp_path / "undisturbed")


def test_two_at_once_write_one(tmp_path, writers):
    cache = tmp_path / "cache"
    wait(writers.start(cache, 0), writers.start(cache, 1))
    fingerprints = {Path(f"{cache}{number}.out").read_text() for number in (0, 1)}
    errors = [Path(f"{cache}{number}.err").read_text() for number in (0, 1)]
    assert len(fingerprints) == 1
    assert sum("Tokenising" in error for error in errors) == 1, errors
    assert set(content(cache)) == {"tokens.bin", "starts.bin", "corpus.json"}


def test_what_fails_leaves_nothing(tmp_path, tokenizer, cache):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n{"text": 1}\n')
    with pytest.raises(DataError, match="row 2"):
        open_corpus(file, tokenizer, cache=cache)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt: there is no text"):
        open_corpus(tmp_path / "empty.txt", tokenizer, cache=cache)
    assert not [path for path in (cache / "text").iterdir() if path.suffix != ".lock"]
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"empty\.txt: there is no text"):
        open_corpus([tmp_path / "a.txt", tmp_path / "empty.txt"], tokenizer, cache=cache)
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert len(open_corpus(tmp_path / "a.txt", without, cache=cache).tokens) == 1
    with pytest.raises(DataError, match="no end-of-text token"):
        open_corpus([tmp_path / "a.txt", tmp_path / "a.txt"], without, cache=cache)


def test_bytes_are_counted_over_the_whole_file(tmp_path, tokenizer, cache, monkeypatch):
    monkeypatch.setattr(sources, "PIECE", 64)
    (tmp_path / "a.txt").write_bytes(b"word " * 100 + b"\xff")
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 500\)"):
        open_corpus(tmp_path / "a.txt", tokenizer, cache=cache)


def test_rows_without_text_are_refused_by_number(tmp_path, tokenizer, cache):
    write_parquet(tmp_path / "a.parquet", ["x"] * 700 + [None], row_group_size=300)
    with pytest.raises(DataError, match=r"a\.parquet, row 701: nothing instead of text"):
        open_corpus(tmp_path / "a.parquet", tokenizer, cache=cache)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, tokenizer):
    file = write_text(tmp_path / "a.txt", 5)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        open_corpus(file, tokenizer, cache=tmp_path / "cache")


# Data sets of the Hub


def write_data_set(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: data/a.jsonl\n"
        "  - split: test\n    path: data/b.jsonl\n- config_name: broken\n  data_files: data/c.jsonl\n---\n\n# No document\n"
    )
    (folder / "data" / "a.jsonl").write_text('{"text": "one", "label": 1}\n{"text": "two", "label": 2}\n')
    (folder / "data" / "b.jsonl").write_text('{"text": "three"}\n')
    (folder / "data" / "c.jsonl").write_text('{"text": "one"\n')
    return folder


OPEN = """
import json, sys
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from deepen.data.corpus import open_corpus
from deepen.errors import DeepenError
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(sys.argv[1]), eos_token="<end>")
for name in sys.argv[2:]:
    try:
        answer = [0, "".join("|" if token == 0 else chr(token - 1) for token in open_corpus(name, tokenizer).tokens)]
    except DeepenError as error:
        answer = [error.exit_code, str(error)]
    print(json.dumps(answer))
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[tuple[int, str]]]:
    """Read data in a fresh process, since the libraries of the Hub look at the environment when they are imported."""
    model = write_checkpoint(tmp_path / "model")

    def run(*names: str, **environment: str) -> list[tuple[int, str]]:
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        caches = {"HF_HOME": str(tmp_path / "hub"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "DEEPEN_CACHE": ""}
        command = [sys.executable, "-c", OPEN, str(model / "tokenizer.json"), *names]
        process = subprocess.run(command, capture_output=True, text=True, env=kept | caches | environment)
        assert process.returncode == 0, process.stderr
        return [tuple(json.loads(line)) for line in process.stdout.splitlines()]

    return run


def test_a_folder_in_the_layout_of_the_hub(tmp_path, read):
    folder = write_data_set(tmp_path / "set")
    expected = {
        ":small": (0, "one|two"),
        ":small:test": (0, "three"),
        ":small:train[1:]": (0, "two"),
        "": (2, "pick one among the available configs: ['small', 'broken']"),
        ":large": (2, "Available: ['small', 'broken']"),
        ":small:validation": (2, "Should be one of ['train', 'test']"),
        ":broken": (2, "JSON parse error"),
    }
    answers = read(*(f"{folder}{name}" for name in expected))
    for (exit_code, text), answer in zip(expected.values(), answers, strict=True):
        assert answer[0] == exit_code
        assert text in answer[1]
    assert [entry.name for entry in (tmp_path / "cache" / "deepen").iterdir() if entry.name == "text"] == ["text"]


def test_the_hub_out_of_reach(tmp_path, read):
    for environment, message in [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ]:
        ((exit_code, text),) = read("org/none:small", **environment)
        assert exit_code == 2
        assert "org/none:small: no such file or folder here" in text
        assert message in text


class _Nothing(BaseHTTPRequestHandler):
    """A Hub that has no data set."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815


def test_a_data_set_that_the_hub_does_not_know(tmp_path, read):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ((exit_code, text),) = read("org/none", HF_ENDPOINT=f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()
    assert exit_code == 2
    assert "doesn't exist on the Hub or cannot be accessed" in text


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"a\.txt: no such file"):
        find_sources(tmp_path)


def test_what_looks_like_a_file_is_not_asked_for(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("org/data.txt", "a/b/c", "name", "org/name:a:b:c"):
        with pytest.raises(DeepenError, match="no such file"):
            find_sources(name)
