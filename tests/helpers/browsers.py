"""A real browser without a window, driven over Chromium's DevTools protocol."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
from players import Client

from diffjax.run import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def found() -> str | None:
    """The path of a Chromium or Chrome, if there is one on PATH."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser of its own; close it."""

    def __init__(self, browser: str, address: str, profile: Path):
        flags = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--disable-gpu"]
        flags += ["--no-first-run", "--disable-extensions", "--disable-dev-shm-usage"]
        self._process = subprocess.Popen(
            [browser, *flags, f"--user-data-dir={profile}", "about:blank"],
            env={**os.environ, "HOME": str(profile)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port, target = self._door(profile / "DevToolsActivePort")
            # A request with an Origin would be another page's.
            self._client = Client(int(port), Origin=None).open(target)
            self._number, self._session = itertools.count(1), None
            made = self._call("Target.createTarget", url=address)["targetId"]
            words = {"targetId": made, "flatten": True}
            self._session = self._call("Target.attachToTarget", **words)["sessionId"]
            self._call("Page.bringToFront")
        except BaseException:
            self.close()
            raise

    def _door(self, file: Path, seconds: float = 60.0) -> list[str]:
        """The port and the path that the browser listens at: it writes them when it does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                port, target = file.read_text().split()
                return [port, target]
            assert self._process.poll() is None, f"the browser left: {self._process.returncode}"
            time.sleep(0.05)
        raise AssertionError("the browser never listened")

    def _call(self, method: str, **parameters):
        number = next(self._number)
        words = {"id": number, "method": method, "params": parameters}
        self._client.send(
            json.dumps(words | ({"sessionId": self._session} if self._session else {}))
        )
        while True:
            opcode, payload = self._client.frame()
            if opcode != websocket.TEXT:
                continue
            answer = json.loads(payload)
            if answer.get("id") == number:  # what else comes are events
                assert "result" in answer, answer
                return answer["result"]

    def value(self, expression: str):
        """What an expression of JavaScript is in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60.0):
        """Waits until an expression is true; returns it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.value(expression):
                return value
            time.sleep(0.02)
        raise AssertionError(f"never: {expression}")

    def canvas(self) -> np.ndarray:
        """What is on the page's canvas, uint8 [H, W, 3]."""
        height, width, pixels = self.value(
            '(() => { const c = document.querySelector("canvas"), [h, w] = [c.height, c.width];'
            'const { data } = c.getContext("2d").getImageData(0, 0, w, h);'
            'return [h, w, btoa(Array.from(data, (x) => String.fromCharCode(x)).join(""))]; })()'
        )
        rgba = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)
        return rgba[..., :3]

    def key(self, kind: str, code: str, number: int) -> None:
        """kind: "keyDown" or "keyUp", as a keyboard would; number: the key's, of Windows."""
        words = {"type": kind, "code": code, "windowsVirtualKeyCode": number}
        self._call("Input.dispatchKeyEvent", **words)

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
