"""What is asked of an engine: its numbers in range, and a prompt that fits the context."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from deepen.engine.protocol import Engine, Prompt
from deepen.errors import OptionError


@dataclass(frozen=True)
class Fitted:
    """A prompt, and what of it was left out so that it fits.

    Attributes:
        prompt: what is left, in the form that it had.
        dropped_turns: messages left out.
        dropped_tokens: tokens left out.
    """

    prompt: Prompt
    dropped_turns: int = 0
    dropped_tokens: int = 0

    def __str__(self) -> str:
        """What was left out, in a sentence for the user; empty if nothing was."""
        if not self.dropped_tokens:
            return ""
        what = f"the {self.dropped_turns} oldest turns are" if self.dropped_turns else "the beginning of the prompt is"
        return f"Trimmed: {what} left out ({self.dropped_tokens} tokens), to fit the context with room for the answer"


def check_request(*, max_new_tokens: int, temperature: float, seed: int | None, trim: str | None, engine: str) -> None:
    """Refuse what cannot be asked of an engine, before a model is loaded.

    Raises:
        OptionError: a number out of range, or a way to trim that is none or that the engine does not have.
    """
    if max_new_tokens < 1:
        raise OptionError(f"{max_new_tokens} new tokens cannot be generated", where="--max-new-tokens", next="use 1 or more")
    if not 0 <= temperature <= 100:
        raise OptionError(f"{temperature} is not a temperature", where="--temperature", next="use a number such as 0.7")
    if seed is not None and not 0 <= seed < 2**32 - 1:
        raise OptionError(f"{seed} is not a seed", where="--seed", next="use a number from 0 to 4294967294")
    if trim not in {None, "oldest"}:
        raise OptionError(f"{trim!r} is not a way to trim", where="--trim", next="use oldest, or leave it away")
    if trim and "://" in engine:
        raise OptionError(
            "a server of OpenAI's protocol does not tell its tokens",
            where="--trim",
            next="leave --trim away, or clear the chat",
        )


def trim_oldest(engine: Engine, prompt: Prompt, max_new_tokens: int) -> Fitted:
    """Leave out the oldest part of a prompt that does not fit the context together with an answer of `max_new_tokens`.

    Of a conversation whole turns go, oldest first and up to the next of the user's; its system turns and its last user's turn
    stay, so that it may still be too long, which the engine refuses. Of a plain text its beginning goes, at a character. Room
    for an answer is never more than half the context.

    Args:
        engine: tells tokens, the context and how a conversation is rendered.
        prompt: a conversation or plain text.
        max_new_tokens: the longest answer.

    Raises:
        UnsupportedModelError: the engine cannot render the conversation.
    """
    total = _count(engine, prompt)
    if engine.context is None:
        return Fitted(prompt)
    limit = engine.context - min(max_new_tokens, engine.context // 2)
    if total <= limit:
        return Fitted(prompt)
    if isinstance(prompt, str):
        text = prompt
        start = bisect_left(range(len(text)), True, key=lambda place: _count(engine, text[place:]) <= limit)
        return Fitted(text[start:], 0, total - _count(engine, text[start:]))
    system = [message for message in prompt if message["role"] == "system"]
    turns = [message for message in prompt if message["role"] != "system"]
    # what is kept starts with the user: few templates render anything else
    starts = [place for place, message in enumerate(turns) if message["role"] == "user"]
    if len(starts) < 2:
        return Fitted(prompt)
    chosen = bisect_left(starts[:-1], True, key=lambda place: _count(engine, system + turns[place:]) <= limit)
    rest = system + turns[starts[chosen] :]
    return Fitted(rest, starts[chosen], total - _count(engine, rest))


def _count(engine: Engine, prompt: Prompt) -> int:
    """Tokens of a prompt, with one more for what a tokenizer may put before it."""
    return len(engine.tokenize(prompt if isinstance(prompt, str) else engine.render(prompt))) + 1
