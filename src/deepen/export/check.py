"""Is a GGUF what its checkpoint is? Tensors, token ids of texts, the chat prompt, what ends an answer, what comes next."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, TokenType, quants

from deepen.checkpoint import Checkpoint, Tensor, open_checkpoint
from deepen.checkpoint.gguf import Gguf, open_gguf
from deepen.engine.libllama import start_distributions
from deepen.engine.process import Child, start
from deepen.errors import DeepenError, Refuted
from deepen.export.forward import next_token_log_probabilities
from deepen.export.llama import Part, deinterleave, list_parts, pieces, read_part, read_shape
from deepen.export.probe import Answer, Question
from deepen.export.rows import Floats, in_order, largest_error, tensor_bytes
from deepen.export.texts import CONVERSATION, PASSAGE, TEXTS
from deepen.export.vocabulary import stop_tokens
from deepen.progress import progress

_SHOWN = 5  # differences in a message
_POSITIONS = 128  # at which the next token is compared
_MOST_DIVERGENCE = 0.05  # nats of a format that hardly rounds: llama.cpp itself computes in float16 in places
_ANY = "AutoTokenizer"
_LIGHT = {
    "PreTrainedTokenizerFast": "PreTrainedTokenizerFast", "TokenizersBackend": "PreTrainedTokenizerFast",
    "GPT2Tokenizer": "GPT2Tokenizer", "GPT2TokenizerFast": "GPT2Tokenizer",
}  # fmt: skip
_UNROUNDED = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}


@dataclass
class Check:
    """What the checks found.

    Attributes:
        differences: each one sentence; empty if the file is what its source is.
        ran: the checks that ran.
        skipped: those that could not, with the reason.
        positions: how many next tokens were compared.
        agreement: the part of them where both models find the same token likeliest.
        divergence: mean Kullback-Leibler divergence of the GGUF's distribution from the source's, in nats per token.
    """

    differences: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    positions: int = 0
    agreement: float | None = None
    divergence: float | None = None


class Tokenizer:
    """The checkpoint's own tokenizer, loaded in another thread: importing transformers takes longer than a small export."""

    def __init__(self, folder: Path) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._loaded: Future[tuple[Any, str]] = self._pool.submit(_load_tokenizer, folder)
        self._pool.shutdown(wait=False)

    def get(self) -> tuple[Any, str]:
        """The tokenizer, or None and the reason."""
        return self._loaded.result()


def check_export(folder: str | Path, file: str | Path, tokenizer: Tokenizer | None = None) -> Check:
    """Compare a GGUF with the checkpoint it was made from, and say on stderr which checks ran.

    Every tensor is read again from both files and compared within the rounding of its format. Where `xllamacpp` and
    `transformers` are installed, llama.cpp loads the file (in a child process). Its token ids for `TEXTS` and its rendering of
    a conversation are compared with those of the checkpoint's own tokenizer, its distributions of the next token with the
    checkpoint's, and every token that should end an answer must end one.

    Args:
        folder: the checkpoint.
        file: the GGUF.
        tokenizer: the checkpoint's tokenizer, if it is being loaded already.

    Raises:
        CheckpointError: one of the two is broken.
    """
    folder, file = Path(folder), Path(file)
    gguf, check = open_gguf(file), Check()
    checkpoint = open_checkpoint(folder)
    if find_spec("xllamacpp") is None:
        _check_tensors(checkpoint, gguf, check)
        check.skipped.append("all that llama.cpp makes of it, since xllamacpp is not installed (deepen[run])")
    else:
        texts = (*TEXTS, PASSAGE, *(f"{token}a {token} b" for token in _control_tokens(gguf)))
        question = Question(file.absolute(), texts, CONVERSATION, tuple(stop_tokens(folder, checkpoint.config)))
        # llama.cpp loads the file while the tensors are compared
        with closing(start("deepen.export.probe", file, question)) as child:
            _check_tensors(checkpoint, gguf, check)
            tokens = _check_text(child, texts, tokenizer or Tokenizer(folder), check)
        if tokens and not check.differences:
            _check_next_tokens(checkpoint, gguf, tokens, check)
    print(f"checked: {', '.join(check.ran)}", file=sys.stderr)
    for reason in check.skipped:
        print(f"not checked: {reason}", file=sys.stderr)
    return check


