"""Benchmarks as texts: the rows that models are scored on, from the Hub, from folders in its layout, or from files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from deepen.checkpoint.hub import is_hub_id
from deepen.data import hub
from deepen.data.layout import KINDS, configurations, locate, split_files, usual_names
from deepen.data.rows import malformed, open_rows
from deepen.data.sources import Paths
from deepen.errors import DataError, OptionError


class Row(NamedTuple):
    """A row of a benchmark.

    Attributes:
        number: its place in the data, from 1.
        texts: what training data is searched for, each by itself: the question, and the question with its choices.
        solved: the question with the right answer, one space between them; the question alone if no answer is given.
    """

    number: int
    texts: tuple[str, ...]
    solved: str


class _Place(NamedTuple):
    """Where a benchmark's rows are: on the Hub, in which configuration and split."""

    hub: str
    config: str
    split: str


_PLACES = {
    "arc_challenge": _Place("allenai/ai2_arc", "ARC-Challenge", "test"),
    "hellaswag": _Place("Rowan/hellaswag", "", "validation"),
    "mmlu": _Place("cais/mmlu", "all", "test"),
    "truthfulqa_mc2": _Place("truthfulqa/truthful_qa", "multiple_choice", "validation"),
    "winogrande": _Place("allenai/winogrande", "winogrande_xl", "validation"),
    "gsm8k": _Place("openai/gsm8k", "main", "test"),
    "bbq": _Place("oskarvanderwal/bbq", "All", "test"),
    "crows_pairs": _Place("jannalu/crows_pairs_multilingual", "english", "test"),
    "winogender": _Place("oskarvanderwal/winogender", "all", "test"),
}
_H4 = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2")
_BIAS = ("crows_pairs", "bbq", "winogender")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "h4": _H4,
    "h6": (*_H4, "winogrande", "gsm8k"),
    "bias": _BIAS,
    "all": tuple(_PLACES),
}
"""Names that stand for several benchmarks."""
NAMES = (*_PLACES, *GROUPS)
"""Names that are known."""

_SAME = {"truthfulqa": "truthfulqa_mc2", "truthfulqa_mc1": "truthfulqa_mc2", "arc": "arc_challenge"}
_SPLITS = ("test", "validation", "train")  # a benchmark is scored on the first of these that it has
_ABOUT = {"role", "from", "id", "type"}  # keys of values that say nothing themselves


def read_benchmarks(words: Paths, data: Path | None = None) -> dict[str, list[Row]]:
    """Read the rows that benchmarks are scored on.

    Of a folder in the layout of the Hub these are the split `test`, else `validation`, else `train`, of all its configurations
    or, as `DIR:config[:split]`, of one.

    Args:
        words: names of benchmarks and groups (`NAMES`), which are on the Hub or, if `data` is given, in a folder below it; or
            folders in the Hub's layout, folders of such folders, files of rows, and data sets of the Hub.
        data: a folder with a folder for each benchmark.

    Returns:
        For the name of each benchmark its rows.

    Raises:
        OptionError: a word is no known name and no path.
        DataError: the data is missing, cannot be read, or has no rows.
        MissingDependencyError, NetworkError: as `hub.open_rows`.
    """
    listed = [str(words)] if isinstance(words, str | Path) else [str(word) for word in words]
    named = [name for word in listed for name in ([word] if Path(word).exists() else GROUPS.get(word, [word]))]
    found: dict[str, list[Row]] = {}
    for each in dict.fromkeys(named):
        for name, rows in _read(each, data):
            found[name] = [row for row in rows if row.texts]
            if not found[name]:
                raise DataError("there are no rows in it", where=each, next="give a benchmark with rows")
    return found


def row_of(number: int, row: Mapping[str, Any]) -> Row:
    """The texts of a row, by its columns: those of the benchmarks of `NAMES` and their like, else all texts that it has."""
    match row:
        case {"question": str(question), "mc1_targets": {"choices": list(choices), "labels": list(labels)}}:
            answer = next((choice for choice, label in zip(choices, labels, strict=False) if label), "")
            return _row(number, question, answer, f"{question}\n{answer}")
        case {"context": str(context), "question": str(question), "ans0": str(), "label": label}:
            return _row(number, f"{context} {question}", str(row.get(f"ans{label}", "")))
        case {"question": str(question), "choices": choices} if choices:
            texts, labels = (choices["text"], choices["label"]) if isinstance(choices, dict) else (choices, [])
            wanted = row.get("answerKey", row.get("answer"))
            place = labels.index(wanted) if wanted in labels else wanted if isinstance(wanted, int) else -1
            answer = texts[place] if 0 <= place < len(texts) else ""
            return _row(number, question, answer, "\n".join([question, *texts]))
        case {"question": str(question), "answer": str(answer)}:
            return _row(number, question, answer)
        case {"ctx": str(context), "endings": list(endings)}:
            label = str(row.get("label", ""))
            return _row(number, context, endings[int(label)] if label.isdigit() else "")
        case {"sentence": str(sentence), "option1": str(first), "option2": str(second)}:
            filled = [sentence.replace("_", option) for option in (first, second)]
            return _row(number, filled[1] if str(row.get("answer")) == "2" else filled[0], "", sentence, *filled)
        case {"sent_more": str(more), "sent_less": str(less)}:
            return _row(number, more, "", less)
        case {"sentence": str(sentence)}:
            return _row(number, sentence, "")
        case _:
            text = text_of(row)
            return _row(number, text, "")


