"""The kernel's clocks, read without Python between."""

from libc.stdint cimport int64_t
from posix.time cimport clock_gettime, timespec


cdef inline int64_t now(int clock) noexcept nogil:
    """Return the nanoseconds of a clock."""
    cdef timespec time
    clock_gettime(clock, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec
