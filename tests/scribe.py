"""A server of OpenAI's protocol that says what a function tells it to say, in small pieces, and keeps what it was asked."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Scribe:
    """`says(text, number)` is what is answered to the last message's text in the request of this number, from 0.

    It may be an integer, which is the HTTP status of a failure. `seconds` is how long an answer takes.
    """

    def __init__(self, says, seconds=0.0, models=({"id": "scribe"},)):
        self.says, self.seconds, self.models = says, seconds, list(models)
        self.asked, self.open, self.most_open = [], 0, 0
        lock = threading.Lock()
        scribe = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, json.dumps({"data": scribe.models}).encode(), "application/json")

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path.endswith("/chat/completions"), self.path
                with lock:
                    number = len(scribe.asked)
                    scribe.asked.append(body)
                    scribe.open += 1
                    scribe.most_open = max(scribe.most_open, scribe.open)
                time.sleep(scribe.seconds)
                said = scribe.says(body["messages"][-1]["content"], number)
                with lock:
                    scribe.open -= 1
                if isinstance(said, int):
                    self.reply(said, b'{"error": {"message": "no"}}', "application/json")
                    return
                pieces = [said[start : start + 7] for start in range(0, len(said), 7)]
                events = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
                events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                events.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(pieces)}})
                text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
                self.reply(200, text.encode(), "text/event-stream")

            def reply(self, status, body, kind):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def texts(self):
        """What the requests' last messages say."""
        return [body["messages"][-1]["content"] for body in self.asked]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
