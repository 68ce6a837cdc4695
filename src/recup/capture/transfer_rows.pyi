from typing import Any

from recup.spool import Spool

class TransferRows:
    incoming_count: int
    outgoing_count: int
    def __init__(self, spool: Spool, worker: Any) -> None: ...
    def put(self, direction: str, entry: dict[str, Any]) -> None: ...
