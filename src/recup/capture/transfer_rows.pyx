# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Rows of a worker's transfers without Python between: compiled half of `transfers`.

Covers `TransferRows`, which does what that of `recup.capture.transfers` does in Python where
this could not be built.
"""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_REALTIME

from recup.capture.clocks cimport now
from recup.columns cimport Slots, keep, new_row, real, whole


cdef class TransferRows:
    """Puts the rows of transfers of one worker."""

    cdef object worker, failed
    cdef Slots transfers, keys
    cdef bint is_off
    cdef readonly long long incoming_count, outgoing_count

    def __init__(self, spool, worker):
        self.worker, self.failed = worker, spool.failed
        self.transfers, self.keys = spool.slots("transfers"), spool.slots("transfer_keys")

    def put(self, direction, entry):
        """Put the rows of an entry of Dask's log; never raises, and does nothing once it has failed a hundred times."""
        if self.is_off:
            return
        try:
            self.take(<str?>direction, <dict?>entry)
        except Exception as reason:     # the transfer has gone well
            self.is_off = self.failed("transfer", reason, "transfers")

    cdef int take(self, str direction, dict entry) except -1:
        cdef Slots transfers = self.transfers, keys = self.keys
        cdef int64_t number = self.incoming_count + self.outgoing_count
        cdef int64_t* row
        cdef dict moved = <dict?>entry["keys"]
        cdef int64_t start_s = real(transfers, entry["start"]), stop_s = real(transfers, entry["stop"])
        cdef int64_t size = whole(transfers, 6, entry["total"]), on_wire = whole(transfers, 7, entry.get("compressed"))
        cdef int64_t delay_s = real(transfers, self.worker.scheduler_delay)
        peer = entry["who"]
        if peer is not None and type(peer) is not str:
            peer = str(peer)
        row = new_row(transfers)
        row[0], row[1] = now(CLOCK_REALTIME), number
        row[4], row[5], row[6], row[7], row[8], row[9] = start_s, stop_s, size, on_wire, len(moved), delay_s
        keep(row, 2, direction)
        keep(row, 3, peer)
        if direction == "incoming":
            self.incoming_count += 1
        else:
            self.outgoing_count += 1
        for key, nbytes in moved.items():
            size = whole(keys, 2, nbytes)
            row = new_row(keys)
            row[0], row[2] = number, size
            keep(row, 1, key)
        return 0
