"""Conversations: every layout read, malformed rows refused by name, and what is learned of them, token by token."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from deepen.data.chat import Conversation, read_conversations
from deepen.data.template import CHATML, SOLAR, Row, encode_conversations, find_template, limit_rows
from deepen.data.text import IGNORED
from deepen.errors import DataError, MissingDependencyError, OptionError
from trainable import write_checkpoint

END = 0  # the byte tokenizer's end of text; byte b is token b + 1
START, OPEN, CLOSE = 257, 258, 259  # what the fixture `chatml` adds
ANSWER = {"role": "assistant", "content": "Hi"}
ASK = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The byte tokenizer with ChatML's marks, and a start of text that it puts before every text."""
    from tokenizers import processors

    tokenizer = AutoTokenizer.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("chatml")))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": "<start>"})
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", tokenizer.bos_token_id)]
    )
    return tokenizer


def write(folder: Path, rows: Any, name: str = "data.json") -> Path:
    file = folder / name
    lines = "\n".join(json.dumps(row) for row in rows) + "\n" if name.endswith("jsonl") else json.dumps(rows)
    file.write_text(lines)
    return file


def read(folder: Path, *rows: Any) -> list[Conversation]:
    return read_conversations(write(folder, list(rows)))


def turns(conversation: Conversation) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.learned) for message in conversation.messages]


def encode(tokenizer: Any, template: str, *conversations: Conversation, ends: tuple[int, ...] = ()) -> list[Row]:
    return encode_conversations(conversations, tokenizer, template, ends=ends)


def learned(row: Row, tokenizer: Any) -> str:
    """What is learned as text, with a dot for each place where nothing is."""
    return "".join("." if label == IGNORED else tokenizer.decode([label]) for label in row.labels)


# Layouts --------------------------------------------------------------------------------------------------------------------


PLAIN_CHAT = [("user", "Hello", False), ("assistant", "Hi", True)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Hello", "input": "", "output": "Hi"}, PLAIN_CHAT),
        ({"instruction": "Hello", "output": "Hi"}, PLAIN_CHAT),
        ({"instruction": "Hello", "input": None, "response": "Hi"}, PLAIN_CHAT),
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, [("user", "Add.\n1, 2", False), ("assistant", "3", True)]),
        (
            {"instruction": "Hello", "output": "Hi", "system": "Be kind.", "chosen": "a", "rejected": "b"},
            [("system", "Be kind.", False), *PLAIN_CHAT],
        ),
        ({"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}, PLAIN_CHAT),
        (
            {
                "system": "Be kind.",
                "conversations": [
                    {"from": "human", "value": "Weather?"},
                    {"from": "function_call", "value": '{"name": "weather"}'},
                    {"from": "observation", "value": "rain"},
                    {"from": "gpt", "value": "Rain."},
                    {"from": "human", "value": "Thanks"},
                ],
            },
            [
                ("system", "Be kind.", False),
                ("user", "Weather?", False),
                ("assistant", '{"name": "weather"}', True),
                ("tool", "rain", False),
                ("assistant", "Rain.", True),
            ],
        ),
        ({"messages": [SYSTEM, ASK, ANSWER]}, [("system", "Be kind.", False), *PLAIN_CHAT]),
        ({"messages": [{"role": "system", "content": ""}, ASK, ANSWER]}, PLAIN_CHAT),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "value": "Hel"}, {"type": "text", "text": "lo"}]},
                    {"role": "assistant", "content": "Hm", "loss_weight": 0.0},
                    {**ASK, "loss_weight": 0.0},
                    {**ANSWER, "loss_weight": 1.0},
                ]
            },
            [("user", "Hello", False), ("assistant", "Hm", False), *PLAIN_CHAT],
        ),
        ({"prompt": "Hello", "completion": "Hi"}, PLAIN_CHAT),
        (
            {"prompt": [ASK, {"role": "assistant", "content": "Hm"}, ASK], "completion": [ANSWER]},
            [("user", "Hello", False), ("assistant", "Hm", False), *PLAIN_CHAT],
        ),
    ],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_every_layout_becomes_the_same_messages(tmp_path: Path, row: Any, expected: Any, name: str) -> None:
    first, second = read_conversations(write(tmp_path, [row, row], name))
    assert turns(first) == turns(second) == expected
    assert first.plain == isinstance(row.get("prompt"), str)
    assert second.where.endswith(f"{name}, row 2")


