# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The kernel's counters of a thread, read and subtracted without Python between: compiled half of `threads`.

Covers `OwnThread` and the call of a node that counts, which do what `OwnThread` and `_call`
of `recup.capture.threads` do in Python where this could not be built.  What is read, and why
in this order, is told there.
"""

cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_THREAD_CPUTIME_ID

from recup.capture.attributes cimport Place, put_slot, slot
from recup.capture.c_functions cimport METH_KEYWORDS, METH_VARARGS, PyCFunction, PyMethodDef, raise_again
from recup.capture.clocks cimport now
from recup.columns cimport Slots, keep, new_row, whole

cdef extern from "sys/resource.h" nogil:
    struct timeval:
        long tv_sec
        long tv_usec
    struct rusage:
        timeval ru_utime
        timeval ru_stime
        long ru_minflt
        long ru_majflt
        long ru_nvcsw
        long ru_nivcsw
    int getrusage(int, rusage*)

cdef extern from *:
    """
    #ifndef RUSAGE_THREAD
    #define RUSAGE_THREAD 1
    #endif
    """
    const int RUSAGE_THREAD

cdef extern from "unistd.h" nogil:
    Py_ssize_t pread(int, void*, size_t, long)
    int close(int)

cdef extern from "Python.h":
    void Py_XDECREF(PyObject*)
    object PyDescr_NewMethod(PyTypeObject*, PyMethodDef*)
    object PyType_GenericAlloc(PyTypeObject*, Py_ssize_t)
    # As pointers: NULL, with the exception set, is passed on and not made Cython's own.
    PyObject* PyObject_Call(PyObject*, PyObject*, PyObject*)
    ctypedef struct PyThreadState:
        pass
    PyThreadState* PyThreadState_Get()
    uint64_t PyThreadState_GetID(PyThreadState*)
    void PyErr_Fetch(PyObject**, PyObject**, PyObject**)
    void PyErr_Restore(PyObject*, PyObject*, PyObject*)

cdef extern from *:
    """
    #define recup_hook() ((size_t) PyThreadState_Get()->c_profilefunc)
    """
    size_t recup_hook()

DEF THREADS = 64        # a power of two
DEF IO_COUNTERS = 6     # rchar, wchar, syscr, syscw, read_bytes, write_bytes


def profile_hook():
    """Return the address of the C function that profiles the calling thread, 0 where none does.

    `sys.getprofile` tells of a hook in Python alone: one in C, such as Yappi's, need not show there.
    """
    return recup_hook()


cdef inline int64_t microseconds(timeval time) noexcept nogil:
    return <int64_t>time.tv_sec * 1000000 + time.tv_usec


cdef int numbers(const char* text, Py_ssize_t size, int64_t* found, int wanted) noexcept nogil:
    """Read the numbers that stand alone in the text; returns how many there are, at most those wanted."""
    cdef int count = 0
    cdef Py_ssize_t place = 0
    cdef int64_t number
    while place < size and count < wanted:
        while place < size and text[place] != c" " and text[place] != c"\n" and not c"0" <= text[place] <= c"9":
            place += 1
        if place < size and c"0" <= text[place] <= c"9":
            number = 0
            while place < size and c"0" <= text[place] <= c"9":
                number = number * 10 + (text[place] - c"0")
                place += 1
            found[count] = number
            count += 1
        else:
            place += 1
    return count


cdef struct Counters:
    rusage used
    int io_count        # numbers that could be read
    Py_ssize_t io_size
    int64_t io[IO_COUNTERS]
    int waits_count
    int64_t waits[2]    # of schedstat: time on a CPU, time ready without one


cdef void read_io(Counters* counters, int descriptor) noexcept nogil:
    cdef char text[512]
    counters.io_size = pread(descriptor, text, 512, 0)
    counters.io_count = numbers(text, counters.io_size, counters.io, IO_COUNTERS)


cdef void read_waits(Counters* counters, int descriptor) noexcept nogil:
    cdef char text[96]
    counters.waits_count = numbers(text, pread(descriptor, text, 96, 0), counters.waits, 2)


@cython.freelist(16)
@cython.no_gc
@cython.final
cdef class Reading:
    """What a thread had used when a task began."""

    cdef Counters counters
    cdef int64_t cpu_ns, start_ns, monotonic_ns
    cdef OwnThread thread


@cython.final
cdef class OwnThread:
    """The calling thread: open files with the kernel's counters of it.

    Parameters
    ----------
    ident : int
        Its threading.get_ident().
    io, schedstat : int
        Descriptors of the thread's own files of /proc; closed with this object.
    rows : Slots
        Takes rows of `thread_counters`.
    """

    cdef readonly int64_t ident
    cdef readonly int io, schedstat
    cdef Slots rows

    def __cinit__(self, int64_t ident, int io, int schedstat, Slots rows not None):
        self.ident = ident
        self.io = io
        self.schedstat = schedstat
        self.rows = rows

    def __dealloc__(self):
        close(self.io)
        close(self.schedstat)

    cpdef Reading begin(self):
        """Read the counters before a task."""
        cdef Reading reading = Reading.__new__(Reading)
        getrusage(RUSAGE_THREAD, &reading.counters.used)
        read_waits(&reading.counters, self.schedstat)
        read_io(&reading.counters, self.io)
        reading.cpu_ns = now(CLOCK_THREAD_CPUTIME_ID)
        reading.start_ns = now(CLOCK_REALTIME)
        reading.monotonic_ns = now(CLOCK_MONOTONIC)
        reading.thread = self
        return reading

    cpdef int end(self, Reading begun, key, run_id, kind, outcome) except -1:
        """Read them again after it, and put a row of what the task used."""
        if begun is None:
            raise TypeError("there is no reading from before the task")
        cdef Counters after
        cdef Counters* before = &begun.counters
        cdef int64_t wall = now(CLOCK_MONOTONIC) - begun.monotonic_ns
        cdef int64_t cpu = now(CLOCK_THREAD_CPUTIME_ID) - begun.cpu_ns
        cdef int64_t moved[IO_COUNTERS]
        cdef int64_t queue_wait = -1
        cdef int number
        read_io(&after, self.io)
        getrusage(RUSAGE_THREAD, &after.used)
        if after.used.ru_nvcsw == before.used.ru_nvcsw and after.used.ru_nivcsw == before.used.ru_nivcsw:
            if before.waits_count == 2:
                queue_wait = 0
        else:
            read_waits(&after, self.schedstat)
            if before.waits_count == after.waits_count == 2:
                queue_wait = after.waits[1] - before.waits[1]
        for number in range(IO_COUNTERS):
            moved[number] = -1
            if before.io_count == after.io_count == IO_COUNTERS:
                moved[number] = after.io[number] - before.io[number]
        if moved[0] >= 0:
            # The reading before the task is counted in the one after it.
            moved[0] -= before.io_size
            moved[2] -= 1
        cdef int64_t attempt = whole(self.rows, 2, run_id)
        cdef int64_t* row = new_row(self.rows)
        row[0], row[2], row[5], row[6], row[7] = begun.start_ns, attempt, self.ident, wall, cpu
        row[8] = 1000 * (microseconds(after.used.ru_utime) - microseconds(before.used.ru_utime))
        row[9] = 1000 * (microseconds(after.used.ru_stime) - microseconds(before.used.ru_stime))
        row[10] = queue_wait
        row[11] = after.used.ru_nvcsw - before.used.ru_nvcsw
        row[12] = after.used.ru_nivcsw - before.used.ru_nivcsw
        row[13] = after.used.ru_minflt - before.used.ru_minflt
        row[14] = after.used.ru_majflt - before.used.ru_majflt
        for number in range(IO_COUNTERS):
            row[15 + number] = moved[number]
        keep(row, 1, key)
        keep(row, 3, kind)
        keep(row, 4, outcome)
        return 0


# ---------------------------------------------------------------- around a task


cdef class KnownThreads:
    """What `ThreadCounters` has of the threads it met, found again without asking Python.

    Attributes
    ----------
    is_off : bool
        Whether no further task is to be counted.
    """

    cdef public bint is_off
    cdef uint64_t ids[THREADS]          # of the thread's state: never that of another, as long as the process lives
    cdef PyObject* threads[THREADS]     # kept by `local`, and so as long as their thread and this object

    cpdef forget_threads(self):
        """Meet every thread anew, before what `local` keeps is let go."""
        memset(self.threads, 0, sizeof(self.threads))

    cdef OwnThread own(self):
        """Return the calling thread; None where counters are not read by `OwnThread`."""
        cdef uint64_t number = PyThreadState_GetID(PyThreadState_Get())
        cdef int place = number & (THREADS - 1)
        if self.threads[place] != NULL and self.ids[place] == number:
            return <OwnThread>self.threads[place]
        thread = getattr(self.local, "own", None)
        if thread is None:
            thread = self.meet_thread()
        if type(thread) is not OwnThread:
            return None
        self.ids[place], self.threads[place] = number, <PyObject*>thread
        return <OwnThread>thread


cdef object call_in_python      # the same in Python
cdef list surrounded            # not empty when something else is to be called around a task
cdef Place KEY, DEPENDENCIES, INNER, IS_CORO, KIND, RUN_ID, PREFIX, COUNTERS    # of a node that counts
cdef Place NODE, TASK_RUN_ID, TASK_PREFIX, NODE_KEY, NODE_DEPENDENCIES          # of a task, and of its own node

ctypedef PyObject* (*Beginning)(PyObject*) noexcept
ctypedef int (*Ending)(PyObject*, PyObject*, PyObject*) noexcept


cdef PyObject* beginning(PyObject* pointer) except NULL:
    """Return a new reference to the reading before the node runs; to None where Python is to see to that."""
    cdef Reading begun = None
    cdef OwnThread own
    node = <object>pointer
    if not surrounded and not slot(&IS_CORO, node, "is_coro"):
        own = (<KnownThreads?>slot(&COUNTERS, node, "counters")).own()
        if own is not None:
            begun = own.begin()
    Py_INCREF(begun)
    return <PyObject*>begun


cdef int ending(PyObject* pointer, PyObject* begun, PyObject* kind) except -1:
    """Read again after the node has run; `kind` is of the error that it raised, NULL where it returned."""
    node, reading = <object>pointer, <Reading>begun
    outcome = "returned" if kind == NULL else (<type>kind).__name__
    return reading.thread.end(
        reading, slot(&KEY, node, "key"), slot(&RUN_ID, node, "run_id"), slot(&KIND, node, "kind"), outcome
    )


cdef int failing(PyObject* pointer) except -1:
    """Count the failure that is raised; what is none of recup's stays raised."""
    try:
        raise_again()
    except Exception as reason:
        failed(<object>pointer, reason)
    return 0


