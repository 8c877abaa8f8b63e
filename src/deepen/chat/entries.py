"""What a user enters: messages and commands, read from a keyboard or from a pipe."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from deepen.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import AnyFormattedText
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

COMMANDS = {
    "/help": "this list",
    "/regen": "answer the last message again",
    "/undo": "take the last message and its answer back",
    "/edit": "[TEXT] change the last message and answer it",
    "/system": "[TEXT] show or set the system message; - takes it away",
    "/save": "[FILE] write the chat to a .md or .jsonl; --overwrite replaces one",
    "/load": "FILE|ID go on with a chat from a file, or with a kept one",
    "/chats": "list the kept chats",
    "/show": "print the whole chat",
    "/stats": "tokens, speed, energy, and where the chat is kept",
    "/clear": "begin a new chat; this one is kept",
    "/quit": "leave; so do Ctrl-D and Ctrl-C twice",
}
ALIASES = {"/?": "/help", "/exit": "/quit", "/bye": "/quit", "/new": "/clear", "/retry": "/regen"}
HELP = (
    "Enter sends. Alt-Enter, or \\ before Enter, begins a new line;\n"
    'so does Enter between """ and """. Ctrl-C stops an answer.\n'
    "Up and Ctrl-R find earlier entries, Tab completes, Ctrl-X Ctrl-E opens $EDITOR."
)
_BLOCK = '"""'
_COMMAND = re.compile(r"(/[a-z?]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A message to the model, or a command and the text after it."""

    text: str
    command: str | None = None


def parse_entry(text: str) -> Entry | None:
    '''A message or a command; None if there is nothing in it.

    A command is a word of small letters after a slash. A space before it, or `"""` around it, make it a message.
    '''
    text = text.rstrip()
    if (block := text.lstrip()).startswith(_BLOCK):
        message = block[len(_BLOCK) :]
        message = message.removesuffix(_BLOCK).strip("\n")
        return Entry(message) if message.strip() else None
    if match := _COMMAND.fullmatch(text):
        return Entry((match[2] or "").strip(), ALIASES.get(match[1], match[1]))
    return Entry(text.strip()) if text.strip() else None


def is_open(text: str) -> bool:
    '''Whether a text begins with `"""` that has no end yet.'''
    text = text.strip()
    return text.startswith(_BLOCK) and not (len(text) >= 2 * len(_BLOCK) and text.endswith(_BLOCK))


def read_entries(stream: TextIO) -> Iterator[Entry]:
    '''Entries of a pipe: a line is one, and so is a block of lines that begins and ends with `"""`.

    Raises:
        DataError: it is no text in UTF-8.
    '''
    held = ""
    try:
        for line in stream:
            line.encode()  # in some locales, bytes that are no UTF-8 come as halves of characters
            held += line
            if not is_open(held):
                if entry := parse_entry(held):
                    yield entry
                held = ""
    except UnicodeError as error:
        raise DataError("not a text in UTF-8", where="stdin", next="convert it to UTF-8") from error
    if entry := parse_entry(held):
        yield entry


def complete(text: str) -> Iterator[tuple[str, int]]:
    """Ways to go on with an entry: each a text, and how many characters before the end it replaces."""
    word, space, path = text.partition(" ")
    if not word.startswith("/"):
        return
    if not space:
        yield from ((name, len(word)) for name in COMMANDS if name.startswith(word))
    elif word in {"/save", "/load"}:
        typed = path.lstrip()
        folder, _, start = typed.rpartition("/")
        place = Path(f"{folder}/" if "/" in typed else ".").expanduser()
        try:
            names = sorted(each.name + "/" * each.is_dir() for each in place.iterdir())
        except OSError:
            return
        hidden = start.startswith(".")
        yield from ((name, len(start)) for name in names if name.startswith(start) and (hidden or not name.startswith(".")))


class Keyboard:
    """Entries from a terminal, edited and completed as they are typed, with those of earlier chats at hand.

    Args:
        keyboard: the terminal that keys come from.
        screen: the terminal that shows them.
        history: the file that keeps what was entered.

    Raises:
        MissingDependencyError: prompt_toolkit is not installed.
    """

    def __init__(self, keyboard: TextIO, screen: TextIO, history: Path) -> None:
        try:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.history import FileHistory
            from prompt_toolkit.input import create_input
            from prompt_toolkit.output.vt100 import Vt100_Output
            from prompt_toolkit.shortcuts import CompleteStyle
        except ImportError as error:
            raise MissingDependencyError(
                "a chat on a terminal needs the package prompt_toolkit", next="pip install 'deepen[run]'"
            ) from error
        output = Vt100_Output.from_pty(screen, term=os.environ.get("TERM"))
        output.enable_cpr = False  # not every terminal tells where its cursor is, and nothing here needs to know
        self._session: PromptSession[str] = PromptSession(
            input=create_input(keyboard), output=output, history=FileHistory(history), multiline=True,
            key_bindings=_keys(), completer=_completer(), complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE, reserve_space_for_menu=0, enable_open_in_editor=True,
            enable_suspend=True, prompt_continuation="... ",
        )  # fmt: skip

    def ask(self, *, hint: str) -> str:
        """What the user enters.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            EOFError: Ctrl-D.
        """
        from prompt_toolkit.application import get_app

        def placeholder() -> AnyFormattedText:
            return "" if get_app().is_done else [("fg:ansibrightblack", hint)]

        return self._session.prompt(">>> ", placeholder=placeholder)

    def revise(self, text: str) -> str:
        """What the user makes of a text; empty if the user thinks better of it."""
        try:
            return self._session.prompt("edit> ", default=text, placeholder=None)
        except (KeyboardInterrupt, EOFError):
            return ""


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        before = buffer.document.text_before_cursor
        if before.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    at_prompt: Any = has_focus(DEFAULT_BUFFER)
    add: Callable[..., Callable[[Callable[[KeyPressEvent], None]], object]] = keys.add
    for key in ("enter", "c-j"):
        add(key, filter=at_prompt)(enter)
        add("escape", key, filter=at_prompt)(new_line)
    return keys


def _completer() -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Words(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Iterable[Completion]:  # noqa: ARG002
            for text, length in complete(document.text_before_cursor):
                yield Completion(text, start_position=-length)

    return Words()
