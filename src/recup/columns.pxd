from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, intptr_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    int64_t PyLong_AsLongLongAndOverflow(object, int*) noexcept     # given an int


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

    cdef int grow(self) except -1
    cdef int64_t other_whole(self, Py_ssize_t column, object value) except? -1
    cdef int64_t other_real(self, object value) except? -1
    cdef int release(self, int64_t* rows, size_t count) except -1


# What follows is part of the hooks that use it: a call would cost more than what is done.


cdef inline int64_t* new_row(Slots rows) except NULL:
    """Return a new row, to be filled with `keep`, `whole` and `real`, before anything else happens."""
    cdef int64_t* row
    if rows.count == rows.capacity:
        rows.grow()
    row = rows.slots + rows.count * rows.width
    rows.count += 1
    return row


cdef inline void keep(int64_t* row, Py_ssize_t column, object value) noexcept:
    """Put a reference of its own into a row."""
    Py_INCREF(value)
    row[column] = <intptr_t><PyObject*>value


cdef inline int64_t whole(Slots rows, Py_ssize_t column, object value) except? -1:
    """Return a whole number, or what stands for null in this column, as it is put in a row."""
    cdef int overflow = 0
    cdef int64_t number
    if PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow:
            return number
    return rows.other_whole(column, value)


cdef inline int64_t real(Slots rows, object value) except? -1:
    """Return a float, or null, as it is put in a row."""
    cdef double number
    cdef int64_t bits
    if not PyFloat_CheckExact(value):
        return rows.other_real(value)
    number = PyFloat_AS_DOUBLE(value)
    memcpy(&bits, &number, 8)
    return bits
