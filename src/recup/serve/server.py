"""The server behind `recup serve`: who may ask, what is answered, and where it listens.

Covers the address with its token, the rules every request must pass, and the pages.  It
answers GET and HEAD alone, to who shows the token, under a host name that is this machine's:
a page of another site can neither read it nor have a browser ask it something that matters.
Pages hold no data; their scripts fetch it as JSON and set it as text.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import secrets
import signal
import socket
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from recup.errors import RecupError, RunNotFound
from recup.serve.live import LiveRun
from recup.serve.reports import Reports
from recup.serve.root import RunsRoot

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'none'; "
    "sandbox allow-scripts allow-downloads allow-modals"
)
"""A report is one file with its scripts in it: it runs walled off, without the cookie and without a network."""
_ASSETS = {
    name: kind
    for kind, names in {
        "text/css; charset=utf-8": ("pages.css",),
        "text/javascript; charset=utf-8": ("shared.js", "list.js", "run.js", "live.js", "charts.js"),
        "image/svg+xml": ("icon.svg",),
    }.items()
    for name in names
}
_FOLLOWED = 6
"""Growing runs kept in memory; of more, the one not looked at for longest is let go."""


class _Context:
    """What requests share."""

    def __init__(self, root: RunsRoot, token: str, hosts: frozenset[str], port: int):
        self.root = root
        self.token = token
        self.hosts = hosts
        self.cookie = f"recup-{port}"  # cookies are of a host, whatever its port
        self.reports = Reports()
        self.readers = ThreadPoolExecutor(4, thread_name_prefix="recup-read")
        self._live: OrderedDict[Path, LiveRun] = OrderedDict()

    def live(self, path: Path) -> LiveRun:
        """Return the reader of a growing run."""
        found = self._live.get(path)
        if found is None:
            found = self._live[path] = LiveRun(path)
            while len(self._live) > _FOLLOWED:
                self._live.popitem(last=False)
        self._live.move_to_end(path)
        return found

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what reads files without holding up other requests."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *arguments)


class _Handler(RequestHandler):
    """What holds of every request."""

    SUPPORTED_METHODS = ("GET", "HEAD")
    policy = _PAGE_POLICY
    context: _Context

    def initialize(self, context: _Context) -> None:
        self.context = context

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Content-Security-Policy", self.policy)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Type", "text/plain; charset=utf-8")

    def prepare(self) -> None:
        if not _is_host_known(self.request.host, self.context.hosts):
            self.refuse(403, "This name is not one of the server's. Use the address `recup serve` printed.")
        elif not self._is_admitted():
            self.refuse(403, "Open the address `recup serve` printed: it holds the token.")

    def _is_admitted(self) -> bool:
        shown = (self.get_query_argument("token", ""), self.get_cookie(self.context.cookie, "") or "")
        token = self.context.token.encode()
        return any(hmac.compare_digest(each.encode(errors="replace"), token) for each in shown)

    def refuse(self, status: int, reason: str) -> None:
        """Answer with an error in words."""
        self.set_status(status)
        self.set_header("Content-Security-Policy", _PAGE_POLICY)
        self.finish(f"{status}: {reason}\n")

    def write_error(self, status_code: int, **_: Any) -> None:
        words = {404: "There is nothing here.", 405: "This server only answers GET and HEAD."}
        self.finish(f"{status_code}: {words.get(status_code, 'The request failed.')}\n")

    def send_json(self, document: Any) -> None:
        """Answer with a document; `<` is escaped, should something ever take it for HTML."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(json.dumps(document, default=str).replace("<", "\\u003c"))

    async def run_named(self, name: str) -> Path | None:
        """Return the directory of a run; None, and the request is answered, where there is none."""
        try:
            found: Path = await self.context.in_thread(self.context.root.find, name)
            return found
        except RunNotFound as reason:
            self.refuse(404, str(reason))
            return None

    async def head(self, *arguments: str) -> None:
        """Answer as GET does, without the body."""
        await self.get(*arguments)

    async def get(self, *arguments: str) -> None:
        """Answer that there is nothing."""
        self.refuse(404, "There is nothing here.")


class _Page(_Handler):
    """A page that is the same for everybody; with the token in its address it leaves the cookie and goes on."""

    def initialize(self, context: _Context, name: str) -> None:  # type: ignore[override]
        super().initialize(context)
        self.name = name

    async def get(self, *arguments: str) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        if self.get_query_argument("token", ""):
            # A redirect from elsewhere would not carry a strict cookie; a page of our own does.
            cookie = self.context.cookie
            self.set_cookie(cookie, self.context.token, httponly=True, samesite="Strict", path="/")
            self.finish(_asset("enter.html").decode())
            return
        self.finish(_asset(self.name).decode())


class _Asset(_Handler):
    async def get(self, *arguments: str) -> None:
        kind = _ASSETS.get(arguments[0])
        if kind is None:
            self.refuse(404, "There is nothing here.")
            return
        self.set_header("Content-Type", kind)
        self.finish(_asset(arguments[0]))


class _Runs(_Handler):
    async def get(self, *arguments: str) -> None:
        listing = await self.context.in_thread(self.context.root.listing)
        if self.get_query_argument("version", "") == str(listing["version"]) and listing["is_complete"]:
            del listing["runs"]
        self.send_json(listing)


