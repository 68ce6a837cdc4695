from libc.stdint cimport int64_t


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
