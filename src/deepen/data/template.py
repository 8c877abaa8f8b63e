"""Chat templates, and conversations to tokens with labels on what the assistant says."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deepen.data.chat import Conversation
from deepen.data.text import IGNORED, Tokens
from deepen.errors import DataError, OptionError
from deepen.progress import progress, say

SOLAR = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{% if message['content']%}"
    "{{'### System:\\n' + message['content']+'\\n\\n'}}{% endif %}{% elif message['role'] == 'user' %}"
    "{{'### User:\\n' + message['content']+'\\n\\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'### Assistant:\\n'  + message['content']}}{% endif %}{% if loop.last and add_generation_prompt %}"
    "{{ '### Assistant:\\n' }}{% endif %}{% endfor %}"
)
"""As SOLAR 10.7B Instruct has it. It writes nothing after an answer; that the answer ends is learned all the same."""

CHATML = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
    "{{ '# Tools\\n' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{% if not (tools and loop.first and message['role'] == 'system') %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML; tools are listed in the system turn."""

_CHATML_MARKS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Row:
    """A conversation as a model is trained on it.

    Attributes:
        tokens: ids, shape (length,).
        labels: the token to be predicted at each place, shape (length,), or -100 where nothing is learned.
        where: file and row, for messages to the user.
    """

    tokens: Tokens
    labels: Tokens
    where: str

    @property
    def terms(self) -> int:
        """How many tokens are learned."""
        return int((self.labels != IGNORED).sum())


def find_template(wanted: str | Path, tokenizer: Any) -> str:
    """The Jinja text of a template.

    Args:
        wanted: `model` for the tokenizer's own, `solar`, `chatml`, or a file.
        tokenizer: a transformers tokenizer.

    Raises:
        OptionError: the model has none, the file cannot be read or is no Jinja, or the tokenizer lacks ChatML's marks.
    """
    match str(wanted):
        case "model":
            own = tokenizer.chat_template
            template = own.get("default") if isinstance(own, dict) else own
            if template is None:
                raise OptionError("the model has no chat template", where="--template", next="use solar, chatml or a file")
        case "solar":
            template = SOLAR
        case "chatml":
            template = CHATML
            if lacking := [mark for mark in _CHATML_MARKS if mark not in tokenizer.get_vocab()]:
                raise OptionError(
                    f"the tokenizer has no token {' and no '.join(lacking)}, which ChatML is made of",
                    where="--template",
                    next="use --template solar, whose marks are plain text",
                )
        case _:
            try:
                template = Path(wanted).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise OptionError(
                    f"cannot be read ({error})", where=wanted, next="use model, solar, chatml or a file of Jinja text"
                ) from error
    return str(template)


def encode_conversations(
    conversations: Sequence[Conversation], tokenizer: Any, template: str, *, ends: Collection[int] = ()
) -> list[Row]:
    """Conversations as tokens and labels: every token that an assistant's turn adds is learned, and that it ends there.

    A turn lies between two renderings: of the conversation up to it, with the prompt for an answer, and of the conversation
    with it. Both must begin the whole rendering. Its tokens begin where those of the first rendering end (or differ). Blanks
    that the template puts after the turn are not learned. Where a turn does not close with one of the `ends`, the tokenizer's
    end-of-text token is learned after its last token; inside a conversation it is learned without being read, so that the
    model reads exactly what the template will write when it is used.

    A plain prompt and completion get no template: both are tokenised together and end with the end-of-text token.

    Args:
        conversations: what to encode.
        tokenizer: a transformers tokenizer.
        template: Jinja text, rendered in transformers' sandbox.
        ends: ids at which generation stops, besides the tokenizer's end-of-text token.

    Returns:
        A row per conversation, in order. What follows the last learned token is cut off.

    Raises:
        DataError: the template fails, rewrites or leaves out what was said, or nothing is learned; the message names the row.
        OptionError: the template is no Jinja.
    """
    encoder = _Encoder(tokenizer, template, frozenset({*ends, tokenizer.eos_token_id} - {None}))
    rows = []
    with progress("Tokenising", len(conversations), "conversations") as advance:
        for conversation in conversations:
            rows.append(encoder.plain(conversation) if conversation.plain else encoder.chat(conversation))
            advance(1)
    return rows


def limit_rows(rows: Sequence[Row], length: int, *, too_long: str) -> list[Row]:
    """Rows of at most `length` tokens; how many were longer is printed on stderr.

    Args:
        rows: of any length.
        length: the longest that is let through.
        too_long: what happens to longer ones: `error`, `truncate` (the first `length` tokens stay) or `drop`.

    Raises:
        DataError: there are longer ones and `too_long` is `error`; a truncated row has nothing left to learn; or none is left.
    """
    longer = [row for row in rows if len(row.tokens) > length]
    if not longer:
        return list(rows)
    longest = max(len(row.tokens) for row in longer)
    count = f"{len(longer):,} of {len(rows):,} conversations are longer than {length} tokens, up to {longest}"
    if too_long == "error":
        raise DataError(
            count,
            where=longer[0].where,
            next=f"pass --sequence-length {longest} if the model takes that, or --too-long truncate or drop",
        )
    say(f"{count}: {'truncated' if too_long == 'truncate' else 'dropped'}")
    if too_long == "truncate":
        return [cut_row(row, length) for row in rows]
    kept = [row for row in rows if len(row.tokens) <= length]
    if not kept:
        raise DataError(f"{count}: none is left", where=rows[0].where, next=f"pass --sequence-length {longest}")
    return kept


