from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, intptr_t


cdef inline void keep(int64_t* row, Py_ssize_t column, object value) noexcept:
    """Put a reference of its own into a row of `Slots`."""
    Py_INCREF(value)
    row[column] = <intptr_t><PyObject*>value


cdef class Slots:
    cdef bytes kinds
    cdef list null_values
    cdef size_t width
    cdef int64_t* slots
    cdef size_t count, capacity
    cdef int64_t* taken         # being taken: those before `place` have been
    cdef size_t taken_count, taken_capacity, place
    cdef int64_t* ready         # taken last, with their references until the next are
    cdef readonly size_t ready_count
    cdef public long degraded_count

    cdef int64_t* add(self) except NULL
    cdef int64_t whole(self, Py_ssize_t column, object value) except? -1
    cdef int64_t real(self, object value) except? -1
    cdef int release(self, int64_t* rows, size_t count) except -1
