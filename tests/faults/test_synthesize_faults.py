"""`synthesize` when things go wrong: scripted faults, kills, refusals, an endpoint that goes away, a full disk."""

import hashlib
import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from deepen.errors import DataError, NetworkError, OptionError
from deepen.journal import Journal
from deepen.synthesize import synthesize
from deepen.synthesize.kinds import KINDS
from marbles import FAULTS, Endpoint, problem, reply

TORN = (b"", b"[", b'["0123', b"\0\0\0\n", b'["a", {"text": "b"}]')  # what a torn write leaves
FILES = ("out.jsonl", "pairs.jsonl", "out.report.json", "out.report.md")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("DEEPEN_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(f"{json.dumps(problem(crate))}\n" for crate in range(12)), encoding="utf-8")
    return path


def good(prompt):
    """A model that is wrong about every fifth problem."""
    said = reply(prompt)
    return re.sub(r"is: (\d+)", r"is: 1\1", said) if int(re.search(r"Crate(\d+)", prompt)[1]) % 5 == 4 else said


def words(folder, seeds, url):
    return [sys.executable, "-m", "deepen", "synthesize", folder / "out.jsonl", "--seeds", seeds, "--endpoint", url]


def make(folder, seeds, url, **options):
    folder.mkdir(exist_ok=True)
    synthesize(folder / "out.jsonl", seeds=seeds, endpoint=url, pairs=folder / "pairs.jsonl", **options)
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def undisturbed(seeds, tmp_path):
    with Endpoint(good) as endpoint:
        files = make(tmp_path / "undisturbed", seeds, endpoint.url)
        assert set(endpoint.answered.values()) == {1}
        assert sum(endpoint.answered.values()) == 72
    rows = [json.loads(row) for row in files["out.jsonl"].splitlines()]
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(KINDS, 10)
    return files


def test_no_fault_loses_or_doubles_an_answer(seeds, tmp_path, undisturbed):
    def fault(prompt, time):
        number = int(hashlib.sha256(prompt.encode()).hexdigest(), 16)
        return FAULTS[(number + time) % len(FAULTS)] if time < number % 3 else None

    with Endpoint(good, fault) as endpoint:
        assert make(tmp_path / "a", seeds, endpoint.url, timeout=0.8, parallel=24, retries=6) == undisturbed
        assert set(endpoint.faults) == set(FAULTS)
        assert set(endpoint.answered.values()) == {1}
        assert sum(endpoint.answered.values()) == 72
        assert endpoint.most_open <= 24 + endpoint.faults["silence"]  # what is given up here is still open there
    with Journal(tmp_path / "a" / "out.answers.jsonl") as answers:
        assert len(answers) == 72


def test_retry_after_holds_all_requests_back(seeds, tmp_path):
    with Endpoint(good, lambda prompt, time: "429 later" if "Crate0" in prompt and not time else None) as endpoint:
        synthesize(tmp_path / "out.jsonl", seeds=seeds, endpoint=endpoint.url, kinds="answer", limit=4, parallel=1)
        first, *others = endpoint.times
    assert len(others) == 4
    assert min(others) - first >= 1.0


def test_killed_at_any_time_gives_the_same_bytes(seeds, tmp_path, undisturbed):
    folder = tmp_path / "killed"
    folder.mkdir()
    kills, parallel = 6, 3
    with Endpoint(good, seconds=0.05) as endpoint:
        command = words(folder, seeds, endpoint.url)
        command += ["--pairs", folder / "pairs.jsonl", "--parallel", str(parallel)]
        answers, kept = folder / "out.answers.jsonl", b""
        for number in range(kills):
            with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
                deadline = time.monotonic() + 120
                while not answers.exists() or answers.read_bytes().count(b"\n") <= kept.count(b"\n") + number:
                    assert time.monotonic() < deadline
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.005)
                process.kill()
            assert not (folder / "out.jsonl").exists()
            assert answers.read_bytes().startswith(kept)
            kept = answers.read_bytes()[: answers.read_bytes().rfind(b"\n") + 1]
            with answers.open("ab") as file:
                file.write(TORN[number % len(TORN)])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"{kept.count(bytes([10]))} answers are there already" in done.stderr
        again = Counter({asked: count - 1 for asked, count in endpoint.answered.items() if count > 1})
        assert sum(again.values()) <= kills * parallel  # only what was on its way when the run was killed
        assert len(endpoint.answered) == 72
    assert {name: (folder / name).read_bytes() for name in FILES} == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "out.answers.jsonl"])


def test_killed_while_the_files_appear(seeds, tmp_path, undisturbed):
    folder = tmp_path / "appearing"
    with Endpoint(good) as endpoint:
        make(folder, seeds, endpoint.url)
        for there in ((), FILES[1:2], FILES[1:3], FILES[1:]):
            for name in FILES:
                if name not in there:
                    (folder / name).rename(folder / f".{name}.partial")
            assert make(folder, seeds, endpoint.url) == undisturbed
        assert sum(endpoint.answered.values()) == 72


