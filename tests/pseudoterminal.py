"""A program in a pseudo-terminal of its own: keys go in, what a user would see comes out."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|\x1b\][^\x07]*\x07")
_SECONDS = 60.0


class PseudoTerminal:
    """A running program. `output` is all that it wrote, with its escape sequences."""

    def __init__(self, words, *, rows=24, columns=80, **environment):
        self.master, slave = os.openpty()
        self._size(slave, rows, columns)
        self.process = subprocess.Popen(
            list(map(str, words)),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm-256color"} | environment,
            preexec_fn=lambda: os.login_tty(slave),
        )
        os.close(slave)
        self.output = ""
        self._seen = 0
        self._bytes = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def send(self, text):
        """Press keys; a paste may be larger than what the terminal takes at once."""
        data = text.encode()
        while data:
            self._read(0.0)
            if select.select([], [self.master], [], 1.0)[1]:
                data = data[os.write(self.master, data[:512]) :]

    def expect(self, text, seconds=_SECONDS):
        """Wait until the program has shown a text, or what matches a pattern, after all that was expected before."""
        pattern = text if isinstance(text, re.Pattern) else re.compile(re.escape(text))
        end = time.monotonic() + seconds
        while (match := pattern.search(self.shown[self._seen :])) is None:
            if not self._read(0.2) and (self.process.poll() is not None or time.monotonic() > end):
                raise AssertionError(f"{pattern.pattern!r} never came; there was:\n{self.shown[self._seen :]}")
        before = self.shown[self._seen : self._seen + match.start()]
        self._seen += match.end()
        return before

    @property
    def shown(self):
        """What was written, without escape sequences."""
        return _ESCAPES.sub("", self.output)

    def resize(self, rows, columns):
        """As when a user drags the window's corner; the system sends SIGWINCH."""
        self._size(self.master, rows, columns)

    def wait(self):
        """The exit code, once the program has ended."""
        end = time.monotonic() + _SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.wait(1)

    def kill(self):
        """As when the machine fails."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _read(self, seconds):
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            self._bytes += os.read(self.master, 1 << 16)
        except OSError:  # the program is gone
            return False
        self.output = self._bytes.decode(errors="replace")
        return True

    @staticmethod
    def _size(descriptor, rows, columns):
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
