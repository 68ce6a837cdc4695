"""A server of `recup serve` in a thread of this process, and requests to it as they are on the wire."""

import asyncio
import contextlib
import http.client
import json
import threading
import time
from urllib.parse import parse_qs, urlsplit

from recup.serve.server import serve


class Served:
    """A running server: its address, and what it answers."""

    def __init__(self, address):
        parts = urlsplit(address)
        self.address, self.port, self.host = address, parts.port, parts.hostname
        self.token = parse_qs(parts.query)["token"][0]

    def ask(self, path, *, method="GET", admitted=True, host=None, headers=None):
        """Send one request, its path untouched; returns (status, headers, body)."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", f"127.0.0.1:{self.port}" if host is None else host)
            if admitted:
                connection.putheader("Cookie", f"recup-{self.port}={self.token}")
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def json(self, path):
        """Return a document."""
        status, _, body = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def until(self, path, is_so, timeout_s=60):
        """Ask until the document is as wanted, and return it."""
        deadline = time.monotonic() + timeout_s
        while not is_so(document := self.json(path)):
            assert time.monotonic() < deadline, document
            time.sleep(0.05)
        return document


@contextlib.contextmanager
def serving(root, **options):
    """A server of a root, ended when left."""
    found, began, loops = [], threading.Event(), []

    async def main():
        loops.extend((asyncio.get_running_loop(), asyncio.current_task()))

        def started(address):
            found.append(address)
            began.set()

        with contextlib.suppress(asyncio.CancelledError):
            await serve(root, started=started, **options)

    def run():
        try:
            asyncio.run(main())
        finally:
            began.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(60)
    try:
        yield Served(found[0])
    finally:
        loops[0].call_soon_threadsafe(loops[1].cancel)
        thread.join(60)