def require_equal(folder: Path, file: Path, out: Path, tokenizer: Tokenizer) -> Check:
    """Raise if `check_export` finds a difference.

    Raises:
        Refuted: the GGUF is not what the checkpoint is.
    """
    check = check_export(folder, file, tokenizer)
    if check.differences:
        more = f"; and {len(check.differences) - _SHOWN} more" if len(check.differences) > _SHOWN else ""
        raise Refuted(
            f"the GGUF differs from its source: {'; '.join(check.differences[:_SHOWN])}{more}",
            where=out,
            next="use llama.cpp's convert_hf_to_gguf.py, and report this with the model's name; nothing was written",
        )
    return check


def _check_tensors(checkpoint: Checkpoint, gguf: Gguf, check: Check) -> None:
    parts = {part.name: part for part in list_parts(checkpoint, read_shape(checkpoint))}
    check.differences += [f"tensor {name} is missing" for name in parts if name not in gguf.tensors]
    check.differences += [f"tensor {name} is unexpected" for name in gguf.tensors if name not in parts]
    total = sum(math.prod(part.shape) for part in parts.values())

    def jobs() -> Iterator[tuple[Part, int, int]]:
        for name in sorted(parts.keys() & gguf.tensors.keys()):
            found = gguf.tensors[name].shape[::-1]
            if found == parts[name].shape:
                yield from pieces(parts[name])
            else:
                check.differences.append(f"tensor {name} has the shape {found}, not {parts[name].shape}")

    wrong = set()
    with progress("check tensors", total, "weights") as advance:
        for (part, begin, end), problem in in_order(lambda job: _compare(job, gguf.tensors[job[0].name]), jobs()):
            if problem and part.name not in wrong:
                wrong.add(part.name)
                check.differences.append(f"tensor {part.name} {problem}")
            advance((end - begin) * part.shape[-1])
    check.ran.append(f"{len(parts)} tensors")


def _compare(job: tuple[Part, int, int], tensor: Tensor) -> str | None:
    part, begin, end = job
    kind, columns = GGMLQuantizationType[tensor.dtype], part.shape[-1]
    values = _stored_rows(tensor, kind, columns, begin, end)
    if part.rotary_head:
        # undone here by another formula than the one that wrote it
        wide = columns if len(part.shape) > 1 else 1
        values = deinterleave(values.reshape(-1, wide), part.rotary_head).reshape(values.shape)
    source = read_part(part, begin, end)
    bound = largest_error(source, kind)
    error = np.abs(values - source).reshape(*bound.shape[:-1], -1)
    if not (error <= bound).all():
        worst = int(np.argmax(np.nan_to_num(error - bound, nan=np.inf)))
        row, column = np.unravel_index(worst, source.shape)
        found, wanted = float(values[row, column]), float(source[row, column])
        return f"holds {found:g} for {wanted:g} in row {begin + int(row)}, column {int(column)} ({kind.name})"
    return None


def _stored_rows(tensor: Tensor, kind: GGMLQuantizationType, columns: int, begin: int, end: int) -> Floats:
    row_bytes = tensor_bytes((columns,), kind)
    count = (end - begin) * row_bytes
    raw = np.fromfile(tensor.file, np.uint8, count, offset=tensor.offset + begin * row_bytes)
    values: Floats
    if kind in {GGMLQuantizationType.F32, GGMLQuantizationType.F16}:
        values = quants.dequantize(raw.reshape(end - begin, row_bytes), kind)
    else:  # all blocks at once, where `dequantize` takes them 16 rows at a time
        values = getattr(quants, kind.name).dequantize_blocks(raw.reshape(-1, GGML_QUANT_SIZES[kind][1]))
    return values.reshape(end - begin, columns)


def _control_tokens(gguf: Gguf) -> list[str]:
    tokens, types = gguf.get("tokenizer.ggml.tokens", []), gguf.get("tokenizer.ggml.token_type", [])
    return [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL][:8]


