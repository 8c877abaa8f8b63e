"""A Hub id, against a real server on loopback: only config and headers are read, and no network is a clear answer."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deepen.checkpoint.hub import is_hub_id
from families import make_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path):
    """Serves one repository as the Hub does, and counts the bytes of every file it hands out."""
    folder = make_checkpoint("llama", tmp_path / "served", hidden_size=256, intermediate_size=512)
    served: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body):
            if self.path == "/":
                return self.send(200, b"", {})
            prefix = "/org/model/resolve/"
            name = self.path.removeprefix(prefix).partition("/")[2].partition("?")[0] if self.path.startswith(prefix) else ""
            if self.path.startswith("/api/models/org/model"):
                files = [{"rfilename": file.name} for file in folder.iterdir()]
                return self.send(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": files}).encode(), {})
            if self.path.startswith("/org/failing/"):
                return self.send(403, b"", {})
            file = folder / name
            if not name or not file.is_file():
                code = "EntryNotFound" if name else "RepoNotFound"
                return self.send(404, b"", {"X-Error-Code": code})
            data = file.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
            status = 200
            if requested := self.headers.get("Range"):
                start, _, end = requested.removeprefix("bytes=").partition("-")
                headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
                data, status = data[int(start) : int(end) + 1], 206
            if body:
                served[name] = served.get(name, 0) + len(data)
            return self.send(status, data if body else b"", headers, length=len(data))

        def send(self, status, data, headers, length=None):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", served, folder
    server.shutdown()
    server.server_close()


def deepen(*words, endpoint, cache, **environment):
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    unset = {key: value for key, value in os.environ.items() if key.lower() not in {"http_proxy", "https_proxy", "all_proxy"}}
    return subprocess.run([sys.executable, "-m", "deepen", *words], capture_output=True, text=True, env=unset | settings)


def test_planning_a_hub_model_reads_no_weights(hub, tmp_path):
    endpoint, served, folder = hub
    run = deepen("plan", "org/model", "--drop", "2", "--json", endpoint=endpoint, cache=tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    local = deepen("plan", str(folder), "--drop", "2", "--json", endpoint=endpoint, cache=tmp_path / "cache")
    remote, here = json.loads(run.stdout), json.loads(local.stdout)
    assert remote["parameters"] == here["parameters"]
    assert {k: v for k, v in remote.items() if k not in {"model", "disk_bytes"}} == {
        k: v for k, v in here.items() if k not in {"model", "disk_bytes"}
    }
    size = (folder / "model.safetensors").stat().st_size
    assert set(served) == {"config.json", "model.safetensors"}
    assert served["model.safetensors"] <= 200_000 < size / 10


def test_an_unknown_repository_and_no_network_are_exit_code_2(hub, tmp_path):
    endpoint, _, _ = hub
    offline = {"HF_HUB_OFFLINE": "1"}
    cases = {
        "no such repository": deepen("plan", "org/other", "--drop", "2", endpoint=endpoint, cache=tmp_path),
        "cannot be reached": deepen("plan", "org/model", "--drop", "2", endpoint="http://127.0.0.1:9", cache=tmp_path),
        "HF_HUB_OFFLINE": deepen("plan", "org/model", "--drop", "2", endpoint=endpoint, cache=tmp_path, **offline),
    }
    for message, run in cases.items():
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr
        assert "Traceback" not in run.stderr
    out = tmp_path / "out"
    run = deepen("scale", "org/model", str(out), "--drop", "2", endpoint="http://127.0.0.1:9", cache=tmp_path)
    assert run.returncode == 2
    assert not out.exists()


def test_a_hub_that_fails_on_the_way_is_exit_code_3(hub, tmp_path):
    endpoint, _, _ = hub
    run = deepen("plan", "org/failing", "--drop", "2", endpoint=endpoint, cache=tmp_path)
    assert (run.returncode, "failed or the connection broke" in run.stderr) == (3, True), run.stderr


def test_a_full_disk_is_not_taken_for_the_network(monkeypatch):
    import deepen.checkpoint.hub as module

    monkeypatch.setattr(module, "reachable", lambda: True)
    with pytest.raises(OSError, match="full"), module._hub("org/model"):
        raise OSError(28, "the disk is full")


@pytest.mark.parametrize(
    ("model", "expected"),
    [("org/name", True), ("org/name@main", True), ("name", False), ("./a/b", False), ("/a/b", False), ("a/b.gguf", False)],
)
def test_what_looks_like_a_hub_id(model, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(model) is expected
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not is_hub_id("org/name")
