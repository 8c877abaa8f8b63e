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


_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " "), "ArrowDown": (40, ""), "End": (35, "")}


class Page:
    """A page in the browser.

    Args:
        call: sends a command and returns its result.
        events: what the browser told so far, once `watch` was called.
    """

    def __init__(self, call, events):
        self.call = call
        self.events = events

    def watch(self):
        """Let the browser tell of requests, of the console and of exceptions."""
        for domain in ("Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", {})

    def complaints(self):
        """Errors and warnings in the console, and exceptions."""
        return [
            event["params"]
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in {"error", "warning", "assert"})
            or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in {"error", "warning"})
        ]

    def requests(self):
        """The addresses of all requests."""
        return [each["params"]["request"]["url"] for each in self.events if each["method"] == "Network.requestWillBeSent"]

    def open(self, url):
        """Go to another page."""
        self.call("Page.navigate", {"url": url})
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def look(self, *, width=1280, height=900, dark=False):
        """Be a screen of this size, in light or dark."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", sizes)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [feature]})

    def click(self, selector):
        """Press the mouse in the middle of an element, as a person would."""
        at = self.center(selector) | {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", at | {"type": "mousePressed"})
        self.call("Input.dispatchMouseEvent", at | {"type": "mouseReleased"})

    def center(self, selector):
        """The middle of an element, brought into view."""
        return self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', behavior:"
            " 'instant'}); const b = e.getBoundingClientRect(); return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )

    def drop(self, selector, file):
        """Drag a file from the desktop onto an element."""
        at = self.center(selector) | {"data": {"items": [], "files": [str(file)], "dragOperationsMask": 1}}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", at | {"type": kind})

    def choose(self, selector, file):
        """Give a file input a file, as its dialog does."""
        found = self.call("Runtime.evaluate", {"expression": f"document.querySelector({json.dumps(selector)})"})
        self.call("DOM.setFileInputFiles", {"files": [str(file)], "objectId": found["result"]["objectId"]})

    def press(self, key, *, shift=False):
        """Press a key by its name."""
        number, text = _KEYS[key]
        event = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": number, "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", event | {"type": "keyDown", **({"text": text} if text else {})})
        self.call("Input.dispatchKeyEvent", event | {"type": "keyUp"})

    def tab_to(self, selector, most=60):
        """Press Tab until the focus is on an element."""
        for _ in range(most):
            if self.evaluate(f"document.activeElement?.matches({json.dumps(selector)})"):
                return
            self.press("Tab")
        raise AssertionError(f"Tab never came to {selector}")

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
        self.press("Enter")

    def screenshot(self, file, *, whole=False):
        """Write what is seen, or the whole page, as a PNG."""
        options = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.call("Page.getLayoutMetrics", {})["cssContentSize"]
            width = self.evaluate("innerWidth")  # without a scrollbar, which is not in the picture
            options["clip"] = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", options)["data"]))


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
    numbers, session, told = itertools.count(1), {}, []
    with os.fdopen(commands, "wb") as sent, os.fdopen(answers, "rb") as received:

        def call(method, parameters):
            number = next(numbers)
            sent.write(json.dumps({"id": number, "method": method, "params": parameters} | session).encode() + b"\0")
            sent.flush()
            while True:
                text = b"".join(iter(lambda: received.read(1) or b"\0", b"\0"))
                assert text, f"the browser ended:\n{(profile / 'log').read_text()}"
                message = json.loads(text)
                if "method" in message:
                    told.append(message)
                if message.get("id") == number:
                    assert "result" in message, message
                    return message["result"]

        try:
            target = call("Target.createTarget", {"url": url})["targetId"]
            session["sessionId"] = call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
            page = Page(call, told)
            page.wait("location.href !== 'about:blank' && document.readyState !== 'loading' && document.body !== null")
            yield page
            session.clear()
            call("Browser.close", {})
            process.wait(30)
        finally:
            process.kill()
            process.wait()