def test_an_interrupt_keeps_what_is_there(seeds, tmp_path, undisturbed):
    folder = tmp_path / "stopped"
    folder.mkdir()
    with Endpoint(good, seconds=0.1) as endpoint:
        command = words(folder, seeds, endpoint.url)
        with subprocess.Popen([*command, "--parallel", "2"], stderr=subprocess.PIPE, text=True) as process:
            while sum(endpoint.answered.values()) < 5:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert "Traceback" not in told
        assert sorted(path.name for path in folder.iterdir()) == ["out.answers.jsonl"]
        assert make(folder, seeds, endpoint.url) == undisturbed


def test_an_endpoint_that_goes_away_is_continued(seeds, tmp_path, undisturbed):
    folder = tmp_path / "away"
    with Endpoint(good) as endpoint:
        port = endpoint.server_address[1]
        endpoint.fault = lambda prompt, time: "503" if sum(endpoint.answered.values()) >= 20 else None
        with pytest.raises(NetworkError, match=r"no usable answer comes .*503.* answers are kept") as failed:
            make(folder, seeds, endpoint.url, retries=1, parallel=4)
        assert "same command" in str(failed.value)
        paid = sum(endpoint.answered.values())
    assert 20 <= paid < 30
    with pytest.raises(NetworkError, match=f"does not answer .* {paid} answers are kept"):  # nobody listens there now
        make(folder, seeds, endpoint.url, retries=1, model="marbles")
    with pytest.raises(NetworkError, match="does not answer"):
        make(folder, seeds, endpoint.url, retries=0)
    assert sorted(path.name for path in folder.iterdir()) == ["out.answers.jsonl"]
    with Endpoint(good, port=port) as endpoint:
        assert make(folder, seeds, endpoint.url) == undisturbed
        assert sum(endpoint.answered.values()) == 72 - paid


def test_a_request_that_always_fails_does_not_stop_the_others(seeds, tmp_path):
    folder = tmp_path / "poison"

    def bad(prompt, time):
        return "no JSON" if "unknown" in prompt and "Crate3 " in prompt else None

    with Endpoint(good, bad) as endpoint:
        kinds = {"kinds": "answer,backward", "retries": 1}
        with pytest.raises(NetworkError, match=r"requests? got no usable answer in 2 tries .*; 2[23] answers are kept"):
            make(folder, seeds, endpoint.url, **kinds)
        before = sum(endpoint.answered.values())
        assert before in {22, 23}
        files = make(folder, seeds, endpoint.url, skip_failed=True, **kinds)
        assert sum(endpoint.answered.values()) == before
        report = json.loads(files["out.report.json"])
        assert report["kinds"]["backward"]["refused"] == {"wrong value": 2, "no usable answer of the endpoint": 1}
        endpoint.fault = lambda prompt, time: None
        synthesize(
            folder / "out.jsonl", seeds=seeds, endpoint=endpoint.url, pairs=folder / "pairs.jsonl", overwrite=True, **kinds
        )
        assert sum(endpoint.answered.values()) == 24


@pytest.mark.parametrize(("fault", "error", "told"), [("400", DataError, "scripted 400"), ("401", OptionError, "wants a key")])
def test_a_refusal_stops_with_what_the_endpoint_says(seeds, tmp_path, fault, error, told):
    with Endpoint(good, lambda prompt, time: fault if "Crate7" in prompt else None, seconds=0.02) as endpoint:
        with pytest.raises(error, match=f"{told}.*answers are kept"):
            make(tmp_path / "a", seeds, endpoint.url, parallel=2)
        assert endpoint.faults[fault] <= 2
        assert sum(endpoint.answered.values()) == len((tmp_path / "a" / "out.answers.jsonl").read_bytes().splitlines())
    assert not (tmp_path / "a" / "out.jsonl").exists()


def test_answers_that_were_on_their_way_are_kept(seeds, tmp_path):
    def say(prompt):
        if "Crate0" in prompt:
            time.sleep(1.0)
        return good(prompt)

    with Endpoint(say, lambda prompt, time: "400" if "Crate1 " in prompt else None) as endpoint:
        with pytest.raises(DataError):
            make(tmp_path / "a", seeds, endpoint.url, parallel=2, kinds="answer")
        assert "Crate0" in (tmp_path / "a" / "out.answers.jsonl").read_text() or sum(endpoint.answered.values()) == 1
    with Journal(tmp_path / "a" / "out.answers.jsonl") as answers:
        assert len(answers) == 1


def test_a_full_disk_keeps_what_is_there(seeds, tmp_path, undisturbed):
    folder = tmp_path / "full"
    folder.mkdir()
    with Endpoint(good) as endpoint:
        command = words(folder, seeds, endpoint.url)
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # noqa: E731
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
        assert done.returncode == 3
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (folder / "out.jsonl").exists()
        assert make(folder, seeds, endpoint.url) == undisturbed


def test_tokens_that_are_not_counted_are_said_to_be(seeds, tmp_path):
    with Endpoint(good, usage=False) as endpoint:
        found = synthesize(tmp_path / "out.jsonl", seeds=seeds, endpoint=endpoint.url, kinds="answer", price=(1.0, 1.0))
    assert (found.report["prompt_tokens"], found.report["uncounted_requests"], found.report["cost"]) == (0, 12, 0.0)
    assert "did not count the tokens of 12 answers" in (tmp_path / "out.report.md").read_text()
