"""Marble problems whose answers are known, and a real HTTP endpoint that answers what is asked about them, with faults."""

import contextlib
import http.server
import json
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter

FAULTS = ("429", "429 later", "500", "503", "silence", "reset", "cut", "cut chunk", "no JSON", "no choices", "null", "error")


def numbers(crate):
    """Red and blue marbles of a crate."""
    return 2 * crate + 11, 3 * crate + 40


def problem(crate):
    red, blue = numbers(crate)
    question = f"Crate{crate} holds {red} red marbles. A child adds {blue} blue ones. How many marbles are in Crate{crate}?"
    return {"question": question, "answer": f"{red} + {blue} = <<{red}+{blue}={red + blue}>>{red + blue}\n#### {red + blue}"}


def rephrased(crate):
    red, blue = numbers(crate)
    return f"After {blue} blue marbles join the {red} red ones that lay there before, what is the total inside Crate{crate}?"


def truth(question):
    """What is asked for, computed from the crate's number alone."""
    crate = int(re.search(r"Crate(\d+)", question)[1])
    red, blue = numbers(crate)
    if "unknown" not in question:
        return red + blue
    return red if not re.search(rf"\b{red}\b", question) else blue


def reply(prompt):
    """What a good model says."""
    crate = int(re.search(r"Crate(\d+)", prompt)[1])
    if prompt.startswith("Write this problem"):
        return rephrased(crate)
    if prompt.startswith("Here is a question"):
        return f"There are {sum(numbers(crate))} marbles in Crate{crate}."
    return f"Step by step, it comes to this.\nThe answer is: {truth(prompt)}"


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers `/v1/models` and `/v1/chat/completions`.

    Args:
        say: text for a prompt, or a whole choice.
        fault: the fault for the n-th time (from 0) that a prompt is sent, or None.
        seconds: that each answer takes.
        port: to listen at.
        usage: whether tokens are counted.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, say=reply, fault=lambda prompt, time: None, seconds=0.0, port=0, usage=True):
        super().__init__(("127.0.0.1", port), _Handler)
        self.say, self.fault, self.seconds, self.usage = say, fault, seconds, usage
        self.lock = threading.Lock()
        self.sent, self.answered, self.faults, self.bodies, self.keys = Counter(), Counter(), Counter(), [], []
        self.open = self.most_open = 0
        self.times = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # a client that was killed
            super().handle_error(request, client_address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._send(200, {"object": "list", "data": [{"id": "marbles", "object": "model"}]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            server.open += 1
            server.most_open = max(server.most_open, server.open)
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.times.append(time.monotonic())
            before = server.sent[prompt]
            server.sent[prompt] += 1
        try:
            time.sleep(server.seconds)
            fault = server.fault(prompt, before)
            if fault:
                server.faults[fault] += 1
                return self._fail(fault)
            said = server.say(prompt)
            if not isinstance(said, dict):
                said = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            usage = {"usage": {"prompt_tokens": 10, "completion_tokens": 5}} if server.usage else {}
            with server.lock:
                server.answered[prompt, body["seed"]] += 1
            self._send(200, {"object": "chat.completion", "choices": [{"index": 0, **said}], **usage})
        finally:
            with server.lock:
                server.open -= 1

    def _send(self, status, content, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, fault):
        choice = {"message": {"content": "The answer is: 7"}, "finish_reason": "stop"}
        half = json.dumps({"choices": [choice]}).encode()[:40]
        match fault:
            case "429" | "429 later":
                self._send(429, {"error": {"message": "too many"}}, **({"Retry_After": "1"} if "later" in fault else {}))
            case "400" | "401" | "500" | "503":
                self._send(int(fault), {"error": {"message": f"scripted {fault}"}})
            case "silence":
                time.sleep(1.5)
                self.close_connection = True
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.wfile.close()
                self.wfile = open("/dev/null", "wb")  # noqa: SIM115, PTH123
            case "cut":
                self.send_response(200)
                self.send_header("Content-Length", "400")
                self.end_headers()
                self.wfile.write(half)
                self.close_connection = True
            case "cut chunk":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(half), half))
                self.close_connection = True
            case "no JSON":
                self._send(200, half)
            case "no choices":
                self._send(200, {"choices": []})
            case "null":
                self._send(200, b"null")
            case "error":
                self._send(200, {"error": {"message": "overloaded"}})
