"""One chat as it goes on: what is entered, what the engine answers, and what is kept of both."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from deepen.chat.conversation import (
    Turn,
    Turns,
    exchanges,
    last_question,
    messages,
    read_file,
    system_text,
    to_file_text,
    whole,
    with_system,
)
from deepen.chat.display import Display
from deepen.chat.entries import COMMANDS, HELP, Entry
from deepen.chat.interrupt import Interrupt
from deepen.chat.store import Store
from deepen.energy import Meter
from deepen.engine import Chunk, Engine, Prompt
from deepen.engine.request import trim_oldest
from deepen.errors import DeepenError, MachineError, NetworkError, OptionError, StorageError, printable
from deepen.output import new_file
from deepen.units import format_energy, format_seconds

_SEEDS = 2**32 - 1
_SECONDS_TO_SAVE = 1.0  # at least this often, what came of an answer is kept
_SHOWN = 40  # characters of a kept chat's first turn in a list


@dataclass(frozen=True)
class Settings:
    """What each answer is asked with."""

    max_new_tokens: int
    temperature: float
    seed: int | None
    trim: str | None


@dataclass(frozen=True)
class Failure:
    """A turn that was answered with an error."""

    message: str
    exit_code: int


@dataclass
class Session:
    """A chat. `enter` takes one entry after the other; whatever they do is kept at once.

    Attributes:
        model: the model's name, as the user gave it.
        open: loads the model, and loads it again when its engine died.
        settings: what each answer is asked with.
        store: where conversations are kept.
        display: where answers appear.
        notices: where everything else appears.
        meter: of energy, if it can be measured at all.
        turns: the conversation.
        id: of the conversation in the store, once it has a turn of the user's.
        revise: lets the user change a text; None where there is nobody at a keyboard.
        failures: turns that were answered with an error.
    """

    model: str
    open: Callable[[], Engine]
    settings: Settings
    store: Store
    display: Display
    notices: TextIO
    meter: Meter | None
    turns: Turns = ()
    id: int | None = None
    revise: Callable[[str], str] | None = None
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = self.open()
        self._kept = len(self.turns)  # so many stand on disk as they are here
        self._answers = 0
        self._restarted = False  # since the last answer
        self._over = False  # there is no engine any more
        self._first_seconds: float | None = None
        self._prompt_tokens: int | None = None
        self._drafted, self._accepted = 0, 0
        self._written: set[Path] = set()

    def close(self) -> None:
        """Give back the engine's memory."""
        self.engine.close()

    def enter(self, entry: Entry) -> bool:
        """Do what an entry says; False if it says to leave.

        Raises:
            KeyboardInterrupt: Ctrl-C stopped an answer; what came of it is kept.
            DeepenError: the engine died again right after it was started again, or could not be started.
        """
        if entry.command == "/quit":
            return False
        try:
            if entry.command is None:
                self._say(entry.text)
            else:
                self._do(entry.command, entry.text)
        except DeepenError as error:
            if self._over:
                raise
            self._fail(error)
        return True

    def _say(self, text: str) -> None:
        self._keep((*self.turns, Turn("user", whole(text))), len(self.turns))
        self._answer(len(self.turns))

    def _keep(self, turns: Turns, start: int = 0) -> None:
        """Make these the conversation, here and on disk; the turns before `start` are as they were."""
        self.turns = turns
        if self.id is None:
            if last_question(turns) is None:
                return  # a system message alone is no conversation
            self.id, self._kept = self.store.new(self.model), 0
        self._kept = min(self._kept, start)  # fewer than there were where the disk was full
        self.store.save(self.id, turns, self._kept)
        self._kept = len(turns)

    def _answer(self, place: int) -> None:
        """Answer the turns before `place`. What stands there is replaced as soon as there is something in its place."""
        pieces: list[str] = []
        joules = self._joules()
        start = saved = time.monotonic()
        first: float | None = None
        last = Chunk("")
        problem: DeepenError | None = None

        def turn(*, stopped: bool, tokens: int | None = None) -> Turn:
            spent = self._joules()
            energy = None if spent is None or joules is None else spent - joules
            return Turn("assistant", whole("".join(pieces)), stopped, tokens, time.monotonic() - start, energy)

        with Interrupt() as interrupt:
            try:
                asked = self._fitting(messages(self.turns[:place]))
                self.display.begin()
                chunks = self.engine.stream(
                    asked,
                    max_new_tokens=self.settings.max_new_tokens,
                    temperature=self.settings.temperature,
                    seed=None if self.settings.seed is None else (self.settings.seed + self._answers) % _SEEDS,
                    stop=(),
                )
                with closing(chunks):
                    for last in interrupt.until(chunks):
                        if last.text:
                            first = time.monotonic() - start if first is None else first
                            pieces.append(last.text)
                            self.display.add(last.text)
                        if pieces and time.monotonic() - saved >= _SECONDS_TO_SAVE:
                            saved = time.monotonic()
                            self._keep((*self.turns[:place], turn(stopped=True)), place)
            except DeepenError as error:
                problem = error
            except BaseException:  # SIGTERM, or a closed pipe
                if pieces:
                    self._keep((*self.turns[:place], turn(stopped=True)), place)
                raise
            self.display.end()
            self._answers += 1
            finished = last.finish_reason is not None
            if pieces:
                tokens = last.completion_tokens if finished else None
                self._keep((*self.turns[:place], turn(stopped=not finished, tokens=tokens)), place)
            if finished:
                self._restarted, self._first_seconds, self._prompt_tokens = False, first, last.prompt_tokens
                self._drafted += last.draft_tokens or 0
                self._accepted += last.draft_accepted or 0
            if problem is not None:
                self._recover(problem)
            elif not finished:
                self.tell("(stopped)")
            elif last.finish_reason == "length":
                self.tell("(cut: the answer reached --max-new-tokens or the end of the context)")
            elif not pieces:
                self.tell("(the model gave no text; /regen asks it again)")
            if interrupt.asked:
                raise KeyboardInterrupt

    def _fitting(self, asked: Prompt) -> Prompt:
        """What fits the context, if that is asked for; what is left out is said."""
        if not self.settings.trim:
            return asked
        fitted = trim_oldest(self.engine, asked, self.settings.max_new_tokens)
        if str(fitted):
            self.tell(str(fitted))
        return fitted.prompt

    def _recover(self, problem: DeepenError) -> None:
        """Show what went wrong with an answer; an engine that died is started again, once."""
        died = isinstance(problem, MachineError) and not isinstance(problem, NetworkError | StorageError)
        self._over = died and self._restarted
        if self._over:
            raise problem
        self._fail(problem)
        if died:
            self.tell("The engine is started again; /regen asks for the answer again.")
            self._restarted = self._over = True
            self.engine.close()
            self.engine = self.open()
            self._over = False

    def _fail(self, error: DeepenError) -> None:
        self.failures.append(Failure(str(error), error.exit_code))
        self.tell(f"error: {error}")

    def _joules(self) -> float | None:
        return None if self.meter is None else self.meter.joules()

    def tell(self, text: str) -> None:
        """Say something that is no answer."""
        if self.notices.isatty():
            from rich.console import Console
            from rich.text import Text

            shown = Text(printable(text), style="" if "\n" in text else "dim")
            if text.startswith("error: "):
                shown = Text.assemble(("error: ", "bold red"), printable(text.removeprefix("error: ")))
            Console(file=self.notices).print(shown, soft_wrap="\n" not in text)  # a path stays whole
        else:
            print(printable(text), file=self.notices, flush=True)

    def _do(self, command: str, text: str) -> None:
        doing: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/regen": self._regenerate,
            "/undo": self._undo,
            "/edit": self._edit,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
            "/chats": self._list,
            "/show": self._show,
            "/stats": self._statistics,
            "/clear": self._clear,
        }
        if command not in doing:
            raise OptionError(
                f"{command} is no command", next="see /help; a space before the slash sends it to the model as a message"
            )
        if text and command not in {"/edit", "/system", "/save", "/load"}:
            raise OptionError(f"{command} takes nothing after it", next=f"enter {command} alone")
        doing[command](text)

    def _help(self, _: str) -> None:
        width = max(map(len, COMMANDS))
        self.tell("\n".join([f"{name.ljust(width)}  {what}" for name, what in COMMANDS.items()] + [HELP]))

    def _question(self) -> int:
        place = last_question(self.turns)
        if place is None:
            raise OptionError("there is no message yet", next="enter one")
        return place

    def _regenerate(self, _: str) -> None:
        self._answer(self._question() + 1)

    def _undo(self, _: str) -> None:
        place = self._question()
        said = self.turns[place].content
        self._keep(self.turns[:place], place)
        self.tell(f"Taken back: {_short(said)}")

    def _edit(self, text: str) -> None:
        place = self._question()
        if not text and self.revise is not None:
            text = self.revise(self.turns[place].content)
        if not text.strip():
            raise OptionError("/edit needs the new text", next="enter /edit TEXT")
        self._keep((*self.turns[:place], Turn("user", whole(text))), place)
        self._answer(place + 1)

    def set_system(self, text: str | None) -> None:
        """Put the conversation under a system message, or under none."""
        self._keep(with_system(self.turns, None if text is None else whole(text)))

    def _system(self, text: str) -> None:
        if text:
            self.set_system(None if text == "-" else text)
        said = system_text(self.turns)
        self.tell("There is no system message." if said is None else f"System message: {said}")

    def _save(self, text: str) -> None:
        if not exchanges(self.turns):
            raise OptionError("there is nothing to save yet", next="enter a message")
        name = text.removesuffix("--overwrite").strip()
        path = Path(name or f"chat-{self.id}.md").expanduser().absolute()
        content = to_file_text(self.turns, path)
        with new_file(path, overwrite=text.endswith("--overwrite") or path in self._written) as partial:
            partial.write_text(content, encoding="utf-8", newline="")
        self._written.add(path)
        self.tell(f"Saved as {path}")

    def _load(self, text: str) -> None:
        if text.isdecimal():
            turns, note = self.store.load(int(text)), ""
            if not turns:
                raise OptionError(f"there is no chat {text}", next="see /chats")
            self.turns, self.id, self._kept = turns, int(text), len(turns)
        elif text:
            turns, note = read_file(Path(text).expanduser())
            self.id = None
            self._keep(turns)
        else:
            raise OptionError("/load needs a file or the number of a chat", next="enter /load FILE, or see /chats")
        self.tell(f"Loaded {counted(len(turns), 'turn')}" + (f", {note}" if note else ""))

    def _list(self, _: str) -> None:
        rows = [
            f"{each.id:>5}  {each.changed[:16].replace('T', ' ')}  {counted(each.turns, 'turn'):>9}  {_short(each.begins)}"
            for each in self.store.kept()
        ]
        self.tell("\n".join([*rows, "/load NUMBER goes on with one."]) if rows else "No chat is kept yet.")

    def show(self, turns: Turns) -> None:
        """Print turns, answers as they were shown when they came."""
        for turn in turns:
            if turn.role != "assistant":
                self.tell(f">>> {turn.content}" if turn.role == "user" else f"System message: {turn.content}")
            else:
                self.display.begin()
                self.display.add(turn.content)
                self.display.end()
                if turn.stopped:
                    self.tell("(stopped)")

    def _show(self, _: str) -> None:
        if not self.turns:
            self.tell("There is no message yet.")
        self.show(self.turns)

    def _statistics(self, _: str) -> None:
        answers = [turn for turn in self.turns if turn.role == "assistant"]
        ended = [turn for turn in answers if turn.completion_tokens is not None]
        tokens, seconds = sum(turn.completion_tokens or 0 for turn in ended), sum(turn.seconds for turn in ended)
        rows = [
            ("model", f"{self.model}, engine {self.engine.name}"),
            ("chat", f"{self.id or 'none yet'}, {counted(len(self.turns), 'turn')}, in {self.store.file}"),
            ("generated", f"{tokens} tokens" + (f", {tokens / seconds:.1f} tokens/s" if seconds else "")),
        ]
        if len(ended) < len(answers):
            rows.append(("", f"without {counted(len(answers) - len(ended), 'answer')} that did not end by itself"))
        if self._prompt_tokens is not None:
            of = "" if self.engine.context is None else f" of {self.engine.context}"
            rows.append(("last prompt", f"{self._prompt_tokens}{of} tokens"))
        if self._first_seconds is not None:
            rows.append(("first text", f"after {format_seconds(self._first_seconds)}"))
        if self._drafted:
            rows.append(("draft", f"{self._accepted} of {self._drafted} guessed tokens accepted"))
        rows.append(("energy", self._energy(answers)))
        self.tell("\n".join(f"{name.ljust(11)}  {value}" for name, value in rows))

    def _energy(self, answers: list[Turn]) -> str:
        measured = [turn.energy_joules for turn in answers if turn.energy_joules is not None]
        if not measured:
            return "not measured: the engine is elsewhere" if self.meter is None else self.meter.method
        without = f", without {counted(len(answers) - len(measured), 'answer')}" if len(measured) < len(answers) else ""
        return format_energy(sum(measured)) + (f", {self.meter.method}" if self.meter else "") + without

    def _clear(self, _: str) -> None:
        system = system_text(self.turns)
        self.turns, self.id = with_system((), system), None
        self.tell("A new chat." + (" The system message stays." if system is not None else ""))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def counted(number: int, noun: str) -> str:
    """A number of things: `1 turn`, `2 turns`."""
    return f"{number} {noun}{'s' * (number != 1)}"