def cut_row(row: Row, length: int) -> Row:
    """The first `length` tokens of a row.

    Raises:
        DataError: nothing is learned in them.
    """
    labels = row.labels[:length].copy()
    labels[length - 1 :] = IGNORED  # what it predicts is no part of the row any more
    cut = replace(row, tokens=row.tokens[:length], labels=labels)
    if cut.terms == 0:
        raise DataError(f"its first {length} tokens hold nothing to learn", where=row.where, next="use --too-long drop")
    return cut


@dataclass(frozen=True)
class _Encoder:
    tokenizer: Any
    template: str
    ends: frozenset[int]

    def chat(self, conversation: Conversation) -> Row:
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        whole = self._render(messages, conversation).rstrip()
        self._check_said(whole, messages, conversation)
        tokens = self._tokenize(whole)
        labels = np.full(len(tokens) + 1, IGNORED, dtype=np.int32)
        for turn, message in enumerate(conversation.messages):
            if not message.learned:
                continue
            before = self._render(messages[:turn], conversation, prompt=True)
            after = whole if turn + 1 == len(messages) else self._render(messages[: turn + 1], conversation).rstrip()
            if not (whole.startswith(after) and after.startswith(before)):
                problem = (
                    f"writes another prompt for an answer than it begins turn {turn + 1} with"
                    if whole.startswith(after)
                    else f"rewrites what was said: turn {turn + 1} is another text once the conversation goes on"
                )
                raise DataError(
                    f"the template {problem}",
                    where=conversation.where,
                    next="use a template that only appends, such as --template solar or chatml, or split the conversation",
                )
            start, end = _common(self._tokenize(before), tokens), len(read := self._tokenize(after))
            if not np.array_equal(read, tokens[:end]):
                raise DataError(
                    f"the tokens of turn {turn + 1} run into those of the next, so its end cannot be learned",
                    where=conversation.where,
                    next="use a template that closes a turn with a token of its own, or split the conversation",
                )
            self._label(labels, tokens, start, end, conversation)
        return self._row(tokens, labels, conversation)

    def plain(self, conversation: Conversation) -> Row:
        prompt, completion = (message.content for message in conversation.messages)
        tokens = self._tokenize(prompt + completion)
        labels = np.full(len(tokens) + 1, IGNORED, dtype=np.int32)
        self._label(labels, tokens, _common(self._tokenize(prompt), tokens), len(tokens), conversation)
        return self._row(tokens, labels, conversation)

    def _label(self, labels: Tokens, tokens: Tokens, start: int, end: int, conversation: Conversation) -> None:
        """Learn the tokens from `start` to `end`, each in the place before it, and that they end."""
        first = max(start, 1)  # nothing comes before the first token, from which it could be predicted
        if first >= end:
            raise DataError("no token is learned in it", where=conversation.where, next="mend or remove the row")
        labels[first - 1 : end - 1] = tokens[first:end]
        if tokens[end - 1] not in self.ends:
            if self.tokenizer.eos_token_id is None:
                raise DataError(
                    "nothing says that an answer ends: the template writes no end-of-turn token, and the tokenizer has none",
                    where=conversation.where,
                    next="use --template chatml, or a template with such a token",
                )
            labels[end - 1] = self.tokenizer.eos_token_id

    def _row(self, tokens: Tokens, labels: Tokens, conversation: Conversation) -> Row:
        learned = np.flatnonzero(labels != IGNORED)
        length = int(learned[-1]) + 2  # with the last learned token itself, which is not read by any other
        tokens = np.append(tokens, labels[learned[-1]])[:length] if length > len(tokens) else tokens[:length]
        labels = labels[:length]
        return Row(tokens, labels, conversation.where)

    def _render(self, messages: list[dict[str, str]], conversation: Conversation, *, prompt: bool = False) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tools=list(conversation.tools) or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except TemplateSyntaxError as error:
            raise OptionError(
                f"the chat template is not valid Jinja (line {error.lineno}: {error.message})",
                where="--template",
                next="mend it, or use solar or chatml",
            ) from error
        except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            raise DataError(
                f"the chat template cannot render this conversation: {error}",
                where=conversation.where,
                next="mend the row, or use another --template",
            ) from error
        return text

    def _check_said(self, whole: str, messages: list[dict[str, str]], conversation: Conversation) -> None:
        """What a template leaves out would be missing without a word, as tools are in most."""
        for number, message in enumerate(messages, start=1):
            if not _occurs(message["content"], whole):
                raise DataError(
                    f"the template leaves out or changes what the {message['role']} says in turn {number}",
                    where=conversation.where,
                    next="use a template that has a place for it, such as --template chatml, or remove the turn",
                )
        if conversation.tools and self._render(messages, replace(conversation, tools=())).rstrip() == whole:
            raise DataError(
                "the template leaves out the tools",
                where=conversation.where,
                next="use a template that has a place for tools, such as --template chatml, or remove the column",
            )

    def _tokenize(self, text: str) -> Tokens:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        # a prompt begins as the tokenizer lets every text begin, unless the template has written that already
        if bos is not None and ids[:1] != [bos] and self.tokenizer("a", verbose=False)["input_ids"][:1] == [bos]:
            ids = [bos, *ids]
        return np.asarray(ids, dtype=np.int32)


def _occurs(content: str, text: str) -> bool:
    said = content.strip()
    return said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text


def _common(first: Tokens, second: Tokens) -> int:
    """Length of the common prefix."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
