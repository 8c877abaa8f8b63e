"""Is a GGUF what its checkpoint is? Every tensor, the token ids of some texts, the chat prompt."""

from __future__ import annotations

import math
import sys
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, TokenType, quants

from deepen.checkpoint import Tensor, open_checkpoint
from deepen.checkpoint.gguf import Gguf, open_gguf
from deepen.engine.process import Child, start
from deepen.errors import DeepenError, Refuted
from deepen.export.llama import Part, deinterleave, list_parts, read_part, read_shape
from deepen.export.probe import Answer, Question
from deepen.export.quantize import Floats, largest_error, row_blocks, tensor_bytes
from deepen.export.texts import CONVERSATION, TEXTS
from deepen.progress import progress

_SHOWN = 5  # differences in a message


@dataclass
class Findings:
    """What the checks found: differences, checks that ran, and checks that could not."""

    differences: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def check_export(folder: str | Path, file: str | Path) -> list[str]:
    """Compare a GGUF with the checkpoint it was made from, and say on stderr which checks ran.

    Every tensor is read again from both files and compared within the rounding of its format. Where `xllamacpp` and
    `transformers` are installed, llama.cpp loads the file (in a child process), and its token ids for `TEXTS` and its
    rendering of a conversation are compared with those of the checkpoint's own tokenizer.

    Args:
        folder: the checkpoint.
        file: the GGUF.

    Returns:
        The differences, each one sentence; empty if there are none.

    Raises:
        CheckpointError: one of the two is broken.
    """
    folder, file = Path(folder), Path(file)
    gguf, findings = open_gguf(file), Findings()
    lacking = [package for package in ("xllamacpp", "transformers") if find_spec(package) is None]
    if lacking:
        _check_tensors(folder, gguf, findings)
        findings.skipped.append(f"tokens and chat prompt in llama.cpp, since {lacking[0]} is not installed (deepen[run])")
    else:
        texts = TEXTS + tuple(f"{token}a {token} b" for token in _control_tokens(gguf))
        # llama.cpp loads the file while the tensors are compared
        with closing(start("deepen.export.probe", file, Question(file.absolute(), texts, CONVERSATION))) as child:
            _check_tensors(folder, gguf, findings)
            _check_text(folder, child, texts, findings)
    print(f"checked: {', '.join(findings.ran)}", file=sys.stderr)
    for reason in findings.skipped:
        print(f"not checked: {reason}", file=sys.stderr)
    return findings.differences


def require_equal(folder: Path, file: Path, out: Path) -> None:
    """Raise if `check_export` finds a difference.

    Raises:
        Refuted: the GGUF is not what the checkpoint is.
    """
    differences = check_export(folder, file)
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise Refuted(
            f"the GGUF differs from its source: {'; '.join(differences[:_SHOWN])}{more}",
            where=out,
            next="use llama.cpp's convert_hf_to_gguf.py, and report this with the model's name; nothing was written",
        )


def _check_tensors(folder: Path, gguf: Gguf, findings: Findings) -> None:
    checkpoint = open_checkpoint(folder)
    parts = {part.name: part for part in list_parts(checkpoint, read_shape(checkpoint))}
    findings.differences += [f"tensor {name} is missing" for name in parts if name not in gguf.tensors]
    findings.differences += [f"tensor {name} is unexpected" for name in gguf.tensors if name not in parts]
    total = sum(math.prod(part.shape) for part in parts.values())
    with progress("check tensors", total, "weights") as advance:
        for name in parts.keys() & gguf.tensors.keys():
            problem = _compare(parts[name], gguf.tensors[name])
            findings.differences += [f"tensor {name} {problem}"] if problem else []
            advance(math.prod(parts[name].shape))
    findings.ran.append(f"{len(parts)} tensors")


