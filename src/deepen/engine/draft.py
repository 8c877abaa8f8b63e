"""Drafts (speculative decoding): a smaller model or the text so far guesses the next tokens, and the model checks them at once.

What the model would not have said is thrown away, so greedy text stays what it is, but for ties in the last digits. Whether it
is faster depends on how often the guess is right and on what it costs; so it is measured. Leviathan et al., "Fast Inference
from Transformers via Speculative Decoding", 2023.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from deepen.checkpoint import open_checkpoint
from deepen.checkpoint.gguf import open_gguf
from deepen.checkpoint.manifest import read_manifest
from deepen.engine.protocol import Engine, Prompt
from deepen.errors import DeepenError, OptionError
from deepen.progress import say

AUTO, NGRAM = "auto", "ngram"
_ADDED_TOKENS = 128  # as llama.cpp allows
_MEASURED = 32  # tokens, with a draft and without
_QUESTION = "Tell me a story about the universe."  # measured on where the first prompt is not known yet


def depth(path: Path) -> int:
    """Decoder layers of a checkpoint folder or a GGUF file, 0 if it does not say."""
    if path.is_dir():
        config = open_checkpoint(path).config
        layers = config.get("num_hidden_layers", config.get("text_config", {}).get("num_hidden_layers"))
    else:
        gguf = open_gguf(path)
        layers = gguf.get(f"{gguf.get('general.architecture')}.block_count")
    return layers if isinstance(layers, int) else 0


def find_base(path: Path) -> Path | None:
    """The shallower model that a model was made from, by the manifests on this disk, or None."""
    place, seen = path, {path}
    try:
        while True:
            manifest = place if place.is_dir() else place.with_name(f"{place.name}.deepen.json")
            place = Path(read_manifest(manifest)["source"]["model"])
            if place in seen or not place.exists():
                return None
            if depth(place) < depth(path):
                return place
            seen.add(place)
    except (DeepenError, KeyError, TypeError):
        return None


def same_vocabulary(model: Path, draft: Path) -> bool:
    """Whether two models have the same tokens under the same numbers; a few more at the end of one are no matter."""
    ours, theirs = _tokens(model), _tokens(draft)
    shared = min(len(ours), len(theirs))
    return ours[:shared] == theirs[:shared] and max(len(ours), len(theirs)) - shared <= _ADDED_TOKENS


def check_vocabulary(model: Path, draft: Path) -> None:
    """Refuse a draft that speaks of other tokens than the model.

    Raises:
        OptionError: it does.
    """
    if not same_vocabulary(model, draft):
        raise OptionError(
            "the draft has another vocabulary than the model, so it cannot guess its tokens",
            where=draft,
            next="use --draft ngram, or a smaller model of the same family",
        )


def faster(drafting: Engine, plain: Engine, prompt: Prompt, max_new_tokens: int, **options: Any) -> Engine:
    """Of a model with a draft and the same without, the one that gives the first tokens of an answer faster; says which.

    Args:
        drafting: the model with its draft.
        plain: the model without.
        prompt: what is answered.
        max_new_tokens: the longest answer.
        options: those of `Engine.stream`.
    """
    limit = min(_MEASURED, max_new_tokens)
    with_draft, without = (_speed(engine, prompt, max_new_tokens=limit, **options) for engine in (drafting, plain))
    kept = with_draft > without
    say(f"Draft: {'used' if kept else 'left out'} ({with_draft:.1f} tokens/s with it, {without:.1f} without)")
    return drafting if kept else plain


def keep_faster(drafting: Engine) -> Engine:
    """The same as `faster` before a prompt is known: measured on an answer to a question. The other engine is closed."""
    prompt: Prompt = [{"role": "user", "content": _QUESTION}] if drafting.has_template else _QUESTION
    with ExitStack() as engines:
        engines.callback(drafting.close)
        plain = drafting.without_draft()
        engines.callback(plain.close)
        kept = faster(drafting, plain, prompt, _MEASURED, temperature=0.0, seed=None, stop=())
        engines.pop_all()
    (plain if kept is drafting else drafting).close()
    return kept


def _speed(engine: Engine, prompt: Prompt, **options: Any) -> float:
    """Tokens per second after the first text, which waits for the prompt; 0 if the answer ends there."""
    start, tokens = 0.0, 0
    with closing(engine.stream(prompt, **options)) as chunks:
        for chunk in chunks:
            start, tokens = start or time.perf_counter(), chunk.completion_tokens
    return max(0, tokens - 1) / (time.perf_counter() - start)


def _tokens(path: Path) -> list[str]:
    """The tokens of a model by their numbers."""
    if path.is_file():
        return [str(token) for token in open_gguf(path).get("tokenizer.ggml.tokens") or ()]
    file = path / "tokenizer.json"
    if not file.is_file():
        return [hashlib.sha256(each.read_bytes()).hexdigest() for each in sorted(path.glob("*.model"))]
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        numbered = {number: token for token, number in vocabulary.items()}
    else:  # a unigram model has tokens and their scores
        numbered = {number: token for number, (token, _) in enumerate(vocabulary)}
    numbered |= {token["id"]: token["content"] for token in content.get("added_tokens", ())}
    return [token for _, token in sorted(numbered.items())]
