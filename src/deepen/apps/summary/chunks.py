"""Documents cut along their headings into what a model reads at once, and the tree in which its answers come together."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from deepen.apps.documents import Document, Passage, neutral, passages, with_chapters
from deepen.apps.knowledge import readable

_RUN = re.compile(r"([!-~]{60})[!-~]{340,}")  # pictures and keys in letters: nothing that is read
_LONGEST_LABEL = 200  # characters
_CUTS = ("\n\n", "\n", ". ", " ")


@dataclass(frozen=True)
class Block:
    """A passage of a document, as the model is given it.

    Attributes:
        document: its number among the documents, from 0.
        path: the document's title, where there are several documents, and the headings that lead to the passage.
        text: neutral, without addresses of links.
        tokens: of the text, and of the space after it.
    """

    document: int
    path: tuple[str, ...]
    text: str
    tokens: int


@dataclass(frozen=True)
class Chunk:
    """What the model reads at once.

    Attributes:
        label: title and headings.
        text: of its blocks.
        tokens: of the text.
    """

    label: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Branch:
    """Chunks and branches that belong together, in order; at least two."""

    label: str
    children: tuple[Chunk | Branch, ...]


@dataclass(frozen=True)
class Group:
    """Summaries that the model is to bring together: of chunks or of other groups, in order; at least two.

    Attributes:
        label: what they have in common.
        members: the chunks and groups.
        depth: levels of calls: 2 where all members are chunks.
    """

    label: str
    members: tuple[Chunk | Group, ...]
    depth: int


@dataclass(frozen=True)
class Read:
    """What was read of documents.

    Attributes:
        documents: those with text, books with their chapters as headings.
        passages: for each document.
        blocks: what the model is to read, in order.
        repeated: passages left out because they are word for word the same as one before.
    """

    documents: tuple[Document, ...]
    passages: tuple[tuple[Passage, ...], ...]
    blocks: tuple[Block, ...]
    repeated: int


def read_blocks(documents: Sequence[Document], count: Callable[[str], int], budget: int) -> Read:
    """Cut documents into blocks of at most `budget` tokens.

    Args:
        documents: in order.
        count: tells the tokens of a text.
        budget: tokens of a block at most.
    """
    documents = [with_chapters(document) for document in documents]
    found = [tuple(passages(document)) for document in documents]
    blocks: list[Block] = []
    seen: set[str] = set()
    repeated = 0
    for number, (document, pieces) in enumerate(zip(documents, found, strict=True)):
        for piece in pieces:
            text = readable_text(piece.text)
            if not (words := " ".join(text.split())):
                continue
            if words in seen:
                repeated += 1
                continue
            seen.add(words)
            path = (document.title, *piece.headings) if len(documents) > 1 else piece.headings
            path = tuple(" ".join(neutral(each).split()) for each in path)
            if len(documents) > 1 and (not blocks or blocks[-1].document != number):
                text = f"Document: {path[0]}\n\n{text}"
            blocks += [Block(number, path, part, tokens) for part, tokens in _parts(text, count, budget)]
    return Read(tuple(documents), tuple(found), tuple(blocks), repeated)


def readable_text(text: str) -> str:
    """A passage as a model is given it: special tokens broken up, no addresses of links, no long runs of letters and digits."""
    text = _RUN.sub(r"\1…", readable(text.replace("\f", "\n")))
    return neutral("\n".join(line.rstrip() for line in text.split("\n")).strip())


def branch(blocks: Sequence[Block], budget: int, title: str, level: int = 0) -> Chunk | Branch:
    """The tree of chunks of at most `budget` tokens, along the headings from a level on.

    What stands under one heading stays together where it fits; small sections go together in order, with others below the same
    heading; a section that is too long is cut between passages, into chunks of about the same size.
    """
    if sum(each.tokens for each in blocks) <= budget:
        return _chunk(blocks, title)
    groups = [tuple(group) for _, group in groupby(blocks, key=lambda each: (each.document, each.path[: level + 1]))]
    if len(groups) == 1:
        if any(len(each.path) > level + 1 for each in blocks):
            return branch(blocks, budget, title, level + 1)
        parts = [blocks[run] for run in pack([each.tokens for each in blocks], budget)]
        return Branch(_label(blocks, title), tuple(_chunk(part, title) for part in parts))
    children = []
    for run in pack([sum(each.tokens for each in group) for group in groups], budget):
        together = [each for group in groups[run] for each in group]
        children.append(branch(together, budget, title, level + (run.stop - run.start == 1)))
    return Branch(_label(blocks, title), tuple(children))


def gather(tree: Chunk | Branch, most: int) -> list[Chunk | Group]:
    """What the last call brings together: at most `most` chunks and groups, each group of at most `most`, along the tree.

    Small branches go together in order, so that few calls are made.

    Args:
        tree: of chunks.
        most: how many summaries are read at once, 2 or more.
    """
    if isinstance(tree, Chunk):
        return [tree]
    lists = [gather(child, most) for child in tree.children]
    while sum(map(len, lists)) > most:
        merged: list[list[Chunk | Group]] = []
        for run in pack(list(map(len, lists)), most):
            members = tuple(each for items in lists[run] for each in items)
            merged.append(list(members) if len(members) == 1 else [_group(members)])
        lists = merged
    return [each for items in lists for each in items]


def depth(node: Chunk | Group) -> int:
    """Levels of calls: 1 for a chunk."""
    return 1 if isinstance(node, Chunk) else node.depth


def pack(sizes: Sequence[int], capacity: int) -> list[slice]:
    """Runs of consecutive things that fit together: as few as there can be, and then as even as they can be.

    Args:
        sizes: of the things; one that is larger than the capacity is a run of its own.
        capacity: of a run.
    """

    def runs(limit: int) -> list[slice]:
        found, start, held = [], 0, 0
        for place, size in enumerate(sizes):
            if place > start and held + size > limit:
                found.append(slice(start, place))
                start, held = place, 0
            held += size
        return [*found, slice(start, len(sizes))]

    most = len(runs(capacity))
    least = bisect_left(range(capacity), True, key=lambda limit: len(runs(limit)) <= most)
    return runs(least)


def _group(members: tuple[Chunk | Group, ...]) -> Group:
    paths = [each.label.split(" > ") for each in members]
    shared = _shared(paths)
    rest = [path[len(shared)] for path in (paths[0], paths[-1]) if len(path) > len(shared)]
    ends = [*(each.split(" … ")[0] for each in rest[:-1]), *(each.split(" … ")[-1] for each in rest[-1:])]
    return Group(_joined(shared, ends), members, 1 + max(map(depth, members)))


def _chunk(blocks: Sequence[Block], title: str) -> Chunk:
    text = "\n\n".join(each.text for each in blocks)
    return Chunk(_label(blocks, title), text, sum(each.tokens for each in blocks))


def _label(blocks: Sequence[Block], title: str) -> str:
    """Title and headings that blocks have in common, and of what differs the first and the last."""
    shared = _shared([each.path for each in blocks])
    rest = [each.path[len(shared)] for each in (blocks[0], blocks[-1]) if len(each.path) > len(shared)]
    return _joined([*([title] if title else []), *shared], rest)


def _joined(shared: Sequence[str], ends: Sequence[str]) -> str:
    """Names that are shared, and the first and the last of those that are not; the last alone after what has no heading."""
    last = f"… {ends[0]}" if len(ends) == 1 else " … ".join(dict.fromkeys(ends))
    names = dict.fromkeys((*shared, *([last] if last else [])))
    return " > ".join(names)[:_LONGEST_LABEL]


def _shared(paths: Sequence[Sequence[str]]) -> list[str]:
    """What all paths begin with."""
    found = []
    for names in zip(*paths, strict=False):
        if len(set(names)) > 1:
            break
        found.append(names[0])
    return found


def _parts(text: str, count: Callable[[str], int], budget: int) -> Iterator[tuple[str, int]]:
    """A text in parts of at most `budget` tokens: cut near the middle, between paragraphs, lines, sentences or words."""
    tokens = count(f"{text}\n\n")
    if tokens <= budget or len(text) < 2:
        if text.strip():
            yield text.strip(), tokens
        return
    middle = len(text) // 2
    cuts = (text.rfind(mark, middle // 2, middle) + len(mark) for mark in _CUTS if mark in text[middle // 2 : middle])
    cut = next(cuts, middle)
    yield from _parts(text[:cut], count, budget)
    yield from _parts(text[cut:], count, budget)
