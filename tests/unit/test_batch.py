"""`batch` on a tiny random model: killed and continued, line by line, against real engines and servers."""

import contextlib
import dataclasses
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepen.batch import batch
from deepen.batch.lines import read_tasks
from deepen.cli import run_program
from deepen.engine.llamacpp import LlamacppEngine
from deepen.errors import DataError, NetworkError, OptionError, OutputError
from tinygguf import write_tiny_gguf

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}
KEYS = "lines succeeded failed prompt_tokens completion_tokens seconds tokens_per_second energy_joules engine"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def line(custom_id, url=CHAT, **body):
    body = ({"messages": [{"role": "user", "content": f"Say {custom_id}"}]} if url == CHAT else {}) | body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path, lines):
    texts = (each if isinstance(each, str) else json.dumps(each) for each in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read(path):
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def text_of(answer):
    choice = answer["response"]["body"]["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def start(*words):
    command = [sys.executable, "-m", "deepen", "batch", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_killed_ten_times_gives_the_same_bytes(gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    lines = [line(f"é{number}", max_tokens=200) for number in range(60)]
    lines[7] = "nonsense"
    lines[20] = line("20", COMPLETIONS, prompt="x" * 300, max_tokens=3000)
    lines[21] = line("21", COMPLETIONS, prompt="x" * 600)
    lines[22] = line("é3")
    source = write(tmp_path / "in.jsonl", lines)
    assert batch(gguf, source, tmp_path / "alone.jsonl", parallel=1).failed == 3
    out, answers = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.partial" / "answers.jsonl"
    words = [gguf, source, out, "--parallel", 3]
    kept = b""
    for _ in range(10):
        with start(*words) as process:
            rows = kept.count(b"]\n")
            wait_for(lambda rows=rows: answers.is_file() and answers.read_bytes().count(b"]\n") > rows, process)
            time.sleep(random.random() / 50)
            process.kill()
        assert not out.exists()
        assert answers.read_bytes().startswith(kept)
        kept = answers.read_bytes()[: answers.read_bytes().rfind(b"]\n") + 2]
        with answers.open("ab") as file:
            file.write(random.choice([b"", b"[", b'["59", "{', b"\0\0\0\n"]))  # what a torn write leaves
    with start(*words) as process:
        told = process.communicate()[1]
    assert process.returncode == 1
    assert "57 of 60 lines answered, 3 failed" in told
    assert int(told.partition("Continuing: ")[2].split()[0]) >= 10
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert not answers.parent.exists()
    ids = [answer["custom_id"] for answer in read(out)]
    assert ids == [None if isinstance(each, str) else each["custom_id"] for each in lines]


def test_answers_are_those_of_the_engine(gguf, tmp_path):
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": CITY, "strict": True}}
    lines = [
        line("chat", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=12),
        line("text", COMPLETIONS, prompt="the other", temperature=0),
        line("stop", COMPLETIONS, prompt="the other", temperature=0, max_tokens=12, stop=None, stream=True, model="gpt"),
        line("schema", messages=[{"role": "user", "content": "A city?"}], response_format=schema, max_tokens=100),
        line("vector", EMBEDDINGS, input=["one", "one", "two"]),
        line("system", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=12),
    ]
    out = tmp_path / "out.jsonl"
    found = batch(gguf, write(tmp_path / "in.jsonl", lines), out, max_new_tokens=20)
    answers = {answer["custom_id"]: answer for answer in read(out)}
    assert all(answer["error"] is None and answer["response"]["status_code"] == 200 for answer in answers.values())
    options = {"temperature": 0.0, "seed": None, "stop": ()}
    with contextlib.closing(LlamacppEngine(gguf)) as engine:
        chat = "".join(c.text for c in engine.stream(lines[0]["body"]["messages"], max_new_tokens=12, **options))
        text = "".join(c.text for c in engine.stream("the other", max_new_tokens=20, **options))
    types = pytest.importorskip("openai").types
    types.chat.ChatCompletion.model_validate(answers["chat"]["response"]["body"], strict=True)
    types.Completion.model_validate(answers["text"]["response"]["body"], strict=True)
    types.CreateEmbeddingResponse.model_validate(answers["vector"]["response"]["body"], strict=True)
    assert text_of(answers["chat"]) == text_of(answers["system"]) == chat
    assert text_of(answers["text"]) == text
    assert text.startswith(text_of(answers["stop"]))
    assert answers["stop"]["response"]["body"]["model"] == "tiny"
    assert json.loads(text_of(answers["schema"]))["city"] in {"Rome", "Bonn"}
    vectors = [each["embedding"] for each in answers["vector"]["response"]["body"]["data"]]
    assert vectors[0] == vectors[1] != vectors[2]
    usages = [answer["response"]["body"]["usage"] for answer in answers.values()]
    assert found.prompt_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert found.completion_tokens == sum(usage.get("completion_tokens", 0) for usage in usages)
    assert (found.lines, found.succeeded, found.failed, found.engine) == (6, 6, 0, "llamacpp")
    assert found.tokens_per_second == pytest.approx(found.completion_tokens / found.seconds)
    assert " ".join(field.name for field in dataclasses.fields(found)) == KEYS


def test_each_line_has_a_seed_of_its_own_and_may_name_another(gguf, tmp_path):
    body = {"prompt": "the other", "max_tokens": 30, "temperature": 1.0}
    lines = [line("a", COMPLETIONS, **body), line("b", COMPLETIONS, **body), line("c", COMPLETIONS, **body, seed=5)]
    source = write(tmp_path / "in.jsonl", lines)
    texts = {}
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(texts)}.jsonl"
        batch(gguf, source, out, seed=seed, overwrite=True)
        texts.setdefault(seed, []).append([text_of(answer) for answer in read(out)])
    assert texts[0][0] == texts[0][1]
    assert len(set(texts[0][0])) == 3
    for first, second, same in zip(texts[0][0], texts[1][0], (False, False, True), strict=True):
        assert (first == second) == same
    batch(gguf, source, tmp_path / "system.jsonl", system="Be short")
    assert [text_of(answer) for answer in read(tmp_path / "system.jsonl")] == texts[0][0]  # texts have no system message
    chat = write(tmp_path / "chat.jsonl", [line("a"), line("b", messages=[{"role": "system", "content": "x"}])])
    without, with_system = (batch(gguf, chat, tmp_path / f"{s}.jsonl", system=s, greedy=True) for s in (None, "Be short"))
    assert with_system.prompt_tokens - without.prompt_tokens == len("system: Be short\n")


@pytest.mark.parametrize(
    ("text", "custom_id", "reason"),
    [
        ("{", None, "JSON"),
        ("[1]", None, "object"),
        ("\ud800", None, "UTF-8"),
        ("[" * 100_000, None, "JSON"),
        ('{"custom_id": "a", "x": NaN}', None, "NaN"),
        (json.dumps(line(None)), None, "custom_id is missing"),
        (json.dumps(line(5)), None, "not a text"),
        (json.dumps(line("a") | {"method": "GET"}), "a", "'GET'"),
        (json.dumps(line("a") | {"url": "/v1/images"}), "a", "'/v1/images'"),
        (json.dumps(line("a") | {"url": ["/v1"]}), "a", "url is"),
        (json.dumps(line("a") | {"body": "x"}), "a", "body"),
        (json.dumps(line("first")), "first", "line 1 has"),
    ],
)
def test_a_bad_line_says_what_is_wrong_with_it(text, custom_id, reason):
    tasks = read_tasks("\n".join([json.dumps(line("first")), "", text, ""]).encode(errors="surrogatepass"))
    assert [task.number for task in tasks] == [1, 3]
    assert tasks[0].error is None
    assert tasks[1].custom_id == custom_id
    assert reason in tasks[1].error[1]


def test_refused_lines_keep_their_place_and_the_rest_goes_on(gguf, tmp_path, capsys):
    lines = [
        line("long", COMPLETIONS, prompt="x" * 150),
        line("longer", COMPLETIONS, prompt="x" * 1000),
        line("wrong", messages="nonsense"),
        line("good"),
    ]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    words = ["batch", str(gguf), str(source), str(out), "--context", "128", "--max-new-tokens", "5", "--json"]
    assert run_program(words) == 1
    shown = capsys.readouterr()
    assert "1 of 4 lines answered, 3 failed" in shown.err
    assert " ".join(json.loads(shown.out)) == KEYS
    long, longer, wrong, good = read(out)
    assert "150 tokens" in long["error"]["message"]
    assert "128" in long["error"]["message"]
    assert "1000 tokens" in longer["error"]["message"]
    assert long["response"]["status_code"] == longer["response"]["status_code"] == wrong["response"]["status_code"] == 400
    assert long["response"]["body"]["error"]["message"] == long["error"]["message"]
    assert good["error"] is None
    assert run_program(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_another_model_file_or_option_does_not_continue(gguf, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [line(str(number), max_tokens=100) for number in range(60)])
    out, partial = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.partial"
    with start(gguf, source, out) as process:
        answers = partial / "answers.jsonl"
        wait_for(lambda: answers.is_file() and answers.read_bytes().count(b"\n") > 1, process)  # its head, and an answer
        process.terminate()
    kept = (partial / "answers.jsonl").read_bytes()
    with pytest.raises(OutputError, match="seed was 0, now 1"):
        batch(gguf, source, out, seed=1)
    with pytest.raises(OutputError, match="max_new_tokens was 256, now 9"):
        batch(gguf, source, out, max_new_tokens=9)
    with pytest.raises(OutputError, match="context was 512, now 256"):
        batch(gguf, source, out, context=256)
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=1)
    with pytest.raises(OutputError, match=r"model was \S+tiny.gguf, now \S+other.gguf"):
        batch(other, source, out)
    write(source, [line("other")])
    assert run_program(["batch", str(gguf), str(source), str(out)]) == 2
    assert "input was" in capsys.readouterr().err
    assert (partial / "answers.jsonl").read_bytes() == kept
    assert not out.exists()
    assert batch(gguf, source, out, overwrite=True).lines == 1
    assert [answer["custom_id"] for answer in read(out)] == ["other"]
    assert not partial.exists()


def test_two_runs_for_one_output_do_not_meet(gguf, tmp_path):
    source = write(tmp_path / "in.jsonl", [line(str(number), max_tokens=400) for number in range(30)])
    with start(gguf, source, tmp_path / "out.jsonl") as process:
        wait_for((tmp_path / ".out.jsonl.partial").is_dir, process)
        with pytest.raises(OutputError, match="another run"):
            batch(gguf, source, tmp_path / "out.jsonl")
        process.kill()


def test_nothing_to_do_and_bad_options_are_refused(gguf, tmp_path, capsys):
    source, out = write(tmp_path / "in.jsonl", [line("a")]), tmp_path / "out.jsonl"
    (tmp_path / "empty").write_bytes(b"\n \n")
    with pytest.raises(DataError, match="no request"):
        batch(gguf, tmp_path / "empty", out)
    assert run_program(["batch", str(gguf), str(tmp_path / "none"), str(out)]) == 2
    assert "No such file" in capsys.readouterr().err
    bad = [{"parallel": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"seed": -1}, {"engine": "gpu"}, {"device": "cpu"}]
    for options in [*bad, {"engine": "transformers", "parallel": 2}, {"quantize": "Q8_0"}]:
        with pytest.raises(OptionError):
            batch(gguf, source, out, **options)
    with pytest.raises(OptionError, match="replace the input"):
        batch(gguf, source, source, overwrite=True)
    assert not (tmp_path / ".out.jsonl.partial").exists()
    assert source.read_bytes()


def engines_of(process):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == process.pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_an_engine_that_dies_is_started_again_once_and_nothing_is_lost(gguf, tmp_path):
    source = write(tmp_path / "in.jsonl", [line(str(number), max_tokens=300) for number in range(40)])
    batch(gguf, source, tmp_path / "alone.jsonl")
    out, answers = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.partial" / "answers.jsonl"

    def kill_engine(process, more):
        size = answers.stat().st_size if answers.is_file() else 0
        wait_for(lambda: answers.is_file() and answers.stat().st_size > size + more, process)
        (engine,) = engines_of(process)
        os.kill(engine, signal.SIGKILL)

    with start(gguf, source, out, "--parallel", 1) as process:
        kill_engine(process, 0)
        kill_engine(process, 2000)
        told = process.communicate()[1]
    assert process.returncode == 3
    assert "started again" in told
    assert "killed" in told
    with start(gguf, source, out, "--parallel", 1) as process:
        kill_engine(process, 0)
        process.communicate()
    assert process.returncode == 0
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_a_server_behind_a_url_answers(gguf, tmp_path, monkeypatch):
    lines = [line(str(number), max_tokens=10, temperature=0) for number in range(12)]
    lines += [line("long", COMPLETIONS, prompt="x" * 600), line("vector", EMBEDDINGS, input="one")]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "deepen", "serve", str(gguf), "--port", "0", "--api-key", "k", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = ""
        for shown in process.stdout:
            said += shown
            if shown == "}\n":
                break
        url = json.loads(said)["url"]
        monkeypatch.setenv("DEEPEN_API_KEY", "k")
        found = batch("tiny", source, out, engine=url, parallel=4)
        with pytest.raises(OptionError, match="no model 'other'"):
            batch("other", source, tmp_path / "x.jsonl", engine=url)
        process.terminate()
        process.communicate()
    assert (found.lines, found.succeeded, found.failed, found.engine, found.energy_joules) == (14, 13, 1, "openai", None)
    answers = read(out)
    assert [answer["custom_id"] for answer in answers] == [each["custom_id"] for each in lines]
    assert "600 tokens" in answers[12]["error"]["message"]
    batch(gguf, source, tmp_path / "local.jsonl")
    assert [text_of(each) for each in answers[:12]] == [text_of(each) for each in read(tmp_path / "local.jsonl")[:12]]


class Grumpy(http.server.BaseHTTPRequestHandler):
    """Answers the second time it is asked for something; the text says how it failed the first time."""

    seen: set[bytes] = set()  # noqa: RUF012

    def do_GET(self):
        self.reply(200, {"data": [{"id": "grumpy"}]})

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        how = json.loads(asked)["prompt"]
        if asked in self.seen and how != "always":
            self.reply(200, {"id": str(time.time()), "created": time.time(), "choices": [{"text": how}], "usage": None})
        elif how == "break":
            self.close_connection = True
        else:
            self.reply(400 if how == "no" else 429 if how == "busy" else 503, {"error": {"message": how}})
        self.seen.add(asked)

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_what_fails_on_the_way_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["deepen.batch.engines"], "_DELAYS", (0.01, 0.02))
    lines = [line(how, COMPLETIONS, prompt=how) for how in ("busy", "break", "down", "no", "always")]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Grumpy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = batch("grumpy", source, out, engine=url)
        assert (found.succeeded, found.failed) == (3, 2)
        codes = [answer["error"] and answer["error"]["code"] for answer in read(out)]
        assert codes == [None, None, None, "http_400", "http_503"]
        first = out.read_bytes()
        batch("grumpy", source, out, engine=url, overwrite=True)
        assert read(out)[:3] == [json.loads(text) for text in first.splitlines()[:3]]
        monkeypatch.setattr(Grumpy, "do_POST", lambda handler: setattr(handler, "close_connection", True))
        with pytest.raises(NetworkError, match="connection failed"):
            batch("grumpy", source, tmp_path / "x.jsonl", engine=url)
        server.shutdown()


def test_a_line_may_demand_a_call(gguf, tmp_path):
    tool = {"type": "function", "function": {"name": "look", "parameters": CITY}}
    missing = {"type": "function", "function": {"name": "missing"}}
    lines = [line("call", tools=[tool], tool_choice="required"), line("none", tools=[tool], tool_choice=missing)]
    source = write(tmp_path / "in.jsonl", lines)
    outs = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for out in outs:
        batch(gguf, source, out)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    made, refused = read(outs[0])
    choice = made["response"]["body"]["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["function"]["name"]) == ("tool_calls", "look")
    assert json.loads(call["function"]["arguments"])["city"] in {"Rome", "Bonn"}
    assert "not among the tools" in refused["error"]["message"]


def test_the_engine_transformers_answers_plain_requests(gguf, tmp_path):
    pytest.importorskip("transformers")
    lines = [
        line("chat", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=8),
        line("text", COMPLETIONS, prompt="the other", temperature=0, max_tokens=8, stop="zz"),
        line("tools", messages=[{"role": "user", "content": "Hi"}], tools=[{}]),
        line("vector", EMBEDDINGS, input="x"),
        line("long", COMPLETIONS, prompt="x" * 600),
        line("wrong", messages="nonsense"),
    ]
    source = write(tmp_path / "in.jsonl", lines)
    found = batch(gguf, source, tmp_path / "out.jsonl", engine="transformers")
    assert (found.succeeded, found.failed, found.engine) == (2, 4, "transformers")
    answers = read(tmp_path / "out.jsonl")
    batch(gguf, write(tmp_path / "two.jsonl", lines[:2]), tmp_path / "other.jsonl")
    assert [text_of(each) for each in answers[:2]] == [text_of(each) for each in read(tmp_path / "other.jsonl")]
    assert "tools" in answers[2]["error"]["message"]
    assert "600 tokens" in answers[4]["error"]["message"]
