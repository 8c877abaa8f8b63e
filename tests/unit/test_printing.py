"""The table of a training run shows what is known and nothing else."""

import json
from typing import Any

import pytest

from deepen.cli.printing import print_training
from deepen.train.recovery import recovery

SUMMARY: dict[str, Any] = {
    "model": "smollm2-44",
    "num_hidden_layers": 44,
    "learned_parameters": 184_000_000,
    "processes": 2,
    "steps": 30,
    "tokens": 30_720,
    "training_seconds": 128.0,
    "validation_perplexity_before": 29.612,
    "validation_perplexity": 16.81,
    "base_validation_perplexity": 19.5,
    "control_validation_perplexity": None,
    "recovery": recovery([(0, 3.4), (1024, 2.9)], 3.0).results(),
    "energy_joules": 7200.0,
    "energy_method": "RAPL (package-0)",
    "carbon_grams": 0.84,
    "held_out_pairs": 7,
}


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())


def test_what_is_known_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_training(SUMMARY)
    assert {name: text.strip() for name, text in lines(capsys).items()} == {
        "model": "smollm2-44",
        "layers": "44",
        "parameters learned": "184M",
        "processes": "2",
        "steps": "30",
        "tokens": "30,720",
        "tokens per second": "240",
        "time": "2 min 08 s",
        "perplexity before": "29.61",
        "perplexity": "16.81",
        "perplexity of the base": "19.50",
        "recovery": "Back at the base's level (perplexity 20.09) after 819 tokens.",
        "energy": "2 Wh, RAPL (package-0)",
        "CO2": "0.84 g",
    }


def test_what_is_not_measured_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    print_training({"tokens": 0, "energy_joules": None, "energy_method": "not measured: no readable counter (no GPU in use)"})
    assert {name: text.strip() for name, text in lines(capsys).items()} == {
        "tokens": "0",
        "energy": "not measured: no readable counter (no GPU in use)",
    }


def test_json_is_the_same_mapping(capsys: pytest.CaptureFixture[str]) -> None:
    print_training(SUMMARY, json=True)
    assert json.loads(capsys.readouterr().out) == SUMMARY


def test_nothing_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_training({"model": "a\x1b[2Jb"})
    assert capsys.readouterr().out == "model  a\\x1b[2Jb\n"
