import re

import pytest
import yaml

from deepen.checkpoint.card import draw_layers, model_card

SOLAR = {
    "verb": "scale",
    "options": {"drop": 8, "as": "llama", "identity_init": True},
    "source": {"model": "mistralai/Mistral-7B-v0.1@main"},
    "plan": {"source_layers": 32, "layers": "0:24,8:32"},
    "versions": {"deepen": "0.1.0", "python": "3.11"},
}


def header(card: str) -> dict:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1])


def test_the_header_is_what_the_hub_reads() -> None:
    source = "---\nlicense: apache-2.0\nlanguage: [en, no]\ntags:\n- pretrained\n- deepen\nextra: 5\n---\n# Mistral"
    assert header(model_card(SOLAR, source)) == {
        "license": "apache-2.0",
        "language": ["en", "no"],
        "base_model": "mistralai/Mistral-7B-v0.1",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["deepen", "depth-up-scaling", "pretrained"],
    }


def test_a_local_source_passes_its_own_base_on_and_keeps_its_folders_private() -> None:
    manifest = SOLAR | {"source": {"model": "/home/ada/secret/mistral"}}
    card = model_card(manifest, "---\nbase_model: mistralai/Mistral-7B-v0.1\n---\n")
    assert header(card)["base_model"] == "mistralai/Mistral-7B-v0.1"
    assert "base_model" not in header(model_card(manifest, None))
    assert "secret" not in card
    assert "deepen scale mistral OUT --drop 8" in card


def test_a_gguf_path_is_no_base_model() -> None:
    assert "base_model" not in header(model_card(SOLAR | {"source": {"model": "demo/model.gguf"}}, None))


def test_the_body_says_how_it_was_made() -> None:
    card = model_card(SOLAR, None)
    assert "# mistralai/Mistral-7B-v0.1@main, 48 layers" in card
    assert "deepen scale mistralai/Mistral-7B-v0.1@main OUT --drop 8 --as llama --identity-init" in card
    assert "deepen verify . --source mistralai/Mistral-7B-v0.1@main" in card
    assert "With deepen 0.1.0, python 3.11." in card
    slices = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert slices is not None
    assert [entry["sources"][0]["layer_range"] for entry in yaml.safe_load(slices[1])["slices"]] == [[0, 24], [8, 32]]


def test_a_card_of_a_verb_without_a_plan() -> None:
    manifest = {"verb": "pretrain", "options": {"data": ["a.txt", "b c.txt"], "tokens": 1000}, "source": {"model": "x/y"}}
    card = model_card(manifest, None)
    assert "deepen pretrain x/y OUT --data a.txt --data 'b c.txt' --tokens 1000" in card
    assert "Layer plan" not in card
    assert "deepen 0.1.0" in card


MERGED = {
    "verb": "merge",
    "options": {"method": "average", "weights": [0.4, 0.6], "t": 0.0},
    "source": {"models": [{"model": "org/a@main"}, {"model": "/home/ada/secret/b"}]},
    "plan": {"source_layers": 32, "layers": "0:24,8:32"},
}


def test_a_card_of_a_merge_names_all_models() -> None:
    mine = "---\nlicense: mit\nlanguage: en\ntags: [x]\n---\n"
    card = model_card(MERGED, mine, "---\nlicense: mit\nbase_model: org/b\n---\n")
    found = header(card)
    assert (found["license"], found["language"]) == ("mit", "en")
    assert found["base_model"] == ["org/a", "org/b"]
    assert found["tags"] == ["deepen", "merge", "x"]
    assert "# org/a@main + b\n" in card
    assert "deepen merge OUT org/a@main b --method average --weights 0.4,0.6 --t 0.0" in card
    assert "Layer plan" not in card
    assert "secret" not in card


@pytest.mark.parametrize("other", [None, "---\nlicense: llama2\n---\n", "---\nlicense: mit\nlicense_name: x\n---\n"])
def test_licences_that_disagree_are_left_to_the_user(other: str | None) -> None:
    assert not {"license", "license_name"} & header(model_card(MERGED, "---\nlicense: mit\n---\n", other)).keys()


def test_solar_drawn() -> None:
    assert draw_layers(32, [*range(24), *range(8, 32)]).splitlines() == [
        " 0-23  ████████████████████████········  base  0-23",
        "24-47  ········████████████████████████  base  8-31   seam 23 → 8, distance 15",
    ]


def test_a_deep_base_is_drawn_to_scale_and_identity_layers_lighter() -> None:
    rows = draw_layers(96, [*range(96), 48], [96]).splitlines()
    assert rows[0].split()[1] == "█" * 48
    assert rows[1].split()[1] == "·" * 24 + "▒" + "·" * 23


def test_only_the_identity_layers_of_a_run_are_lighter() -> None:
    rows = draw_layers(4, [0, 1, 1, 2, 3], [2]).splitlines()
    assert [row.split()[1] for row in rows] == ["██··", "·▒██"]


def test_a_long_plan_is_cut() -> None:
    rows = draw_layers(4, [0] * 1000).splitlines()
    assert len(rows) == 65
    assert rows[-1] == "… and 936 more"


@pytest.mark.parametrize(
    "hostile",
    [
        "x\n---\nlicense: mit\n---\n# owned",
        "<script>alert(1)</script>",
        "[click](javascript:alert(1))",
        "![x](http://tracker/x.png)",
        "a```\n# owned\n```",
        "\x1b[2Jgone",
        "$(rm -rf ~); `id`",
    ],
)
def test_hostile_names_stay_text(hostile: str) -> None:
    card = model_card(SOLAR | {"source": {"model": hostile}, "options": {"layers": hostile}}, None)
    assert list(header(card)) == ["library_name", "pipeline_tag", "tags"]
    assert len(re.findall(r"^---$", card, re.MULTILINE)) == 2
    assert len(re.findall(r"^```", card, re.MULTILINE)) == 8
    assert not re.search(r"^# owned", card, re.MULTILINE)
    assert "\x1b" not in card
    outside = re.sub(r"^```.*?^```", "", card, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)[<\[]", outside.split("---\n", 2)[2])


@pytest.mark.parametrize(
    "source",
    [
        "no header",
        "---\nnever closed",
        "---\n[: broken\n---\n",
        "---\n- a list\n---\n",
        "---\n" + "[" * 10_000 + "\n---\n",
        "---\ntags: {a: b}\nlicense: !!python/object/apply:os.system [echo]\n---\n",
        "---\ntags: &a [x]\nlanguage: [*a, *a]\n---\n",
    ],
)
def test_a_strange_source_card_gives_nothing_strange(source: str) -> None:
    found = header(model_card(SOLAR, source))
    assert found["tags"][:2] == ["deepen", "depth-up-scaling"]
    assert found.get("language", []) == []
