"""Pairs of answers: every layout read, ties left out, malformed rows refused by name, and what is learned of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from deepen.data.chat import Conversation
from deepen.data.preference import Preference, encode_preferences, limit_pairs, read_preferences
from deepen.data.template import SOLAR, Row, encode_conversations
from deepen.data.text import IGNORED
from deepen.errors import DataError, OptionError
from trainable import write_checkpoint

USER = {"role": "user", "content": "Hello"}
GOOD = {"role": "assistant", "content": "Hi"}
BAD = {"role": "assistant", "content": "No"}
SYSTEM = {"role": "system", "content": "Be kind."}
PROMPT = [("user", "Hello", False)]
KIND = [("system", "Be kind.", False), *PROMPT]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("bytes")))


def write(folder: Path, *rows: Any, name: str = "pairs.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(rows))
    return file


def read(folder: Path, *rows: Any) -> list[Preference]:
    (found,) = read_preferences(write(folder, *rows))
    return found


def turns(conversation: Conversation) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.learned) for message in conversation.messages]


def labelled(row: Row) -> str:
    """The learned bytes as text; the end of the text is a bar."""
    return "".join("|" if label == 0 else chr(label - 1) for label in row.labels if label != IGNORED)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hello", "chosen": "Hi", "rejected": "No", "source_index": 3}, PROMPT),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PROMPT),
        ({"prompt": [SYSTEM, USER], "chosen": "Hi", "rejected": "No"}, KIND),
        (
            {"prompt": "Hello", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.0, "score_rejected": 7},
            PROMPT,
        ),
        ({"prompt": "Hello", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, KIND),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, PROMPT),
        (
            {"chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
            [*PROMPT, ("assistant", "No", False), *PROMPT],
        ),
        ({"system": "Be kind.", "question": "Hello", "chosen": "Hi", "rejected": "No"}, KIND),
        ({"system": "", "question": "Hello", "chosen": "Hi", "rejected": "No"}, PROMPT),
        ({"input": {"messages": [SYSTEM, USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, KIND),
        ({"instruction": "Hello", "input": "", "output": "Hm", "rejected": "No", "chosen": "Hi"}, PROMPT),
        ({"instruction": "Add.", "input": "1, 2", "chosen": "Hi", "rejected": "No"}, [("user", "Add.\n1, 2", False)]),
        (
            {
                "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hello"}],
                "chosen": {"from": "gpt", "value": "Hi"},
                "rejected": {"from": "gpt", "value": "No"},
            },
            KIND,
        ),
    ],
)
def test_every_layout_gives_a_prompt_and_two_answers(row: dict[str, Any], prompt: list[Any], tmp_path: Path) -> None:
    (preference,) = read(tmp_path, row)
    assert turns(preference.chosen) == [*prompt, ("assistant", "Hi", True)]
    assert turns(preference.rejected) == [*prompt, ("assistant", "No", True)]
    assert preference.chosen.plain == preference.rejected.plain == (row.get("prompt") == "Hello" and row["chosen"] == "Hi")


def test_several_files_are_several_sets_and_what_was_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = write(tmp_path, *({"prompt": f"{n}?", "chosen": "a", "rejected": "b", "id": n} for n in range(9)), name="a.json")
    orca = write(tmp_path, {"question": "?", "chosen": "a", "rejected": "b"}, name="b.json")
    one, two = read_preferences([texts, orca], cap=[f"{texts}=4"], seed=1)
    assert (len(one), len(two)) == (4, 1)
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Reading ")]
    assert said == [
        f"{texts}: prompt, chosen and rejected (prompt, chosen, rejected), without id; 9 rows, 4 of them taken",
        f"{orca}: Orca pairs (question, chosen, rejected); 1 rows",
    ]
    assert [each.chosen.where for each in one] != [each.chosen.where for each in read_preferences(texts)[0][:4]]
    with pytest.raises(OptionError, match="caps none of the data files"):
        read_preferences(texts, cap=["c.json=1"])


def test_a_data_set_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: a.jsonl}\n---\n"
    )
    rows = [
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 4.0, "score_rejected": score} for score in (1.0, 4.0)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((preference,),) = read_preferences(folder)
    assert turns(preference.chosen) == [*PROMPT, ("assistant", "Hi", True)]
    assert preference.rejected.where == f"{folder}, row 1, rejected"
    with pytest.raises(DataError, match="no such file"):
        read_preferences(tmp_path / "absent")


@pytest.mark.parametrize(
    "empty",
    [
        {"prompt": "Hello", "chosen": "Hi", "rejected": " Hi\n"},
        {"prompt": "Hello", "chosen": [USER, GOOD], "rejected": [USER, GOOD]},
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No", "score_chosen": 4.0, "score_rejected": 4},
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No", "chosen-rating": 5, "rejected-rating": 5},
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No", "metadata": {"score_chosen": 5, "score_rejected": 5}},
        {"prompt": "Hello", "chosen": "Hi", "rejected": " \n"},
        {"prompt": "Hello", "chosen": "", "rejected": "No"},
        {"prompt": "Hello", "chosen": [USER, GOOD], "rejected": [USER, {"role": "assistant", "content": ""}]},
    ],
)
def test_ties_and_empty_answers_are_left_out_and_counted(
    empty: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = {"prompt": "Hello", "chosen": "Hi", "rejected": "No"}
    assert len(read(tmp_path, real, empty, empty)) == 1
    assert "3 rows, without 2 that are ties or have an empty answer" in capsys.readouterr().err
    with pytest.raises(DataError, match="all its 1 rows are ties or have an empty answer"):
        read(tmp_path, empty)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1}, "row 1: the columns a are those of no known layout"),
        ({"prompt": "Hello", "chosen": "Hi"}, "row 1: the columns prompt, chosen are those of no known layout"),
        ({"prompt": "Hello", "chosen": "Hi", "rejected": None}, "row 1: no rejected"),
        ({"prompt": " ", "chosen": "Hi", "rejected": "No"}, "row 1, prompt: empty"),
        ({"prompt": "Hello", "chosen": 3, "rejected": "No"}, "row 1, chosen: the conversation is not a list"),
        ({"chosen": "Hi", "rejected": "No"}, "row 1: no prompt: neither a column"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "row 1: no prompt: neither a column"),
        (
            {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "Bye"}, BAD]},
            "row 1: the prompts differ: turn 1 is not the same",
        ),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "row 1: the prompts differ: turn 1"),
        ({"prompt": "Bye", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "row 1: `prompt` is not in the common beginning"),
        (
            {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [BAD]},
            "row 1: one of chosen and rejected has the prompt in it",
        ),
        (
            {"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]},
            "row 1, chosen: turns 2 and 3 are both the assistant's",
        ),
        ({"prompt": [GOOD], "chosen": [GOOD], "rejected": [BAD]}, "row 1, chosen: the conversation starts with the assistant"),
        ({"input": "Hello", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "row 1: `input` is not an object"),
        ({"input": {}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, r"row 1, input\.messages: the conversation"),
        (
            {"prompt": [USER], "chosen": [GOOD | {"loss_weight": 0}], "rejected": [BAD]},
            "row 1, chosen: no answer of the assistant",
        ),
        (["Hello", "Hi", "No"], "row 1: not an object"),
    ],
)
def test_malformed_rows_are_refused_by_name(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"pairs\.json, {message}"):
        read(tmp_path, row)


def test_answers_are_encoded_as_conversations_are(tokenizer: Any, tmp_path: Path) -> None:
    shared = [USER, GOOD, USER]
    preferences = read(
        tmp_path,
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No!"},
    ) + read(tmp_path, {"chosen": [*shared, GOOD], "rejected": [*shared, BAD]})
    plain, chat = encode_preferences(preferences, tokenizer, SOLAR)
    assert [labelled(row) for row in plain.rows] == ["Hi|", "No!|"]
    assert bytes((plain.chosen.tokens[:-1] - 1).tolist()) == b"HelloHi"
    assert [labelled(row) for row in chat.rows] == ["Hi|", "No|"], "the shared answer is no part of either"
    assert chat.tokens == len(chat.chosen.tokens) + len(chat.rejected.tokens)
    alone = encode_conversations([preferences[1].rejected], tokenizer, SOLAR)[0]
    assert np.array_equal(alone.tokens, chat.rejected.tokens)
    assert np.array_equal(alone.labels, chat.rejected.labels)


def test_a_pair_stays_or_goes_as_a_whole(tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "Q", "chosen": "a" * one, "rejected": "b" * other} for one, other in ((3, 4), (3, 20), (20, 3), (20, 21))
    ]
    pairs = encode_preferences(read(tmp_path, *rows), tokenizer, SOLAR)
    assert limit_pairs(pairs, 23, too_long="error") == pairs
    with pytest.raises(DataError, match=r"row 2, rejected: 3 of 4 pairs are longer than 10 tokens, up to 23"):
        limit_pairs(pairs, 10, too_long="error")
    assert limit_pairs(pairs, 10, too_long="drop") == pairs[:1]
    cut = limit_pairs(pairs, 10, too_long="truncate")
    assert [[labelled(row) for row in pair.rows] for pair in cut] == [
        ["aaa|", "bbbb|"],
        ["aaa|", "b" * 9],
        ["a" * 9, "bbb|"],
        ["a" * 9, "b" * 9],
    ]
    assert "3 of 4 pairs are longer than 10 tokens, up to 23: dropped" in capsys.readouterr().err
    with pytest.raises(DataError, match="none is left"):
        limit_pairs(pairs, 3, too_long="drop")


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data sets beside the checkout")
@pytest.mark.parametrize(
    ("name", "rows", "first_turn", "plain"),
    [
        ("preference/ultrafeedback/train_clean.jsonl", 1000 - 116, "user", True),
        ("preference/orca_dpo/validation.jsonl", 284, "system", False),
        ("chat/rasbt/instruction-data-with-preference.json", 1100 - 6, "user", False),
    ],
)
def test_real_data_sets_are_read_whole(name: str, rows: int, first_turn: str, plain: bool) -> None:
    (preferences,) = read_preferences(SHARED / name)
    assert len(preferences) == rows, "what is missing are ties and empty answers"
    assert preferences[0].chosen.messages[0].role == first_turn
    for preference in preferences:
        assert preference.chosen.plain == preference.rejected.plain == plain
        assert preference.chosen.messages[:-1] == preference.rejected.messages[:-1]
        assert [message.learned for message in preference.chosen.messages].count(True) == 1
