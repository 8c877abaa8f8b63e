from pathlib import Path

import pytest

from deepen.errors import RecipeError
from deepen.recipe import STAGES, Recipe, load_recipe
from deepen.recipe.text import load_yaml

GOOD = """
name: demo
base: org/model@main
stages:
  - {stage: scale, drop: 8, as: llama, shard_size: 2GB}
  - {stage: evaluate, data: held_out.txt, tokens: 4k}
  - {stage: pretrain, data: [a.txt, b.txt], tokens: 1.5M, learning_rate: 1e-4}
  - {stage: evaluate, data: held_out.txt}
  - {stage: generate, from: scale, prompt: "Say: yes", greedy: true}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(text)
    return load_recipe(tmp_path / "recipe.yaml", set=overrides)


def problems(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_stages_are_named_and_linked(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert (recipe.name, recipe.base) == ("demo", "org/model@main")
    assert [(stage.name, stage.from_) for stage in recipe.stages] == [
        ("scale", "base"),
        ("evaluate", "scale"),
        ("pretrain", "scale"),  # a stage that makes no model hands on the one it was given
        ("evaluate-2", "pretrain"),
        ("generate", "scale"),
    ]


def test_options_are_the_given_ones_with_their_units_read(tmp_path: Path) -> None:
    scale, evaluate, pretrain, _, generate = load(tmp_path, GOOD).stages
    assert scale.options() == {"drop": 8, "as_": "llama", "shard_size": 2 * 10**9}
    assert evaluate.options() == {"data": (Path("held_out.txt"),), "tokens": 4000}
    assert pretrain.options() == {"data": (Path("a.txt"), Path("b.txt")), "tokens": 1_500_000, "learning_rate": 1e-4}
    assert generate.options() == {"prompt": "Say: yes", "greedy": True}


def test_a_template_is_a_name_or_a_file(tmp_path: Path) -> None:
    stages = "[{stage: instruct, data: a.json, template: solar, cap: [a.json=5]}, {stage: instruct, data: b, template: mine}]"
    named, file = load(tmp_path, f"name: a\nbase: b\nstages: {stages}").stages
    assert named.options() == {"data": (Path("a.json"),), "template": "solar", "cap": ["a.json=5"]}
    assert named.path_options() == {"data": (Path("a.json"),)}
    assert file.path_options() == {"data": (Path("b"),), "template": (Path("mine"),)}


@pytest.mark.parametrize("layers", ["0:24,8:32", "8:24", "1:30", "0:30"])
def test_slices_are_text_not_sexagesimal_numbers(tmp_path: Path, layers: str) -> None:
    recipe = load(tmp_path, f"name: a\nbase: b\nstages:\n- stage: scale\n  layers: {layers}\n")
    assert recipe.stages[0].options() == {"layers": layers}


def test_all_problems_are_told_at_once_with_the_nearest_names(tmp_path: Path) -> None:
    message = problems(
        tmp_path,
        """
        name: ../escape
        bass: model
        stages:
          - {stage: scale, dropp: 8}
          - {stage: pretran}
          - {stage: pretrain, data: a.txt, tokens: many, learning_rate: .inf}
          - {stage: evaluate, from: scael, suite: h7}
          - {stage: scale, name: pretrain, drop: 8, repeat: 8:24}
          - 5
        """,
    )
    for line in [
        "name: '../escape' is not a name",
        'bass: unknown key, did you mean "base"?',
        "base: is missing",
        'stages.0.dropp: unknown key, did you mean "drop"?',
        "stages.1.stage: no such verb 'pretran', did you mean \"pretrain\"?",
        "stages.2.tokens: 'many' is not a count such as 4096, 100k or 1.5M",
        "stages.2.learning_rate: input should be a finite number, not inf",
        "stages.3.suite: input should be 'perplexity', 'h6', 'h4', 'bias' or 'contamination', not 'h7'",
        "stages.3.from: no stage 'scael' above, did you mean \"scale\"?",
        "stages.4: needs exactly one of drop, layers, repeat, expand, plan, and has drop and repeat",
        "stages.4.name: the name 'pretrain' is taken; give another `name`",
        "stages.5: give a mapping with `stage: VERB`",
    ]:
        assert line in message
    assert "deepen check" in message


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ("{stage: scale}", "and has none"),
        ("{stage: scale, drop: '8'}", "stages.0.drop: input should be a valid integer, not '8'"),
        ("{stage: scale, drop: 8.0}", "stages.0.drop"),
        ("{stage: scale, drop: true}", "stages.0.drop"),
        ("{stage: scale, drop: 8, dtype: float8}", "stages.0.dtype"),
        ("{stage: scale, drop: 8, shard_size: 0}", "stages.0.shard_size"),
        ("{stage: scale, drop: 8, name: base}", "the name 'base' is taken"),
        ("{stage: scale, drop: 8, name: a/b}", "is not a name"),
        ("{stage: scale, drop: 8, name: [a]}", "is not a name"),
        ("{stage: scale, drop: 8, from: [a]}", "is not a name"),
        ("{stage: scale, drop: 8, 1: x}", "stages.0.1: unknown key"),
        ("{stage: pretrain, data: [], tokens: 1k}", "stages.0.data"),
        ("{stage: pretrain, data: [1], tokens: 1k}", "1 is not a path"),
        ("{stage: pretrain, data: a, tokens: 0}", "stages.0.tokens"),
        ("{stage: pretrain, data: a, tokens: -5}", "stages.0.tokens"),
        ("{stage: instruct, data: a.json, epochs: 0}", "stages.0.epochs"),
        ("{stage: instruct, data: a.json, too_long: split}", "stages.0.too_long"),
        ("{stage: instruct, data: a.json, cap: a.json=5}", "stages.0.cap"),
        ("{stage: instruct, data: a.json, template: 5}", "5 is not a path"),
        ("{stage: instruct, data: a.json, batch_rows: 2, batch_tokens: 1k}", "has both batch_rows and batch_tokens"),
        ("{stage: generate, prompt: hi, greedy: yes}", "stages.0.greedy"),
        ("{stage: merge}", "stages.0.models: is missing"),
        ("{stage: merge, models: [base]}", "stages.0.models: value should have at least 2 items"),
        ("{stage: merge, models: base}", "stages.0.models"),
        ("{stage: merge, models: [base, ''], t: 2}", "stages.0.models.1"),
        ("{stage: merge, models: [base, base], t: 2}", "stages.0.t"),
        ("{stage: merge, models: [base, base], weights: [a, b]}", "stages.0.weights.0"),
        ("{stage: merge, models: [base, base], weights: [1]}", "has 1 weights for 2 models"),
        ("{stage: merge, models: [base, base], from: base}", "takes its models from `models`, not from `from`"),
        ("{stage: run}", "no such verb"),
        ("{}", "give a mapping with `stage: VERB`"),
    ],
)
def test_each_wrong_stage_is_refused(tmp_path: Path, stage: str, problem: str) -> None:
    assert problem in problems(tmp_path, f"name: a\nbase: b\nstages: [{stage}]")


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "name: a\nbase: b", "name: a\nbase: b\nstages: []", "name: a\nbase: b\nstages: x"]
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    assert "stages" in problems(tmp_path, text)


def test_overrides(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD, "scale.drop=5", "evaluate-2.tokens=2k", "base=other", "pretrain.learning_rate=2e-5")
    assert recipe.base == "other"
    assert recipe.stages[0].options()["drop"] == 5
    assert recipe.stages[3].options()["tokens"] == 2000
    assert recipe.stages[2].options()["learning_rate"] == 2e-5


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("scael.drop=5", 'no such stage, did you mean "scale"?'),
        ("scale.dropp=5", 'stages.0.dropp: unknown key, did you mean "drop"?'),
        ("scale.drop=x", "stages.0.drop: input should be a valid integer, not 'x'"),
        ("scale.drop", "write stage.key=value"),
        ("drop=5", "no such stage"),
        ("scale.drop=[", "is not valid YAML"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, override: str, problem: str) -> None:
    assert problem in problems(tmp_path, GOOD, override)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a: &x [1]\nb: *x", "aliases"),
        (b"a: 1\na: 2", "line 2: duplicate key 'a'"),
        (b"[" * 5000, "nested too deeply"),
        (b"a: " * 2, "not valid YAML"),
        (b"x: !!python/object/apply:os.system [echo]", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"#" * 300_000, "larger than 256 KiB"),
        (b"a: " + b"9" * 5000, "cannot be read"),
        (b"? [a, b]\n: c", "not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(RecipeError, match=problem):
        load_yaml(tmp_path / "a.yaml")


def test_a_missing_file_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("2.", 2.0), (".5", 0.5), ("-3", -3), ("1_000", 1000), ("010", "010"), ("0x1F", "0x1F"),
        ("12:30:45", "12:30:45"), ("yes", "yes"), ("off", "off"), ("true", True), ("~", None), ("", None),
        ("2024-01-01", "2024-01-01"), ("1.2.3", "1.2.3"), ("e5", "e5"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "a.yaml").write_text(f"a: {text}")
    read = load_yaml(tmp_path / "a.yaml")["a"]
    assert read == value
    assert type(read) is type(value)


def test_every_stage_model_names_its_verb() -> None:
    verbs = {"explore", "scale", "merge", "pretrain", "instruct", "align", "evaluate", "export", "generate"}
    assert set(STAGES) == verbs
    for verb, model in STAGES.items():
        assert model.__name__.lower() == f"{verb}stage"


def test_a_perplexity_needs_a_text(tmp_path: Path) -> None:
    text = "name: a\nbase: b\nstages:\n  - {stage: evaluate%s}\n"
    assert "stages.0: needs data" in problems(tmp_path, text % "")
    assert "stages.0: needs data" in problems(tmp_path, text % ", suite: perplexity")
    assert load(tmp_path, text % ", suite: h6").stages[0].options() == {"suite": "h6"}
    assert load(tmp_path, text % ", tasks: [hellaswag]").stages[0].options() == {"tasks": ["hellaswag"]}
