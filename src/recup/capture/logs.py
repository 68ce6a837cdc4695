"""Log records of Dask's loggers, kept with the server that spoke.

Covers one handler per process on the loggers `distributed` and `dask`.  It does not change
a level: what Dask's configuration silences before any handler sees it is not recorded.
"""

from __future__ import annotations

import logging
import re
import threading

from recup.capture.redaction import redacted_text
from recup.schema import Log
from recup.spool import Spool

_LOGGERS = ("distributed", "dask")
_TEXT_LIMIT = 20_000
_CALL = re.compile(r"^(?:Task|Function):.*?(?=^Exception:|\Z)", re.MULTILINE | re.DOTALL)
"""The call of a task that failed, with its arguments, as Dask logs it."""


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.spools: list[Spool] = []

    def emit(self, record: logging.LogRecord) -> None:
        spool = self._spool(record.name)
        if spool is None:
            return
        try:
            exception = None
            if record.exc_info:
                exception = redacted_text(logging.Formatter().formatException(record.exc_info))[:_TEXT_LIMIT]
            message = record.getMessage()
            if message.startswith("Compute Failed"):
                message = _CALL.sub("Task:      [its arguments are not recorded]\n", message)
            message = redacted_text(message)[:_TEXT_LIMIT]
            spool.put(Log(int(record.created * 1e9), record.levelname, record.name, message, exception))
        except Exception as reason:  # noqa: BLE001 - the message may be made of odd objects
            spool.lose("degraded", "logs", f"a log record could not be read: {type(reason).__name__}", 1)

    def _spool(self, logger_name: str) -> Spool | None:
        """Return the spool of the role that speaks, else any of this process."""
        spools = self.spools
        for spool in spools:
            if spool.role in logger_name:
                return spool
        return spools[0] if spools else None


_handler = _Handler()
_lock = threading.Lock()


def attach(spool: Spool) -> None:
    """Send the log records of this process to the spool, or to its sibling whose role fits better."""
    with _lock:
        _handler.spools = [*_handler.spools, spool]
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            if _handler not in logger.handlers:
                logger.addHandler(_handler)


def detach(spool: Spool) -> None:
    """Stop sending log records to the spool."""
    with _lock:
        _handler.spools = [each for each in _handler.spools if each is not spool]
        if not _handler.spools:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(_handler)
