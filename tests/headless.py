"""A headless Chromium for tests of pages, driven over its debugging pipe: it needs no port and no further library."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_KEY_CODES = {
    "Backspace": 8, "Tab": 9, "Enter": 13, "End": 35, "Home": 36, "PageUp": 33, "PageDown": 34,
    "ArrowLeft": 37, "ArrowRight": 39,
}  # fmt: skip
"""Of keys that are no letter. Source: the Windows virtual key codes, which the protocol takes."""
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Tab:
    """One page, and what it reported so far: `messages` of the console and the log, `requests` by address."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        self._to, self._from = to_browser, from_browser
        self._unread = b""
        self._last_id = 0
        self._session: dict[str, str] = {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")

    def open(self, path: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        """Load a file and wait until it has loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._take()

    def value(self, expression: str) -> Any:
        """What a JavaScript expression, or the promise that it gives, comes to."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up, as from a keyboard: a letter, or a name as `KeyboardEvent.key` has it."""
        code = _KEY_CODES.get(key, ord(key[0].upper()))
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        pressed = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **pressed)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def wait_for(self, expression: str, timeout_s: float = 10.0) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + timeout_s
        while not self.value(expression):
            assert time.monotonic() < end, f"never came: {expression}"
            time.sleep(0.01)

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.value("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._take()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _take(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            block = os.read(self._from, 1 << 20)
            assert block, "the browser ended"
            self._unread += block
        line, self._unread = self._unread.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.messages.append(json.dumps(parameters))
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case str(event):
                self._events.append(event)
        return message


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A browser with one page; the test is skipped where there is none."""
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        pytest.skip("no Chromium")
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--no-first-run"]
    options += ["--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    # The pipe has to be descriptors 3 and 4, which may be taken here: a shell moves them.
    move = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    with subprocess.Popen(
        ["bash", "-c", move, "bash", browser, *options],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(to_read)
        os.close(from_write)
        try:
            yield Tab(to_write, from_read)
        finally:
            os.close(to_write)
            os.close(from_read)
            process.terminate()
            process.wait(timeout=30)