class _Live(_Handler):
    async def get(self, *arguments: str) -> None:
        path = await self.run_named(arguments[0])
        if path is None:
            return
        since, prefix = (_whole(self.get_query_argument(name, "")) for name in ("since", "prefix"))
        follow = self.get_query_argument("follow", "")

        def document() -> Any:
            return self.context.live(path).document(since=-1 if since is None else since, follow=follow, prefix=prefix)

        try:
            self.send_json(await self.context.in_thread(document))
        except RecupError as reason:
            self.refuse(409, str(reason))


class _Made(_Handler):
    """What is made of a run in a process of its own: how far it is, or itself."""

    verb: tuple[str, ...] = ("report",)

    async def get(self, *arguments: str) -> None:
        names = list(arguments) or self.get_query_arguments("run", strip=False)
        runs = []
        for name in dict.fromkeys(names):
            run = await self.run_named(name)
            if run is None:
                return
            runs.append(run)
        if not runs:
            self.refuse(404, "There is nothing here.")
            return
        report = self.context.reports.ask(runs, self.verb)
        told = report.told()
        if not self.is_whole or told["state"] != "ready":
            self.set_status(200 if not self.is_whole else 409)
            self.send_json(told)
            return
        self.set_header("Content-Type", self.kind)
        self.finish(await self.context.in_thread(report.file.read_bytes))

    is_whole = False
    kind = "application/json; charset=utf-8"


class _WholeReport(_Made):
    is_whole = True
    kind = "text/html; charset=utf-8"
    policy = _REPORT_POLICY


class _Overview(_Made):
    verb = ("info", "--json")


class _WholeOverview(_Overview):
    is_whole = True


def _whole(text: str) -> int | None:
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 16 else None


def _asset(name: str) -> bytes:
    return files("recup.serve").joinpath("assets", name).read_bytes()


def _is_host_known(header: str, hosts: frozenset[str]) -> bool:
    """Whether a Host header is a name of this server: else another site's name was made to lead here."""
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    name = name.strip("[]").rstrip(".").lower()
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)  # an address is no name that could lead elsewhere
        return True
    return name in hosts


def _application(context: _Context) -> Application:
    given = {"context": context}
    name = "([^/]+)"
    return Application(
        [
            ("/", _Page, {**given, "name": "list.html"}),
            (f"/runs/{name}", _Page, {**given, "name": "run.html"}),
            (f"/runs/{name}/live", _Page, {**given, "name": "live.html"}),
            ("/compare", _Page, {**given, "name": "run.html"}),
            ("/assets/([a-z.]+)", _Asset, given),
            ("/api/runs", _Runs, given),
            (f"/api/runs/{name}/live", _Live, given),
            (f"/api/runs/{name}/report", _Made, given),
            (f"/api/runs/{name}/report.html", _WholeReport, given),
            (f"/api/runs/{name}/overview", _Overview, given),
            (f"/api/runs/{name}/overview.json", _WholeOverview, given),
            ("/api/compare/report", _Made, given),
            ("/api/compare/report.html", _WholeReport, given),
        ],
        default_handler_class=_Handler,
        default_handler_args=given,
        log_function=lambda handler: None,
    )


async def serve(
    root: Path,
    *,
    host: str | None = None,
    port: int = 0,
    token: str | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the runs under a root until SIGINT or SIGTERM, or until cancelled.

    Parameters
    ----------
    root : Path
        Directory that holds runs; nothing outside it is read.
    host : str, optional
        Where to listen; by default 127.0.0.1, which only this machine reaches.
    port : int
        Port to listen on; 0 takes any that is free.
    token : str, optional
        What admits; by default a random one.
    started : callable
        Called with the address, token included, once requests are answered.

    Raises
    ------
    RecupError
        The root is no directory of runs, or the address cannot be listened on.
    """
    runs = RunsRoot(root)
    try:
        listening = _listening(host or "127.0.0.1", port)
    except OSError as reason:
        place = f"{host or '127.0.0.1'}:{port}"
        raise RecupError(f"{place} cannot be listened on: {reason.strerror or reason}. Try another --port.") from reason
    port = listening.getsockname()[1]
    names = {"localhost"} if host is None else {"localhost", host.lower(), *map(str.lower, _own_names())}
    context = _Context(runs, token or secrets.token_urlsafe(24), frozenset(names), port)
    server = HTTPServer(_application(context), max_body_size=65_536, max_header_size=32_768)
    server.add_socket(listening)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not the main thread
            loop.add_signal_handler(number, ended.set)
            handled.append(number)
    try:
        # What takes long once is done before anybody waits: the list, and pyarrow's search for pandas.
        context.readers.submit(runs.listing)
        context.readers.submit(pa.array, [0])
        started(f"http://{_shown_host(host)}:{port}/?token={context.token}")
        await ended.wait()
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        server.stop()
        await server.close_all_connections()
        context.reports.close()
        context.readers.shutdown(wait=False, cancel_futures=True)


def _listening(host: str, port: int) -> socket.socket:
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listening = socket.create_server(place, family=family, backlog=128)
    listening.setblocking(False)
    return listening


def _own_names() -> list[str]:
    return [socket.gethostname(), socket.getfqdn()]


def _shown_host(host: str | None) -> str:
    """Return what to put into the address: a host that means every one is no address to open."""
    if host in (None, "127.0.0.1"):
        return "127.0.0.1"
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if host is not None and ":" in host else str(host)