def _check_text(child: Child, texts: tuple[str, ...], tokenizer: Tokenizer, check: Check) -> list[int] | None:
    """Compare ids, prompt and ends of answers; returns llama.cpp's ids of `PASSAGE`."""
    try:
        answer = child.receive()
    except DeepenError as error:
        check.differences.append(f"llama.cpp does not load it ({error.what})")
        return None
    assert isinstance(answer, Answer)
    check.ran.append("it loads in llama.cpp")
    check.differences += [f"token {token} does not end an answer in llama.cpp" for token in answer.endless]
    check.ran.append("its stop tokens end an answer")
    tokens = answer.tokens[texts.index(PASSAGE)]
    loaded, reason = tokenizer.get()
    if loaded is None:
        check.skipped.append(f"tokens and chat prompt, since transformers cannot load the checkpoint's tokenizer ({reason})")
        return tokens
    for text, ids in zip(texts, answer.tokens, strict=True):
        wanted = loaded(text)["input_ids"]
        if ids != wanted:
            check.differences.append(f"the text {text!r} has {_both(ids, wanted)}")
    check.ran.append(f"token ids of {len(texts)} texts")
    _check_prompt(loaded, answer, check)
    return tokens


def _load_tokenizer(folder: Path) -> tuple[Any, str]:
    try:
        return _tokenizer_class(folder).from_pretrained(folder, local_files_only=True), ""
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        return None, str(error).partition("\n")[0][:200]


def _tokenizer_class(folder: Path) -> Any:
    """What `AutoTokenizer` takes; to see that it is the class that a Llama's files name, that imports torch for seconds."""
    import transformers

    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_bytes()) if file.is_file() else {}
    known = open_checkpoint(folder).config.get("model_type") == "llama" and "auto_map" not in settings
    return getattr(transformers, _LIGHT.get(str(settings.get("tokenizer_class")), _ANY) if known else _ANY)


def _check_prompt(tokenizer: Any, answer: Answer, check: Check) -> None:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        check.skipped.append("the chat prompt, since the checkpoint has no chat template")
        return
    try:
        wanted = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        check.skipped.append(f"the chat prompt, since the checkpoint's own template fails ({error})")
        return
    if answer.prompt is None:
        check.differences.append("the chat template fails in llama.cpp")
        return
    # llama.cpp drops the BOS that a template writes where encoding adds one anyway
    if wanted not in {answer.prompt, (tokenizer.bos_token or "") + answer.prompt}:
        check.differences.append(f"the chat prompt is {answer.prompt!r} in llama.cpp, {wanted!r} in transformers")
        return
    ids = tokenizer(answer.prompt, add_special_tokens=False)["input_ids"]
    if answer.prompt_tokens != ids:
        check.differences.append(f"the chat prompt has {_both(answer.prompt_tokens, ids)}")
    check.ran.append("the chat prompt")


def _check_next_tokens(checkpoint: Checkpoint, gguf: Gguf, tokens: Sequence[int], check: Check) -> None:
    shape = read_shape(checkpoint)
    window = list(tokens[: min(_POSITIONS + 1, shape.context)])
    source = next_token_log_probabilities(checkpoint, shape, window[:-1])  # first, since both want every core
    with closing(start_distributions(gguf.path.absolute(), [window])) as child:
        same, divergence = 0, 0.0
        for wanted in source:
            found = child.receive()
            assert isinstance(found, np.ndarray)
            same += int(found.argmax() == wanted.argmax())
            divergence += float(np.exp(wanted) @ (wanted - found))
    check.positions, check.agreement, check.divergence = len(source), same / len(source), divergence / len(source)
    check.ran.append(f"the likeliest next token ({same} of {len(source)} the same, KL {check.divergence:.4f} nats)")
    kind = GGMLQuantizationType[gguf.tensors["blk.0.ffn_up.weight"].dtype]
    if kind in _UNROUNDED and not check.divergence <= _MOST_DIVERGENCE:
        check.differences.append(f"the next token's distribution differs by {check.divergence:.3g} nats (KL) in llama.cpp")


def _both(found: list[int], wanted: list[int]) -> str:
    """Both lists of ids from shortly before the first difference."""
    pairs = enumerate(zip(found, wanted, strict=False))
    first = next((index for index, (one, other) in pairs if one != other), min(len(found), len(wanted)))
    begin, end = max(first - 1, 0), first + 4
    return f"the tokens …{found[begin:end]}… in llama.cpp, …{wanted[begin:end]}… in transformers"
