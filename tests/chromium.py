"""A page in headless Chromium, spoken to over its debugging pipe: no driver, no port."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_MOST_SECONDS = 60


class Page:
    """The page of a file, as a context manager; `problems` are its console's messages and what failed to load."""

    def __init__(self, path: Path, profile: Path):
        self.path, self.profile = path, profile
        self.problems: list[str] = []
        self._ids = itertools.count(1)

    def __enter__(self) -> Page:
        (commands, self._to), (self._from, answers) = os.pipe(), os.pipe()
        # Chromium reads descriptor 3 and writes 4; copied to free places first, lest one of the two lies in the other's
        shuffle = f'exec {{a}}<&{commands} {{b}}>&{answers}; exec 3<&$a 4>&$b {{a}}<&- {{b}}>&-; exec "$@"'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["bash", "-c", shuffle, "bash", PATH, *flags, f"--user-data-dir={self.profile}", "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._watch = threading.Timer(_MOST_SECONDS, self._process.kill)  # so that a read ends, with EOFError
        self._watch.start()
        self._answers = os.fdopen(self._from, "rb")
        self._session = None
        (target,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *error) -> None:
        self._watch.cancel()
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        self._answers.close()

    def _read(self) -> dict:
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise EOFError("Chromium ended")
            message += byte
        found = json.loads(message)
        if found.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(found["params"]))
        if found.get("method") == "Network.requestWillBeSent":
            url = found["params"]["request"]["url"]
            if not url.startswith(("data:", self.path.as_uri())):
                self.problems.append(f"the page asked for {url}")
        return found

    def call(self, method: str, **params) -> dict:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, width: int, *, dark: bool = False) -> None:
        """Load the file in a window `width` pixels wide; below 600 as on a phone."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=self.path.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def screenshot(self) -> bytes:
        """PNG of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"])
