from collections.abc import Callable
from typing import Any

from recup.spool import Spool

class Hook:
    function: Callable[..., None]

class SchedulerHook(Hook):
    counts: int
    def __init__(
        self,
        spool: Spool,
        switch_off: Callable[[], None],
        put_error: Callable[[tuple[Any, ...]], None],
        tasks: dict[Any, Any],
    ) -> None: ...

class WorkerHook(Hook):
    counts: tuple[int, int]
    def __init__(
        self,
        spool: Spool,
        switch_off: Callable[[], None],
        put_error: Callable[[tuple[Any, ...]], None],
        worker: Any,
        ends: set[str],
        executes: Callable[[Any], None],
        type_name: Callable[[Any], str],
    ) -> None: ...