def _compare(part: Part, tensor: Tensor) -> str | None:
    if tensor.shape[::-1] != part.shape:
        return f"has the shape {tensor.shape[::-1]}, not {part.shape}"
    kind = GGMLQuantizationType[tensor.dtype]
    rows, columns = (1, part.shape[0]) if len(part.shape) == 1 else part.shape
    for begin, end in row_blocks(rows, columns, part.rotary_head or 1):
        values = _stored_rows(tensor, kind, columns, begin, end)
        if part.rotary_head:
            # undone here by another formula than the one that wrote it
            values = deinterleave(values.reshape(-1, columns if rows > 1 else 1), part.rotary_head).reshape(values.shape)
        source = read_part(part, begin, end)
        excess = np.abs(values - source) - largest_error(source, kind)
        if not (excess <= 0).all():
            row, column = np.unravel_index(int(np.argmax(np.nan_to_num(excess, nan=np.inf))), excess.shape)
            found, wanted = float(values[row, column]), float(source[row, column])
            return f"holds {found:g} for {wanted:g} in row {begin + int(row)}, column {int(column)} ({kind.name})"
    return None


def _stored_rows(tensor: Tensor, kind: GGMLQuantizationType, columns: int, begin: int, end: int) -> Floats:
    row_bytes = tensor_bytes((columns,), kind)
    count = (end - begin) * row_bytes
    raw = np.fromfile(tensor.file, np.uint8, count, offset=tensor.offset + begin * row_bytes)
    values: Floats = quants.dequantize(raw.reshape(end - begin, row_bytes), kind)
    return values


def _control_tokens(gguf: Gguf) -> list[str]:
    tokens, types = gguf.get("tokenizer.ggml.tokens", []), gguf.get("tokenizer.ggml.token_type", [])
    return [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL][:8]


def _check_text(folder: Path, child: Child, texts: tuple[str, ...], findings: Findings) -> None:
    tokenizer, reason = _load_tokenizer(folder)
    try:
        answer = child.receive()
    except DeepenError as error:
        findings.differences.append(f"llama.cpp does not load it ({error.what})")
        return
    assert isinstance(answer, Answer)
    findings.ran.append("it loads in llama.cpp")
    if tokenizer is None:
        findings.skipped.append(f"tokens and chat prompt, since transformers cannot load the checkpoint's tokenizer ({reason})")
        return
    for text, ids in zip(texts, answer.tokens, strict=True):
        wanted = tokenizer(text)["input_ids"]
        if ids != wanted:
            findings.differences.append(f"the text {text!r} has {_both(ids, wanted)}")
    findings.ran.append(f"token ids of {len(texts)} texts")
    _check_prompt(tokenizer, answer, findings)


def _load_tokenizer(folder: Path) -> tuple[Any, str]:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True), ""
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        return None, str(error).partition("\n")[0][:200]


def _check_prompt(tokenizer: Any, answer: Answer, findings: Findings) -> None:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        findings.skipped.append("the chat prompt, since the checkpoint has no chat template")
        return
    try:
        wanted = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        findings.skipped.append(f"the chat prompt, since the checkpoint's own template fails ({error})")
        return
    if answer.prompt is None:
        findings.differences.append("the chat template fails in llama.cpp")
        return
    # llama.cpp drops the BOS that a template writes where encoding adds one anyway
    if wanted not in {answer.prompt, (tokenizer.bos_token or "") + answer.prompt}:
        findings.differences.append(f"the chat prompt is {answer.prompt!r} in llama.cpp, {wanted!r} in transformers")
        return
    ids = tokenizer(answer.prompt, add_special_tokens=False)["input_ids"]
    if answer.prompt_tokens != ids:
        findings.differences.append(f"the chat prompt has {_both(answer.prompt_tokens, ids)}")
    findings.ran.append("the chat prompt")


def _both(found: list[int], wanted: list[int]) -> str:
    """Both lists of ids from shortly before the first difference."""
    pairs = enumerate(zip(found, wanted, strict=False))
    first = next((index for index, (one, other) in pairs if one != other), min(len(found), len(wanted)))
    begin, end = max(first - 1, 0), first + 4
    return f"the tokens …{found[begin:end]}… in llama.cpp, …{wanted[begin:end]}… in transformers"
