"""Log records of Dask's loggers, kept with the server that spoke.

Covers one handler per process on the loggers `distributed` and `dask`.  It does not change
a level: what Dask's configuration silences before any handler sees it is not recorded.
Which of several servers of one role in a process has spoken is known where the message names
it; else it is taken for the first of them.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable

from recup.capture.redaction import redacted_text
from recup.schema import Log
from recup.spool import Spool

_LOGGERS = ("distributed", "dask")
_TEXT_LIMIT = 20_000
_CALL = re.compile(r"^(?:Task|Function):.*?(?=^Exception:|\Z)", re.MULTILINE | re.DOTALL)
"""The call of a task that failed, with its arguments, as Dask logs it."""


Names = Callable[[], Iterable[object]]


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.servers: list[tuple[Spool, Names]] = []

    def emit(self, record: logging.LogRecord) -> None:
        servers = self.servers
        if not servers:
            return
        spool = servers[0][0]
        try:
            exception = None
            if record.exc_info:
                exception = redacted_text(logging.Formatter().formatException(record.exc_info))[:_TEXT_LIMIT]
            message = record.getMessage()
            spool = _spool_of(servers, record.name, message)
            if message.startswith("Compute Failed"):
                message = _CALL.sub("Task:      [its arguments are not recorded]\n", message)
            message = redacted_text(message)[:_TEXT_LIMIT]
            spool.put(Log(int(record.created * 1e9), record.levelname, record.name, message, exception))
        except Exception as reason:  # noqa: BLE001 - the message may be made of odd objects
            spool.lose("degraded", "logs", f"a log record could not be read: {type(reason).__name__}", 1)


def _spool_of(servers: list[tuple[Spool, Names]], logger_name: str, message: str) -> Spool:
    """Return the spool of the server that speaks: of the role that does, and of several the one that is named."""
    speaking = [each for each in servers if each[0].role in logger_name] or servers
    if len(speaking) > 1:
        for spool, names in speaking:
            if any(str(name) in message for name in names() if name):
                return spool
    return speaking[0][0]


_handler = _Handler()
_lock = threading.Lock()


def attach(spool: Spool, names: Names = tuple) -> None:
    """Send log records of this process to the spool, or to a sibling whose role fits better.

    `names` returns what a message holds when it is about this server, as its address, and
    not about another of its role in the process.
    """
    with _lock:
        _handler.servers = [*_handler.servers, (spool, names)]
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            if _handler not in logger.handlers:
                logger.addHandler(_handler)


def detach(spool: Spool) -> None:
    """Stop sending log records to the spool."""
    with _lock:
        _handler.servers = [each for each in _handler.servers if each[0] is not spool]
        if not _handler.servers:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(_handler)