def text_of(value: Any) -> str:
    """All texts in a row, in order and one to a line, but for the roles of a conversation."""
    return "\n".join(_texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if key not in _ABOUT:
                yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _row(number: int, question: str, answer: str, *others: str) -> Row:
    texts = tuple(dict.fromkeys(text for text in (question, *others) if text.strip()))
    return Row(number, texts, f"{question} {answer}".strip())


def _read(word: str, data: Path | None) -> Iterator[tuple[str, Iterator[Row]]]:
    path, name = Path(word), _SAME.get(word, word)
    if path.exists() or hub.is_data_set(Path(hub.parse(word).name)):
        yield from _read_path(word, path)
    elif name in _PLACES:
        yield name, (_local(_PLACES[name], data) if data is not None else _online(name))
    elif path.suffix not in KINDS and is_hub_id(hub.parse(word).name) and ":" in word:
        yield word, _rows(Path(word))
    else:
        near = get_close_matches(word, NAMES, n=3)
        raise OptionError(
            f"no benchmark is called {word!r}, and there is no such file or folder",
            next=f"use {' or '.join(near) if near else ', '.join(NAMES)}, a folder in the Hub's layout, or a file of rows",
        )


def _read_path(word: str, path: Path) -> Iterator[tuple[str, Iterator[Row]]]:
    parts = hub.parse(word)
    folder = Path(parts.name)
    if path.is_file():
        yield path.stem, _rows(path)
    elif _has_rows(folder):
        yield _called(folder), _folder_rows(folder, parts.config, parts.split)
    elif inside := [each for each in sorted(folder.iterdir()) if each.is_dir() and hub.is_data_set(each)]:
        for each in inside:
            yield _called(each), _folder_rows(each, "", "")
    else:
        raise DataError(
            f"it has no {', '.join(KINDS)} file, nor a folder in the Hub's layout",
            where=word,
            next="give the folder of a benchmark",
        )


def _has_rows(folder: Path) -> bool:
    return hub.is_data_set(folder) or any(each.suffix in KINDS for each in folder.iterdir())


def _called(folder: Path) -> str:
    """The name of the benchmark that is usually in a folder of that name."""
    name = folder.resolve().name
    return next((known for known, place in _PLACES.items() if name.lower() in usual_names(place.hub)), name)


def _local(place: _Place, data: Path) -> Iterator[Row]:
    return _folder_rows(locate(data, place.hub), place.config, place.split)


def _online(name: str) -> Iterator[Row]:
    place = _PLACES[name]
    try:
        return _rows(Path(f"{place.hub}:{place.config}:{place.split}"))
    except DataError as error:
        raise DataError(
            f"{name}: {error.what}", where=error.where, next="give a folder with its data instead of the name, or connect"
        ) from error


def _rows(path: Path) -> Iterator[Row]:
    _, numbered = open_rows(path)

    def read() -> Iterator[Row]:
        for number, row in numbered(lambda _: None):
            if not isinstance(row, dict):
                raise malformed("not an object with named columns", f"{path}, row {number}")
            yield row_of(number, row)

    return read()


def _folder_rows(folder: Path, config: str, split: str) -> Iterator[Row]:
    """The rows of all files of a split, numbered through."""
    files = _files(folder, config)
    wanted = split or next((each for each in _SPLITS if each in files), next(iter(files), ""))
    if not files.get(wanted):
        raise DataError(
            f"no file of rows{f' of the split {split!r}' if split else ''}; the splits are: {', '.join(files) or 'none'}",
            where=folder,
            next="check the folder, and the header of its README",
        )

    def read() -> Iterator[Row]:
        number = 0
        for file in files[wanted]:
            for row in _rows(file):
                number += 1
                yield row._replace(number=number)

    return read()


def _files(folder: Path, config: str) -> dict[str, list[Path]]:
    """The files of each split of a configuration, or of all of them; without a header, by the names of the files."""
    known = configurations(folder)
    if not known:
        return _unlisted(folder)
    chosen = [config] if config in known else [each for each in known if each.lower() == "all"] or known
    files: dict[str, list[Path]] = {}
    for each in chosen:
        for split, some in split_files(folder, each).items():
            files.setdefault(split, []).extend(some)
    return {split: list(dict.fromkeys(some)) for split, some in files.items()}


def _unlisted(folder: Path) -> dict[str, list[Path]]:
    """All files of rows; what does not say its split is one of its own."""
    files: dict[str, list[Path]] = {}
    for file in sorted(each for each in folder.rglob("*") if each.suffix in KINDS):
        named = re.search(r"test|val|train", file.stem)
        files.setdefault({"val": "validation"}.get(named[0], named[0]) if named else "rows", []).append(file)
    return files
