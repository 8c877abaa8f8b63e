"""Chat with a model: in a terminal, or through a pipe."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from deepen.chat.conversation import Turns, last_question, to_rows
from deepen.chat.display import hushed, make_display
from deepen.chat.entries import Keyboard, parse_entry, read_entries
from deepen.chat.session import Failure, Session, Settings, counted
from deepen.chat.store import Store
from deepen.energy import open_meter
from deepen.engine import Engine
from deepen.engine.draft import AUTO, keep_faster
from deepen.engine.request import check_request
from deepen.errors import OptionError, UnsupportedModelError
from deepen.output import data_folder
from deepen.prepare import given, open_engine

__all__ = ["Chat", "chat"]

_HINT = "a message, or /help"
_LEAVE = "Ctrl-C again leaves, and so does Ctrl-D; the chat is kept."


@dataclass(frozen=True)
class Chat:
    """A chat that has ended."""

    conversation: int | None
    """Its number among the kept ones; None if nothing was said."""
    model: str
    engine: str
    messages: list[dict[str, Any]]
    """`role` and `content`, and `stopped` where an answer was stopped or broke off."""
    completion_tokens: int
    """Of all answers that ended by themselves."""
    seconds: float
    """In which all answers came."""
    energy_joules: float | None
    """Of all answers; None where it is not measured."""
    failures: tuple[Failure, ...]
    """Turns that were answered with an error, and the exit code that each stands for."""


def chat(
    model: str | Path,
    *,
    resume: bool = False,
    conversation: int | None = None,
    engine: str = "auto",
    system: str | None = None,
    max_new_tokens: int = 1024,
    temperature: float = 0.7,
    seed: int | None = None,
    greedy: bool = False,
    trim: str | None = None,
    context: int | None = None,
    quantize: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    draft: str | Path | None = None,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | None = None,
    identity_init: bool = False,
    answers: TextIO | None = None,
) -> Chat:
    """Chat with a model until the user leaves: Ctrl-D, Ctrl-C twice, `/quit`, or the end of stdin.

    On a terminal, entries are edited with history and completion, and answers are rendered Markdown. Where stdin is no terminal
    each line is an entry, and so is a block of lines that begins and ends with three double quotes. Where answers go to no
    terminal they are plain text, and everything else goes to stderr. Every turn is kept in `chats.sqlite` in `$DEEPEN_DATA`
    (or `deepen` in `$XDG_DATA_HOME`, or `~/.local/share/deepen`) as soon as it exists.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file, with a chat template.
        resume: go on with a kept conversation: the latest, unless `conversation` names one.
        conversation: the number of a kept conversation.
        engine: `llamacpp`, `transformers`, the URL of a server of OpenAI's protocol, or `auto` to choose.
        system: a system message before everything else.
        max_new_tokens: an answer's most tokens, and never past the model's context.
        temperature: 0 takes the likeliest token each time; higher is more varied.
        seed: makes sampling repeatable; each answer after the first has the next one.
        greedy: the same as temperature 0.
        trim: `oldest` leaves the oldest turns out of what the model sees where all of them do not fit its context, and says so.
        context: hold at most so many tokens of it and its answer (engine llamacpp; what fits, at most 8192, unless given).
        quantize: the format in which the engine llamacpp runs a checkpoint, such as `Q4_K_M`.
        device: where the engine transformers puts the model, such as `cpu` or `cuda:0`.
        dtype: the dtype that the engine transformers computes in, such as `float32`.
        draft: guesses the next tokens, which the model checks at once: a smaller model of the same vocabulary, `ngram` for the
            text so far, or `auto` for the model's base or else `ngram`, if it is faster on a first answer that is not shown.
        drop: layer plan, as in `scale`: the deepened model runs without being written (llamacpp: once, into the cache). So do
            the next five.
        layers: slices of layers.
        repeat: a range of layers to run again.
        expand: a number of new blocks.
        plan: a plan file.
        identity_init: repeated layers start as the identity.
        answers: where answers go; stdout unless given.

    Raises:
        OptionError: an option is out of range, or there is no such conversation.
        UnsupportedModelError: the model has no chat template.
        OutputError, StorageError: the conversation cannot be kept.
        MachineError: the engine died twice.
        KeyboardInterrupt: Ctrl-C while stdin is no terminal; what came of the answer is kept.
    """
    check_request(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, trim=trim, engine=engine)
    options = given(drop=drop, layers=layers, repeat=repeat, expand=expand, plan=plan, identity_init=identity_init)
    if sys.stdin is None:
        raise OptionError("there is nothing to read messages from", where="stdin", next="run it in a terminal or a pipe")
    answers = answers or sys.stdout
    screen = next((stream for stream in (answers, sys.stderr) if stream.isatty()), None)
    notices = screen or sys.stderr
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store(data_folder())))
        number, turns = _resumed(store, conversation) if resume or conversation is not None else (None, ())
        keyboard = None
        if sys.stdin.isatty() and screen is not None:
            history = store.file.with_name("chat-input.txt")
            history.touch(mode=0o600)
            keyboard = Keyboard(sys.stdin, screen, history)
            stack.enter_context(hushed(sys.stdin, screen))
        meter = None if "://" in engine else stack.enter_context(open_meter())
        session = Session(
            model=str(model),
            open=partial(
                _open, model, draft, engine=engine, plan=options, device=device, dtype=dtype, context=context, quantize=quantize
            ),
            settings=Settings(max_new_tokens, 0.0 if greedy else temperature, seed, trim),
            store=store,
            display=make_display(answers),
            notices=notices,
            meter=meter,
            turns=turns,
            id=number,
        )
        stack.enter_context(closing(session))
        if number is not None:
            session.tell(f"Chat {number} goes on after {counted(len(turns), 'turn')}.")
        if system is not None:
            session.set_system(system)
        if keyboard is None:
            for entry in read_entries(sys.stdin):
                if not session.enter(entry):
                    break
        else:
            session.revise = keyboard.revise
            session.show(turns[last_question(turns) or 0 :])
            _converse(session, keyboard)
        return _summary(session)


def _open(model: str | Path, draft: str | Path | None, **options: Any) -> Engine:
    opened = open_engine(model, draft=draft, **options)
    if not opened.has_template:
        opened.close()
        raise UnsupportedModelError(
            "the model has no chat template, so it cannot chat",
            where=str(model),
            next="use one that is made for chat, or let `deepen generate` continue a text",
        )
    return keep_faster(opened) if draft == AUTO else opened


def _resumed(store: Store, conversation: int | None) -> tuple[int, Turns]:
    kept = store.kept()
    if conversation is None and not kept:
        raise OptionError(f"no chat is kept in {store.file}", where="--resume", next="begin one without --resume")
    number = kept[0].id if conversation is None else conversation
    turns = store.load(number)
    if not turns:
        known = ", ".join(str(each.id) for each in kept) or "none"
        raise OptionError(f"there is no chat {number}", where="--resume", next=f"name a kept one; the latest are {known}")
    return number, turns


def _converse(session: Session, keyboard: Keyboard) -> None:
    """Entries from the keyboard, until the user leaves."""
    leaving = False
    while True:
        try:
            entry = parse_entry(keyboard.ask(hint=_HINT))
        except EOFError:
            return
        except KeyboardInterrupt:
            if leaving:
                return
            leaving = True
            session.tell(_LEAVE)
            continue
        leaving = False
        with suppress(KeyboardInterrupt):  # it stopped an answer
            if entry and not session.enter(entry):
                return


def _summary(session: Session) -> Chat:
    answers = [turn for turn in session.turns if turn.role == "assistant"]
    joules = [turn.energy_joules for turn in answers if turn.energy_joules is not None]
    return Chat(
        conversation=session.id,
        model=session.model,
        engine=session.engine.name,
        messages=to_rows(session.turns),
        completion_tokens=sum(turn.completion_tokens or 0 for turn in answers),
        seconds=sum(turn.seconds for turn in answers),
        energy_joules=sum(joules) if len(joules) == len(answers) and joules else None,
        failures=tuple(session.failures),
    )
