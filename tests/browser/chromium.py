"""A page in headless Chromium, driven over its DevTools protocol.

`chromium` gives a `Page` (skipping where no Chromium is installed): it goes to an address,
evaluates, takes pictures, and remembers every console message, exception and request.
"""

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def installed():
    """Path of a Chromium, or None; $RECUP_CHROMIUM names another."""
    return os.environ.get("RECUP_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class WebSocket:
    """Texts to and from a server, as far as the protocol is needed here."""

    def __init__(self, address):
        parts = urlsplit(address)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=60)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in self._file.readline()
        while self._file.readline().strip():
            pass

    def send(self, text):
        data = text.encode()
        size = struct.pack(">BQ", 0x80 | 127, len(data))
        self._socket.sendall(b"\x81" + size + bytes(4) + data)  # masked with zeros

    def receive(self):
        whole = b""
        while True:
            first, size = self._file.read(2)
            if size >= 126:
                size = (
                    struct.unpack(">H", self._file.read(2))[0]
                    if size == 126
                    else struct.unpack(">Q", self._file.read(8))[0]
                )
            data = self._file.read(size)
            if first & 0x0F in (0, 1):
                whole += data
                if first & 0x80:
                    return whole.decode()

    def close(self):
        self._file.close()
        self._socket.close()


class Page:
    """One tab."""

    def __init__(self, web_socket):
        self._socket, self._count = web_socket, 0
        self.messages, self.requests = [], []

    def call(self, method, **arguments):
        """Call a method of the protocol."""
        self._count += 1
        number = self._count
        self._socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            told = json.loads(self._socket.receive())
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self._note(told)

    def _note(self, told):
        method, given = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.messages.append(("exception", given["exceptionDetails"].get("exception", {}).get("description", "")))
        elif method == "Runtime.consoleAPICalled":
            self.messages.append((given["type"], " ".join(str(each.get("value")) for each in given["args"])))
        elif method == "Log.entryAdded":
            self.messages.append((given["entry"]["level"], given["entry"]["text"]))
        elif method == "Page.javascriptDialogOpening":
            self.messages.append(("dialog", given["message"]))

    def go(self, address):
        """Go to an address."""
        self.call("Page.navigate", url=address)

    def value(self, script):
        """Evaluate and return a plain value; a promise is waited for."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, script, timeout_s=60):
        """Evaluate until the value is true, and return it."""
        deadline = time.monotonic() + timeout_s
        while not (found := self._value_or_none(script)):
            assert time.monotonic() < deadline, (script, self.messages)
            time.sleep(0.05)
        return found

    def _value_or_none(self, script):
        with contextlib.suppress(AssertionError, RuntimeError):  # the page is about to be another
            return self.value(script)

    def picture(self, path):
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def shade(self, name):
        """Prefer a light or dark page."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])


@contextlib.contextmanager
def chromium(width=1360, height=1000):
    """A new tab of a Chromium of its own."""
    path = installed()
    if path is None:
        pytest.skip("no Chromium is installed")
    directory = tempfile.mkdtemp(prefix="recup-chromium-")
    command = [
        path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--remote-debugging-port=0", f"--user-data-dir={directory}", "about:blank",
    ]  # fmt: skip
    with open(os.path.join(directory, "log"), "w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            port_file = Path(directory, "DevToolsActivePort")
            deadline = time.monotonic() + 60
            while not (port_file.exists() and "\n" in port_file.read_text()):
                assert time.monotonic() < deadline and process.poll() is None, Path(log.name).read_text()
                time.sleep(0.05)
            port = int(port_file.read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                tab = next(each for each in json.load(answer) if each["type"] == "page")
            web_socket = WebSocket(tab["webSocketDebuggerUrl"])
            page = Page(web_socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            yield page
            web_socket.close()
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(directory, ignore_errors=True)
