"""Text of strangers in a prompt: what a tokenizer or a chat template would take for its own marks is broken up."""

from __future__ import annotations

import re

# `<|im_end|>`, `</s>`, `<start_of_turn>`, `[INST]`, `[/INST]`, `[gMASK]`; the labels of sources, such as `[S1]`
_MARK = re.compile(r"<(?=[^\s<>]{1,64}>)|\[(?=/?(?:g?[A-Z_]{2,32}|S\d{1,9})\])")
# a line that begins a turn in templates without special tokens, such as SOLAR's
_TURN = re.compile(
    r"^[ \t]*#{1,6}[ \t]*(?=(?:user|assistant|system|human|instruction|response|input)\b[^\n:]{0,20}:)", re.I | re.M
)


def neutral(text: str) -> str:
    """The text with a space after the bracket of whatever looks like a special token, and turn headings as plain words.

    Engines recognise special tokens anywhere in a prompt, so a document could end its own turn and begin another one.
    """
    return _MARK.sub(lambda mark: f"{mark[0]} ", _TURN.sub("", text))
