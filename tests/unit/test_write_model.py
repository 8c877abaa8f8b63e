"""Write with the real 135M model: a text with marks that hold, and a killed run that comes to the same text."""

import os
import re
import signal
import subprocess
import sys

import pytest

import deepen
from deepen.apps.writing.prose import count_words

pytestmark = pytest.mark.slow

FACTS = "Parcels to Norway take 5 days and cost 9 euros.\n\nA refund is paid within 14 days to the card that was used.\n"
OUTLINE = "# Parcels and refunds\n\n## Delivery\n- parcels to Norway\n\n## Money\n- refunds\n"


@pytest.mark.nightly
def test_a_killed_run_comes_to_the_text_of_an_undisturbed_one(smollm2, tmp_path, capsys):
    (tmp_path / "facts.txt").write_text(FACTS, encoding="utf-8")
    (tmp_path / "outline.md").write_text(OUTLINE, encoding="utf-8")
    options = {
        "kind": "article", "about": "parcels and refunds", "facts": tmp_path / "facts.txt",
        "outline_file": tmp_path / "outline.md", "words": 70, "context": 1024,
    }  # fmt: skip
    whole = deepen.write(smollm2, **options)
    assert whole.words == count_words(whole.text.replace("#", "")) - len(re.findall(r"\[\d+\]", whole.text))
    cited = {int(number) for number in re.findall(r"\[(\d+)\]", whole.text)}
    assert cited == {each.number for each in whole.citations}
    assert cited, "each section has a fact that speaks of it"
    assert {each.text for each in whole.citations} <= set(FACTS.split("\n"))

    words = [sys.executable, "-m", "deepen", "write", smollm2]
    words += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ) as run:
        for line in run.stderr:
            if line.startswith("Section 2 of 2"):
                run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    capsys.readouterr()
    resumed = deepen.write(smollm2, **options)
    told = capsys.readouterr().err
    assert "Continued" in told
    assert "Section 1 of 2" not in told
    assert (resumed.text, resumed.tokens, resumed.unsupported) == (whole.text, whole.tokens, whole.unsupported)
