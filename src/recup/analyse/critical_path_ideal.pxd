# Types for the compiled form of critical_path_ideal.py.
cimport cython

@cython.locals(
    count=cython.Py_ssize_t, top=cython.Py_ssize_t, at=cython.Py_ssize_t, each=cython.Py_ssize_t, place=cython.Py_ssize_t,
    end=cython.double, longest=cython.double,
    bounds=cython.longlong[::1], dependents=cython.longlong[::1], missing=cython.longlong[::1], ready=cython.longlong[::1],
    seconds=cython.double[::1], begin=cython.double[::1],
)
cpdef longest_path(compute_s, task, dependency)

@cython.locals(
    count=cython.Py_ssize_t, at=cython.Py_ssize_t, each=cython.Py_ssize_t, place=cython.Py_ssize_t, now=cython.double,
    bounds=cython.longlong[::1], dependents=cython.longlong[::1], missing=cython.longlong[::1], ranks=cython.longlong[::1],
    of_rank=cython.longlong[::1], seconds=cython.double[::1], ready=list, running=list,
)
cpdef replayed(compute_s, task, dependency, rank, thread_count)
