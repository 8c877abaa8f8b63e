"""`deepen serve` in a process of its own, and plain HTTP to ask it."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit


@contextlib.contextmanager
def serving(gguf, *words):
    """A server in a process of its own, and what `--json` says of it."""
    command = [sys.executable, "-m", "deepen", "serve", str(gguf), "--port", "0", "--json", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            said = ""
            for line in process.stdout:
                said += line
                if line == "}\n":
                    break
            assert said, process.stderr.read()
            yield process, json.loads(said)
        finally:
            process.terminate()
            process.stdout.close()
            process.stderr.close()


def ask(address, method, path, body=None, **headers):
    """Plain HTTP: the status, the headers and the text of the answer."""
    connection = http.client.HTTPConnection(urlsplit(address["url"]).netloc, timeout=300)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), given)
    with contextlib.closing(connection):
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read().decode(errors="replace")


def engine_of(process):
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == process.pid and state != "Z":
                return int(stat.parent.name)
    raise AssertionError("no engine")