cdef PyObject* call(PyObject* pointer, PyObject* values, PyObject* named) except NULL:
    """Run the node it stands for between two readings.

    What it returns or raises is passed on as CPython has it: no frame of this is in a traceback.
    What is raised into this thread while it reads (Ctrl-C, Dask's cancelling) passes too.
    """
    cdef PyObject* result
    cdef PyObject* kind = NULL
    cdef PyObject* error = NULL
    cdef PyObject* traceback = NULL
    inner = slot(&INNER, <object>pointer, "inner")
    # Not in a `try`, which would look up the state of the thread and put it aside for every task.
    cdef PyObject* begun = (<Beginning>beginning)(pointer)
    if begun == NULL:
        failing(pointer)
    elif <object>begun is None:
        Py_XDECREF(begun)
        arguments = (<object>pointer, *<tuple>values)
        return PyObject_Call(<PyObject*>call_in_python, <PyObject*>arguments, named)
    result = PyObject_Call(<PyObject*>inner, values, named)
    if result == NULL:
        PyErr_Fetch(&kind, &error, &traceback)
    if begun != NULL:
        if (<Ending>ending)(pointer, begun, kind) < 0:
            try:
                failing(pointer)    # the task has run and its result must pass
            except:     # as if it had come just after the task
                Py_XDECREF(begun)
                Py_XDECREF(result)
                Py_XDECREF(kind)
                Py_XDECREF(error)
                Py_XDECREF(traceback)
                raise
        Py_XDECREF(begun)
    if result == NULL:
        PyErr_Restore(kind, error, traceback)
    return result


