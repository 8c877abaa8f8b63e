"""A headless Chromium, driven over the pipe of its own DevTools protocol: no driver, no port, no package.

Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import time

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,900",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
# Chromium reads commands from descriptor 3 and answers on 4
_START = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"


class Page:
    """A page in the browser.

    Args:
        call: sends a command and returns its result.
    """

    def __init__(self, call):
        self.call = call

    def evaluate(self, expression):
        """The value of a JavaScript expression; a promise is waited for."""
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        found = self.call("Runtime.evaluate", options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression, seconds=120):
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.1)
        return value

    def type(self, text):
        """Type into what has the focus."""
        self.call("Input.insertText", {"text": text})

    def enter(self):
        """Press the Enter key."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        self.call("Input.dispatchKeyEvent", key | {"type": "keyDown"})
        self.call("Input.dispatchKeyEvent", key | {"type": "keyUp"})

    def screenshot(self, file):
        """Write what is seen as a PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", {"format": "png"})["data"]))


@contextlib.contextmanager
def open_page(url, profile):
    """Open a page in a browser that keeps everything in the folder `profile`."""
    assert PROGRAM, "Chromium is missing: apt-get install chromium"
    theirs, commands = os.pipe()
    answers, theirs_too = os.pipe()
    given = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (theirs, theirs_too)]
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    words = [sys.executable, "-c", _START, *map(str, given), PROGRAM, *_OPTIONS, *sandbox, f"--user-data-dir={profile}"]
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(words, pass_fds=given, stdout=log, stderr=log)
    for descriptor in (theirs, theirs_too, *given):
        os.close(descriptor)
    numbers, session = itertools.count(1), {}
    with os.fdopen(commands, "wb") as sent, os.fdopen(answers, "rb") as received:

        def call(method, parameters):
            number = next(numbers)
            sent.write(json.dumps({"id": number, "method": method, "params": parameters} | session).encode() + b"\0")
            sent.flush()
            while True:
                text = b"".join(iter(lambda: received.read(1) or b"\0", b"\0"))
                assert text, f"the browser ended:\n{(profile / 'log').read_text()}"
                message = json.loads(text)
                if message.get("id") == number:  # the others are events
                    assert "result" in message, message
                    return message["result"]

        try:
            target = call("Target.createTarget", {"url": url})["targetId"]
            session["sessionId"] = call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
            page = Page(call)
            page.wait("location.href !== 'about:blank' && document.readyState !== 'loading' && document.body !== null")
            yield page
            session.clear()
            call("Browser.close", {})
            process.wait(30)
        finally:
            process.kill()
            process.wait()