def test_parquet_is_read_or_its_package_named(tmp_path: Path) -> None:
    file = tmp_path / "data.parquet"
    rows = [{"messages": [ASK, ANSWER], "tools": None}, {"messages": [SYSTEM, ASK, ANSWER], "tools": None}]
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        file.write_bytes(b"PAR1")
        with pytest.raises(MissingDependencyError, match=r"data\.parquet: .* needs pyarrow\n.*pip install pyarrow"):
            read_conversations(file)
        return
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert [turns(each) for each in read_conversations(file)] == [PLAIN_CHAT, [("system", "Be kind.", False), *PLAIN_CHAT]]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"data\.parquet: not a Parquet file"):
        read_conversations(file)


def test_what_a_file_was_read_as_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": "a", "output": "b", "chosen": "c"}] * 3
    read_conversations(write(tmp_path, rows), cap=[f"{tmp_path / 'data.json'}=2"])
    assert "Alpaca (instruction, output), without chosen; 3 rows, 2 of them taken" in capsys.readouterr().err


def test_a_cap_draws_rows_by_the_seed_and_keeps_their_order(tmp_path: Path) -> None:
    one = write(tmp_path, [{"prompt": f"p{number}", "completion": "c"} for number in range(50)], "one.json")
    two = write(tmp_path, [{"prompt": f"q{number}", "completion": "c"} for number in range(3)], "two.json")

    def drawn(seed: int) -> list[str]:
        return [each.messages[0].content for each in read_conversations([one, two], cap=[f"{one}=10", f"{two}=9"], seed=seed)]

    first = drawn(0)
    numbers = [int(text[1:]) for text in first[:10]]
    assert numbers == sorted(set(numbers))
    assert first[10:] == ["q0", "q1", "q2"]
    assert first == drawn(0) != drawn(1)
    for cap, message in (("other.json=3", "caps none of the data files"), (f"{one}=x", "not a count"), (f"{one}=0", "no row")):
        with pytest.raises(OptionError, match=message):
            read_conversations([one], cap=[cap])