cdef int failed(node, reason) noexcept:
    try:
        node.counters.failed(reason)
    except Exception:
        pass
    return 0


cdef PyMethodDef definition = PyMethodDef("__call__", <PyCFunction>call, METH_VARARGS | METH_KEYWORDS, NULL)


def counted_call(node_type, in_python, list around not None):
    """Return what `node_type.__call__` is to be; where `around` is not empty, it calls what does it in Python."""
    global call_in_python, surrounded
    call_in_python, surrounded = in_python, around
    return PyDescr_NewMethod(<PyTypeObject*>node_type, &definition)


@cython.final
cdef class Counting:
    """Puts the node that counts in place of a task's own, as `counting` of `recup.capture.threads` does.

    Parameters
    ----------
    node_type, any_node : type
        Of the nodes that count, and of Dask's.
    counters : ThreadCounters
        Those of the worker.
    otherwise : callable
        Given a task whose node is none of Dask's.
    """

    cdef type node_type, any_node
    cdef KnownThreads counters
    cdef object otherwise

    def __init__(self, type node_type not None, type any_node not None, KnownThreads counters not None, otherwise):
        self.node_type, self.any_node, self.counters, self.otherwise = node_type, any_node, counters, otherwise

    def __call__(self, task):
        if self.counters.is_off:
            return
        inner = slot(&NODE, task, "run_spec")
        if type(inner) is self.node_type:
            inner = inner.inner
        if not isinstance(inner, self.any_node):
            self.otherwise(task)
            return
        node = PyType_GenericAlloc(<PyTypeObject*>self.node_type, 0)
        put_slot(&KEY, node, "key", slot(&NODE_KEY, inner, "key"))
        put_slot(&DEPENDENCIES, node, "_dependencies", slot(&NODE_DEPENDENCIES, inner, "_dependencies"))
        put_slot(&INNER, node, "inner", inner)
        put_slot(&IS_CORO, node, "is_coro", inner.is_coro)
        put_slot(&RUN_ID, node, "run_id", slot(&TASK_RUN_ID, task, "run_id"))
        put_slot(&PREFIX, node, "prefix", slot(&TASK_PREFIX, task, "prefix"))
        put_slot(&COUNTERS, node, "counters", self.counters)
        put_slot(&KIND, node, "kind", "task")
        put_slot(&NODE, task, "run_spec", node)
