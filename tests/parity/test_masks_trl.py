"""Which tokens of a prompt and its completion are learned: those that TRL's SFTTrainer learns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.data.chat import read_conversations
from deepen.data.template import encode_conversations
from deepen.data.text import IGNORED
from trainable import write_checkpoint

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '|' if not loop.last else '' }}{% endfor %}{% if add_generation_prompt %}{{ '|assistant: ' }}{% endif %}"
)
PLAIN = [
    {"prompt": "The old river", "completion": " ran."},
    {"prompt": "é", "completion": "ü and more"},
    {"prompt": "one\n\n", "completion": "two\n"},
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": "Who?"}],
        "completion": [{"role": "assistant", "content": "Me."}],
    },
    {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Two?"},
        ],
        "completion": [{"role": "assistant", "content": "No."}],
    },
]


@pytest.mark.filterwarnings("ignore")  # of TRL and what it uses
@pytest.mark.parametrize("rows", [PLAIN, CHATS], ids=["texts", "messages"])
def test_the_mask_of_prompt_and_completion_is_trls(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    folder = write_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.pad_token = TEMPLATE, "<end>"
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=SFTConfig(output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none", max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    ours = encode_conversations(read_conversations(file), tokenizer, TEMPLATE)
    assert len(trainer.train_dataset) == len(ours) == len(rows)
    for theirs, row in zip(trainer.train_dataset, ours, strict=True):
        assert theirs["input_ids"] == row.tokens.tolist()
        assert theirs["labels"][1:] == row.labels[:-1].tolist(), "theirs stand at the token, ours where it is predicted"
        learned = row.labels[:-1] != IGNORED
        assert 1 < learned.sum() < len(learned)