GOOD = {"messages": [ASK, ANSWER]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"data\.json: there are no rows"),
        ({"data": [GOOD]}, r"data\.json: not a list of rows"),
        (["text"], "row 1: not an object"),
        ([{"question": "a", "answer": "b"}], "row 1: the columns question, answer are those of no known layout"),
        ([GOOD, {"instruction": "a", "output": "b"}], "row 2: no messages"),
        ([GOOD, GOOD, {"messages": None}], "row 3: no messages"),
        ([{"messages": []}], "row 1: the conversation is not a list with at least one turn"),
        ([{"messages": "Hello"}], "row 1: the conversation is not a list"),
        ([{"messages": ["Hello"]}], "row 1, turn 1: not an object"),
        ([{"messages": [{"role": "human", "content": "a"}]}], "row 1, turn 1: the role 'human' is none of system, user"),
        ([{"messages": [{"role": ["user"], "content": "a"}]}], "turn 1: the role"),
        ([{"messages": [ASK, {"role": "assistant", "content": " \n"}]}], "row 1, turn 2: empty"),
        ([{"messages": [ASK, {"role": "assistant", "content": None}]}], "row 1, turn 2: NoneType instead of text"),
        ([{"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{}]}]}], "turn 2: `tool_calls` are not"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}], "turn 1: a part that is no text"),
        ([{"messages": [{**ASK, "loss_weight": 1.0}, ANSWER]}], "turn 1: a `loss_weight` of 1.0 for a turn of the user"),
        ([{"messages": [ASK, {**ANSWER, "loss_weight": 0.5}]}], "turn 2: a `loss_weight` of 0.5"),
        ([{"messages": [ASK, {**ANSWER, "loss_weight": 0}]}], "row 1: no assistant's turn that is to be learned"),
        ([{"messages": [ASK]}], "row 1: no assistant's turn that is to be learned"),
        ([{"messages": [SYSTEM]}], "row 1: no assistant's turn"),
        ([{"messages": [ANSWER, ASK, ANSWER]}], "row 1: the conversation starts with the assistant, not with the user"),
        ([{"messages": [SYSTEM, ANSWER]}], "row 1: the conversation starts with the assistant"),
        ([{"messages": [ASK, SYSTEM, ANSWER]}], "row 1: a system turn that is not the first"),
        ([{"messages": [ASK, ASK, ANSWER]}], "row 1: turns 1 and 2 are both the user's"),
        ([{"messages": [ASK, ANSWER, ANSWER]}], "row 1: turns 2 and 3 are both the assistant's"),
        ([{"messages": [ASK, {"role": "tool", "content": "x"}, ANSWER]}], "turn 2: the tool follows the user"),
        ([{"messages": [ASK, {"role": "assistant", "content": "\ud800"}]}], "turn 2: half a character"),
        ([{"messages": [ASK, ANSWER], "tools": "{"}], "row 1: `tools` is not valid JSON"),
        ([{"messages": [ASK, ANSWER], "tools": {"name": "x"}}], "row 1: `tools` is not a list of objects"),
        ([{"conversations": [{"from": "bot", "value": "a"}]}], "row 1, turn 1: from 'bot', which is none of system, human"),
        ([{"conversations": [{"from": "gpt", "value": "a"}]}], "row 1: the conversation starts with the assistant"),
        ([{"instruction": "a", "input": "", "output": ""}], "row 1, output: empty"),
        ([{"instruction": 5, "input": "", "output": "b"}], "row 1, instruction: int instead of text"),
        ([{"instruction": "a", "input": 5, "output": "b"}], "row 1, input: int instead of text"),
        ([{"prompt": "a", "completion": ""}], "row 1, completion: empty"),
        ([{"prompt": "a", "completion": [ANSWER]}], "row 1, prompt: the conversation is not a list"),
        ([{"prompt": [ASK], "completion": [ASK]}], "row 1: turns 1 and 2 are both the user's"),
    ],
)
def test_malformed_rows_are_refused_by_name(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_conversations(write(tmp_path, rows))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", r"a\.csv: not a \.json, \.jsonl or \.parquet file"),
        ("a.json", b"", r"a\.json: not valid JSON"),
        ("a.json", b'{"prompt": "a", "completion": "b"}\n{}', r"not valid JSON \(Extra data.*\n.*\.jsonl"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.jsonl", b"", r"a\.jsonl: there are no rows"),
        ("a.jsonl", b'\n{"prompt": "a", "completion": "b"}\n{"prompt', r"a\.jsonl, row 3: not valid JSON"),
        ("a.jsonl", b'{"prompt": "\xff"}', r"row 1: not UTF-8 \(byte 12\)"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_conversations(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_conversations(tmp_path / "absent.json")
    with pytest.raises(DataError, match="no data"):
        read_conversations([])


SHARED = Path(__file__).parents[3] / "shared" / "data" / "chat"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data sets beside the checkout")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("gpteacher/codegen-instruct.json", 4535),
        ("gpteacher/roleplay-simple-deduped-roleplay-instruct.json", 1923),
        ("llama_factory/alpaca_en_demo.json", 999),
        ("llama_factory/glaive_toolcall_en_demo.json", 300),
        ("llama_factory/v1_sft_demo.jsonl", 500),
        ("rasbt/instruction-data.json", 1100),
        ("rasbt/instruction-data-with-preference.json", 1100),
    ],
)
def test_real_data_sets_are_read_whole(name: str, rows: int, chatml: Any) -> None:
    conversations = read_conversations(SHARED / name)
    assert len(conversations) == rows
    for row in encode(chatml, CHATML, *conversations[:20]):
        assert row.terms > 2


# Labels ---------------------------------------------------------------------------------------------------------------------


def test_an_alpaca_row_in_solars_template(tmp_path: Path, tokenizer: Any) -> None:
    """The text is the one on SOLAR's model card, and the answer and its end are learned, each in the place before it."""
    (conversation,) = read(tmp_path, {"instruction": "Add.", "input": "1, 2", "output": "3"})
    (row,) = encode(tokenizer, SOLAR, conversation)
    prompt = b"### User:\nAdd.\n1, 2\n\n### Assistant:\n"
    assert row.tokens.tolist() == [byte + 1 for byte in prompt + b"3"] + [END]
    assert row.labels.tolist() == [IGNORED] * (len(prompt) - 1) + [ord("3") + 1, END, IGNORED]
    assert row.terms == 2
    assert row.where == conversation.where


def test_a_sharegpt_row_of_several_turns_in_chatml(tmp_path: Path, chatml: Any) -> None:
    """
    <start><|im_start|>user⏎A<|im_end|>⏎<|im_start|>assistant⏎bc<|im_end|>⏎<|im_start|>user⏎D<|im_end|>⏎<|im_start|>assistant⏎e

    Labels are the answers, each with the mark that ends it, moved left by one. The new line that the template writes after that
    mark is nobody's.
    """
    speech = [("human", "A"), ("gpt", "bc"), ("human", "D"), ("gpt", "e")]
    (conversation,) = read(tmp_path, {"conversations": [{"from": who, "value": text} for who, text in speech]})
    (row,) = encode(chatml, CHATML, conversation, ends=(CLOSE,))

    def spell(text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    first = [START, OPEN, *spell("user\nA"), CLOSE, *spell("\n"), OPEN, *spell("assistant\n")]
    second = [*spell("\n"), OPEN, *spell("user\nD"), CLOSE, *spell("\n"), OPEN, *spell("assistant\n")]
    assert row.tokens.tolist() == [*first, *spell("bc"), CLOSE, *second, *spell("e"), CLOSE]
    nothing = IGNORED
    expected = [nothing] * (len(first) - 1) + [*spell("bc"), CLOSE]
    expected += [nothing] * len(second) + [*spell("e"), CLOSE, nothing]
    assert row.labels.tolist() == expected


def test_turns_that_no_token_closes_are_learned_to_end_where_they_do(tmp_path: Path, tokenizer: Any) -> None:
    """SOLAR's template writes nothing after an answer: the model reads `b### User`, and learns after `b` that it ends."""
    (conversation,) = read(tmp_path, {"messages": [ASK, {"role": "assistant", "content": "b"}, ASK, ANSWER]})
    (row,) = encode(tokenizer, SOLAR, conversation)
    text = "### User:\nHello\n\n### Assistant:\nb### User:\nHello\n\n### Assistant:\nHi"
    assert tokenizer.decode(row.tokens) == text + "<end>"
    first, last = text.index("b###"), len(text)
    expected = ["."] * len(text) + ["."]
    expected[first - 1 : first + 1] = ["b", "<end>"]
    expected[last - 3 : last] = ["H", "i", "<end>"]
    assert learned(row, tokenizer) == "".join(expected)


def test_an_end_mark_that_generation_does_not_stop_at_is_followed_by_one(tmp_path: Path, chatml: Any) -> None:
    (conversation,) = read(tmp_path, GOOD)
    (row,) = encode(chatml, CHATML, conversation)
    assert row.labels.tolist()[-5:] == [ord("H") + 1, ord("i") + 1, CLOSE, END, IGNORED]


def test_prompt_and_completion_are_masked_as_trl_does(tmp_path: Path, chatml: Any, tokenizer: Any) -> None:
    """
    Both are tokenised together, the end-of-text token follows, and what comes after the tokens of the prompt is learned: for
    "ab" and " c", input ids [start, a, b, space, c, end] and completion mask [0, 0, 0, 1, 1, 1]. As places of prediction that
    is a mask of [0, 0, 1, 1, 1] over the first five ids, with labels [space, c, end].
    """
    (plain,) = read(tmp_path, {"prompt": "ab", "completion": " c"})
    (row,) = encode(chatml, CHATML, plain)
    assert row.tokens.tolist() == [START, 98, 99, 33, 100, END]
    assert row.labels.tolist() == [IGNORED, IGNORED, 33, 100, END, IGNORED]
    (row,) = encode(tokenizer, SOLAR, plain)
    assert row.tokens.tolist() == [98, 99, 33, 100, END]
    (chat,) = read(tmp_path, {"prompt": [ASK, {"role": "assistant", "content": "no"}, ASK], "completion": [ANSWER]})
    (row,) = encode(chatml, CHATML, chat, ends=(CLOSE,))
    assert learned(row, chatml).strip(".") == "Hi<|im_end|>"
    assert row.terms == 3


def test_a_boundary_inside_a_token_gives_the_token_to_the_answer(tmp_path: Path) -> None:
    """Tokens are merged across the boundary: the prompt `a` and the completion `b` make the one token `ab`."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<end>": 0, "x": 1, "a": 2, "b": 3, "ab": 4}
    merged = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")])), eos_token="<end>"
    )
    (row,) = encode(merged, SOLAR, *read(tmp_path, {"prompt": "xa", "completion": "b"}))
    assert (row.tokens.tolist(), row.labels.tolist()) == ([1, 4, END], [4, END, IGNORED])
    with pytest.raises(DataError, match="row 1: no token is learned"):
        encode(merged, SOLAR, *read(tmp_path, {"prompt": "a", "completion": "b"}))
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    speech = [("user", "x"), ("assistant", "a"), ("user", "b"), ("assistant", "x")]
    conversation = {"messages": [{"role": role, "content": content} for role, content in speech]}
    with pytest.raises(DataError, match="row 1: the tokens of turn 2 run into those of the next"):
        encode(merged, template, *read(tmp_path, conversation))


def test_a_start_of_text_is_never_doubled(tmp_path: Path, chatml: Any) -> None:
    conversations = read(tmp_path, GOOD)
    with_start = "{{ bos_token }}" + CHATML
    for template in (CHATML, with_start):
        (row,) = encode(chatml, template, *conversations)
        assert row.tokens.tolist()[:2] == [START, OPEN]
        assert row.tokens.tolist().count(START) == 1


def test_tools_go_through_the_template_or_are_missed(tmp_path: Path, chatml: Any) -> None:
    tools = [{"name": "weather", "description": "of a town"}]
    rows = [{"messages": [SYSTEM, ASK, ANSWER], "tools": each} for each in (json.dumps(tools), tools)]
    one, two = read(tmp_path, *rows)
    assert one.tools == two.tools == tuple(tools)
    (row,) = encode(chatml, CHATML, one)
    assert chatml.decode(row.tokens).startswith('<start><|im_start|>system\nBe kind.\n\n# Tools\n\n{"name": "weather"')
    assert chatml.decode(row.tokens).count("Be kind.") == 1
    (called,) = read(tmp_path, {"messages": [ASK, {"role": "assistant", "content": "weather()"}], "tools": tools})
    for conversation in (one, called):
        with pytest.raises(DataError, match="row 1: the template leaves out the tools"):
            encode(chatml, SOLAR, conversation)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{{ m.content }}{% if not loop.last and m.role == 'assistant' %}!{% endif %}{% endfor %}",
            None,
        ),
        (
            "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}{% endfor %}",
            "row 1: the template leaves out or changes what the assistant says in turn 3",
        ),
        ("{{ messages | length }}" + CHATML, "row 1: the template rewrites what was said: turn 3 "),
        (
            CHATML + "{% if add_generation_prompt %}<think>{% endif %}",
            "writes another prompt for an answer than it begins turn",
        ),
        ("{{ raise_exception('no system turn') }}", "row 1: the chat template cannot render this conversation: no system turn"),
        ("{{ messages[99].content }}", "row 1: the chat template cannot render this conversation"),
        ("{{ ''.__class__.__mro__ }}", "row 1: the chat template cannot render this conversation: .*unsafe"),
        (CHATML.replace("message['role'] == 'system'", "true").replace("tools and", ""), "leaves out .* what the system says"),
    ],
)
def test_templates_that_fail_rewrite_or_leave_out_are_refused(
    tmp_path: Path, chatml: Any, template: str, message: str | None
) -> None:
    speech = [SYSTEM, ASK, {"role": "assistant", "content": "Well"}, {"role": "user", "content": "So?"}, ANSWER]
    conversations = read(tmp_path, {"messages": speech})
    if message is None:  # a mark after an answer that goes on belongs to no turn and is not learned
        (row,) = encode(chatml, template, *conversations)
        assert learned(row, chatml).replace(".", "") == "Well<end>Hi<end>"
        return
    with pytest.raises(DataError, match=message):
        encode(chatml, template, *conversations)


def test_a_template_that_is_no_jinja_is_refused(tmp_path: Path, chatml: Any) -> None:
    with pytest.raises(OptionError, match=r"not valid Jinja \(line 2"):
        encode(chatml, "\n{% for %}", *read(tmp_path, GOOD))


def test_without_any_end_of_turn_an_answer_could_not_end(tmp_path: Path) -> None:
    endless = AutoTokenizer.from_pretrained(write_checkpoint(tmp_path / "model"))
    endless.eos_token = None
    with pytest.raises(DataError, match="row 1: nothing says that an answer ends"):
        encode(endless, SOLAR, *read(tmp_path, GOOD))


def test_templates_are_found_by_name(tmp_path: Path, tokenizer: Any, chatml: Any) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ 'ä' }}", encoding="utf-8")
    assert find_template(file, tokenizer) == "{{ 'ä' }}"
    assert find_template("solar", tokenizer) == SOLAR
    assert find_template("chatml", chatml) == CHATML
    own = AutoTokenizer.from_pretrained(write_checkpoint(tmp_path / "model"))
    own.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    assert find_template("model", own) == "{{ 1 }}"
    for wanted, message in (
        ("model", "--template: the model has no chat template\n.*solar"),
        ("chatml", r"no token <\|im_start\|> and no <\|im_end\|>"),
        (tmp_path / "absent.jinja", r"absent\.jinja: cannot be read"),
    ):
        with pytest.raises(OptionError, match=message):
            find_template(wanted, tokenizer)


# Length ---------------------------------------------------------------------------------------------------------------------


def test_rows_that_are_too_long(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = encode(tokenizer, SOLAR, *read(tmp_path, *({"prompt": "ab", "completion": "c" * size} for size in (2, 5, 9))))
    assert [len(row.tokens) for row in rows] == [5, 8, 12]
    assert limit_rows(rows, 12, too_long="error") == rows
    with pytest.raises(DataError, match=r"row 2: 2 of 3 conversations are longer than 6 tokens, up to 12\n.*12 if the model"):
        limit_rows(rows, 6, too_long="error")
    assert limit_rows(rows, 8, too_long="drop") == rows[:2]
    assert "1 of 3 conversations are longer than 8 tokens, up to 12: dropped" in capsys.readouterr().err
    with pytest.raises(DataError, match="none is left"):
        limit_rows(rows, 4, too_long="drop")
    cut = limit_rows(rows, 6, too_long="truncate")
    assert "2 of 3 conversations are longer than 6 tokens, up to 12: truncated" in capsys.readouterr().err
    c = ord("c") + 1
    assert [row.tokens.tolist() for row in cut] == [rows[0].tokens.tolist(), [98, 99, c, c, c, c], [98, 99, c, c, c, c]]
    assert cut[1].labels.tolist() == [IGNORED, c, c, c, c, IGNORED]
    assert np.array_equal(cut[0].labels, rows[0].labels)
    with pytest.raises(DataError, match="row 1: its first 2 tokens hold nothing to learn"):
        limit_rows(rows, 2, too_long="truncate")


def test_rows_of_excluded_tasks_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"instruction": "a", "output": "kept", "task_name": "cot_esnli"},
        {"instruction": "b", "output": "in SOLAR's table 8", "task_name": "cot_gsm8k"},
        {"instruction": "c", "output": "there too", "_task_name": "winogrande:1.1.0"},
        {"instruction": "d", "output": "named by the user", "task": "mine"},
        {"instruction": "e", "output": "kept", "task": "cot_gsm8k_other"},
    ]
    file = write(tmp_path, rows)
    found = read_conversations(file, exclude_tasks=["solar", "mine"])
    assert [each.messages[0].content for each in found] == ["a", "e"]
    assert "5 rows, without 3 that are of excluded tasks" in capsys.readouterr().err
    assert len(read_conversations(file)) == 5
    with pytest.raises(DataError, match="all its 1 rows are of excluded tasks"):
        read_conversations(write(tmp_path, rows[1:2], "one.json"), exclude_tasks=["solar"])
