"""A Modelfile, which tells Ollama how to run a GGUF: its chat template in Ollama's language, stop strings, context and licence.

Ollama does not run the Jinja template of a GGUF; it has templates of Go's kind. A chat template of the usual kind puts a fixed
text before and after each turn, so those texts are found by rendering, and the result is proven on other conversations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.errors import UnsupportedModelError
from deepen.export.texts import CONVERSATION

Render = Callable[[list[dict[str, str]], bool], str]
"""A conversation, and whether an answer is to follow, to the prompt."""

_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "USE_POLICY.md")
_MOST_CONTEXT = 8192


@dataclass(frozen=True)
class Turns:
    """The fixed texts of a chat template: before and after each role's text, and what asks for an answer."""

    default: str  # stands first where there is no system message
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What Ollama will make of a conversation."""
        start = "" if any(message["role"] == "system" for message in messages) else self.default
        turns = (
            f"{before}{message['content']}{after}" for message in messages for before, after in [getattr(self, message["role"])]
        )
        return start + "".join(turns) + self.answer

    def go_template(self) -> str:
        """The same in the language of Ollama's templates."""
        roles = "{{ else if eq .Role ".join(
            f'"{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
            for role, (before, after) in (("system", self.system), ("user", self.user), ("assistant", self.assistant))
        )
        default = f"{{{{ if not .System }}}}{_literal(self.default)}{{{{ end }}}}" if self.default else ""
        return f"{default}{{{{ range .Messages }}}}{{{{ if eq .Role {roles}{{{{ end }}}}{{{{ end }}}}{_literal(self.answer)}"


def modelfile(gguf: Path, folder: Path, render: Render, stops: Sequence[str], context: int, licence: str | None) -> str:
    """The Modelfile of an exported model.

    Args:
        gguf: the exported file; it is named as lying beside the Modelfile.
        folder: the checkpoint; a licence file in it is embedded.
        render: the checkpoint's chat template.
        stops: texts of the tokens that end an answer.
        context: the model's context in tokens.
        licence: the licence's name where the folder holds no text of it.

    Raises:
        UnsupportedModelError: the chat template is not of the kind that Ollama's language can say.
    """
    text = find_turns(render, folder).go_template()
    lines = [f"FROM ./{gguf.name}", f'TEMPLATE """{text}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines.append(f"PARAMETER num_ctx {min(context, _MOST_CONTEXT)}")
    files = [folder / name for name in _LICENCE_FILES if (folder / name).is_file()]
    licences = [file.read_text(encoding="utf-8", errors="replace") for file in files] or ([licence] if licence else [])
    lines += [f'LICENSE """{each.strip()}"""' for each in licences if '"""' not in each]
    return "\n".join(lines) + "\n"


def find_turns(render: Render, where: Path) -> Turns:
    """The fixed texts of a chat template, proven on conversations with and without a system message.

    Raises:
        UnsupportedModelError: there are none that explain what it renders.
    """
    system, user, answer, second = "Sysmark", "Usermark", "Answermark", "Secondmark"
    turn: dict[str, dict[str, str]] = {
        text: {"role": role, "content": text}
        for text, role in ((system, "system"), (user, "user"), (answer, "assistant"), (second, "user"))
    }
    try:
        start, after_user = _split(render([turn[user]], True), user)
        _, user_end = _split(render([turn[user]], False), user)
        _, to_answer, answer_end = _split(render([turn[user], turn[answer]], False), user, answer)
        _, between, _ = _split(render([turn[user], turn[answer], turn[second]], True), answer, second)
        before_system, after_system, _ = _split(render([turn[system], turn[user]], True), system, user)
        user_begin = between.removeprefix(answer_end)
        turns = Turns(
            default=start.removesuffix(user_begin),
            system=(before_system, after_system.removesuffix(user_begin)),
            user=(user_begin, user_end),
            assistant=(to_answer.removeprefix(user_end), answer_end),
            answer=after_user.removeprefix(user_end),
        )
        with_system: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}, *CONVERSATION]
        proven = all(turns.render(each) == render(each, True) for each in (CONVERSATION, with_system, [turn[user]]))
    except ValueError:
        proven = False
    if not proven or '"""' in turns.go_template():
        raise UnsupportedModelError(
            "the chat template is more than fixed texts around each turn, so it cannot be said in Ollama's language",
            where=where,
            next="export without --ollama, and run the GGUF with `deepen chat` or write its Modelfile by hand",
        )
    return turns


def template_renderer(tokenizer: Any, *, adds_bos: bool) -> Render:
    """The chat template of a transformers tokenizer, without the BOS token where llama.cpp adds it by itself."""
    bos = (tokenizer.bos_token or "") if adds_bos else ""

    def render(messages: list[dict[str, str]], answer: bool) -> str:
        from jinja2 import TemplateError

        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except (TemplateError, TypeError) as error:
            raise ValueError(str(error)) from error
        return text.removeprefix(bos)

    return render


def _split(text: str, *marks: str) -> list[str]:
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise ValueError(mark)
        parts.append(part)
    return [*parts, text]


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
