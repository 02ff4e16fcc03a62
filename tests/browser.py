"""A real browser, Debian's chromium without a window, driven by its own protocol over one web socket."""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

WAIT_S = 120.0  # other processes share the machine


@dataclass
class Browser:
    """One page of a browser, and what happened on it.

    Args:
        socket: Web socket of the page.
        errors: Errors, uncaught exceptions and refused loads.
        requests: Addresses that were asked for, but for those within the page.
        dialogs: Texts of `alert` and its like: nobody may open one.
    """

    socket: websocket.WebSocket
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    number: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and note the events before its answer."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def open(self, file: Path, width: int, height: int, *, dark: bool) -> None:
        """Open a file, in a window of some size, and wait until all its charts are drawn."""
        self.errors, self.requests, self.dialogs = [], [], []
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.wait("document.readyState === 'complete'")
        self.value("dispatchEvent(new Event('beforeprint'))")  # draws what is below the window too
        self.wait("[...document.querySelectorAll('.plot')].every((place) => place.querySelector('svg, canvas'))")

    def value(self, expression: str) -> Any:
        """Return the value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + WAIT_S
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}; errors: {self.errors}"
            time.sleep(0.05)

    def picture(self, file: Path) -> None:
        """Write a picture of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        file.write_bytes(base64.b64decode(data))

    def _note(self, method: str | None, of: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(of["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled" if of["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(of["args"])[:500])
            case "Log.entryAdded" if of["entry"]["level"] in ("error", "warning"):
                self.errors.append(of["entry"]["text"])
            case "Network.requestWillBeSent" if not of["request"]["url"].startswith(("data:", "blob:")):
                self.requests.append(of["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(of["message"])
                self.socket.send(
                    json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
                )


def executable() -> str | None:
    """Return the browser of this machine; None: there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Start a browser, and end it."""
    program = executable()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--remote-allow-origins=*"]
        process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            socket = websocket.create_connection(_page_of(Path(folder)), timeout=WAIT_S)
            browser = Browser(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                browser.call(f"{domain}.enable")
            yield browser
            socket.close()
        finally:
            process.terminate()
            process.wait()


def _page_of(folder: Path) -> str:
    """Return the address of the first page's socket."""
    import urllib.request

    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            port = (folder / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise TimeoutError("the browser has not started")
