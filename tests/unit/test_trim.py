"""What is left out of a prompt that does not fit its context: whole turns, the oldest first, and never in silence."""

from contextlib import closing

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from deepen.cli import run_program
from deepen.engine.llamacpp import LlamacppEngine
from deepen.engine.request import check_request, trim_oldest
from deepen.errors import DataError, OptionError
from deepen.generate import generate
from tinygguf import TEMPLATE, write_tiny_gguf

CONTEXT = 256


class Bytes:
    """An engine of bytes as tokens; it renders as the tiny model does, and generates nothing."""

    name = "bytes"
    has_template = True

    def __init__(self, context):
        self.context = context

    def tokenize(self, text):
        return list(text.encode())

    def render(self, messages):
        return "".join(f"{each['role']}: {each['content']}\n" for each in messages) + "assistant:"

    def stream(self, prompt, **options):
        raise NotImplementedError

    def close(self):
        """Nothing to give back."""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", context=CONTEXT)


def conversation(texts, system=None):
    """Turns of user and assistant, one for each text."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


@settings(max_examples=300)
@given(
    texts=some.lists(some.text(max_size=30), min_size=1, max_size=12),
    system=some.none() | some.text(max_size=20),
    context=some.integers(40, 400),
    room=some.integers(1, 500),
)
def test_of_a_conversation_whole_turns_go_oldest_first_and_no_more_than_must(texts, system, context, room):
    assume(len(texts) % 2 == 1)  # the user has the last word
    engine, messages = Bytes(context), conversation(texts, system)
    fitted = trim_oldest(engine, messages, room)

    def size(each):
        return len(engine.tokenize(engine.render(each))) + 1

    limit = context - min(room, context // 2)
    turns = messages[len(messages) - len(texts) :]
    head = messages[: len(messages) - len(texts)]
    # the reference: drop a pair at a time until it fits, or until only the last question is left
    kept = turns
    while size(head + kept) > limit and len(kept) > 1:
        kept = kept[2:]
    assert fitted.prompt == head + kept
    assert fitted.dropped_turns == len(turns) - len(kept)
    assert fitted.dropped_tokens == size(messages) - size(fitted.prompt)
    assert bool(str(fitted)) == (fitted.dropped_turns > 0)


@settings(max_examples=300)
@given(text=some.text(min_size=1, max_size=300), context=some.integers(8, 200), room=some.integers(1, 300))
def test_of_a_plain_prompt_the_beginning_goes_at_a_character(text, context, room):
    fitted = trim_oldest(Bytes(context), text, room)
    limit = context - min(room, context // 2)
    assert text.endswith(fitted.prompt)
    assert len(fitted.prompt.encode()) + 1 <= limit
    if fitted.prompt != text:
        longer = text[len(text) - len(fitted.prompt) - 1 :]
        assert len(longer.encode()) + 1 > limit
        assert f"({len(text.encode()) - len(fitted.prompt.encode())} tokens)" in str(fitted)


def test_no_limit_and_no_user_leave_everything():
    assert trim_oldest(Bytes(None), "x" * 9999, 10).prompt == "x" * 9999
    alone = [{"role": "assistant", "content": "x" * 999}]
    assert trim_oldest(Bytes(50), alone, 10).prompt == alone


def test_the_stand_in_renders_as_the_model_does(gguf):
    assert "{{ m.role }}: {{ m.content }}" in TEMPLATE
    messages = conversation(["one", "two", "three"], "Be short")
    with closing(LlamacppEngine(gguf)) as engine:
        assert engine.render(messages) == Bytes(CONTEXT).render(messages)


def test_generate_cuts_only_when_asked_and_says_so(gguf, capsys):
    options = {"raw": True, "greedy": True, "max_new_tokens": 40}
    long = "".join(chr(97 + place % 26) for place in range(1000))
    with pytest.raises(DataError, match=r"1000 tokens.*256"):
        generate(gguf, long, **options)
    capsys.readouterr()
    cut = generate(gguf, long, trim="oldest", **options)
    said = capsys.readouterr().err
    assert (cut.prompt_tokens, cut.completion_tokens) == (CONTEXT - 40 - 1, 40)
    assert f"({1000 - cut.prompt_tokens} tokens)" in said
    assert cut.text == generate(gguf, long[-cut.prompt_tokens :], **options).text
    assert generate(gguf, "short", trim="oldest", **options).text == generate(gguf, "short", **options).text


def test_a_message_is_never_cut(gguf, capsys):
    assert run_program(["generate", str(gguf), "x" * 1000, "--trim", "oldest"]) == 2
    said = capsys.readouterr().err
    assert "1017 tokens" in said
    assert "256" in said


@pytest.mark.parametrize(
    ("options", "message"), [({"trim": "newest"}, "newest"), ({"trim": "oldest", "engine": "http://x"}, "does not tell")]
)
def test_other_ways_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        check_request(**({"max_new_tokens": 1, "temperature": 0, "seed": None, "engine": "auto"} | options))
