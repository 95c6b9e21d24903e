"""A headless Chromium, driven over its own debugging protocol through a pipe."""

from __future__ import annotations

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

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 30.0  # that anything may take on a busy machine


class Page:
    """A tab.

    Args:
        sending: Where commands go.
        receiving: Where answers and events come from.
    """

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending, self._receiving = sending, os.fdopen(receiving, "rb", buffering=0)
        self._rest, self._num_sent, self._session = b"", 0, None
        self.faults: list[str] = []  # what scripts threw and what the policy blocked
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """A command's result."""
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._sending, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._num_sent:
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.faults.append(json.dumps(answer["params"]))
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["result"]

    def _receive(self) -> Any:
        while b"\0" not in self._rest:
            more = self._receiving.read(1 << 16)
            assert more, "the browser has gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Show an address, and wait until it has run."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a script."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until a script has a value that is true."""
        give_up_at = time.monotonic() + SECONDS
        while not (value := self.run(condition)):
            assert time.monotonic() < give_up_at, (condition, self.run("document.body.innerText"), self.faults)
            time.sleep(0.05)
        return value

    def fill(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(text)}")

    def click(self, selector: str) -> None:
        """Click on something."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def text(self, selector: str) -> str:
        """What something says."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        """Look as on a screen of this size, in a light or a dark scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser that ends with the block.

    Args:
        folder: Where it keeps what it must.
    """
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-proxy-server"]
    command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'  # where it reads and writes; dash knows no fd above 9
    process = subprocess.Popen(
        ["bash", "-c", command, str(CHROMIUM), *options],
        pass_fds=(theirs_in, theirs_out),
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder)},
    )
    os.close(theirs_in)
    os.close(theirs_out)
    page = Page(ours_out, ours_in)
    try:
        yield page
    finally:
        page._session = None
        page.send("Browser.close")
        process.wait(SECONDS)
        os.close(ours_out)
        page._receiving.close()
