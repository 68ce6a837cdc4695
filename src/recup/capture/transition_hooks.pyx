# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The two hooks that Dask calls most, in C as far as it goes: compiled half of `transitions`.

A hook comes when the processor's caches hold other things, so that what it costs is the
memory it touches.  Here it puts the time and references to what it was given side by side,
and the writer thread, which does many at a time, makes rows of them.

Covers what `recup.capture.transitions` does in Python where this could not be built; what is
recorded, and why, is told there.  Until the next flush it keeps, beyond keys and texts, the
keywords of a task's end on the scheduler, and on a worker the entries of Dask's stimulus
log, which hold no values and no code of tasks.
"""

from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_ITEM, PyList_New
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_GET_SIZE
from libc.stdint cimport int64_t, intptr_t

cdef extern from "time.h" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    const int CLOCK_REALTIME

cdef extern from "Python.h":
    ctypedef PyObject* (*PyCFunction)(PyObject*, PyObject*)
    ctypedef struct PyMethodDef:
        const char* ml_name
        PyCFunction ml_meth
        int ml_flags
        const char* ml_doc
    const int METH_VARARGS, METH_KEYWORDS
    object PyCFunction_New(PyMethodDef*, object)
    void PyList_SET_ITEM(object, Py_ssize_t, PyObject*)
    PyObject* PyLong_FromLongLong(long long) except NULL
    PyObject* Py_TYPE(object)

DEF WIDTH = 8               # slots of a row that waits, a time and seven references: a line of the cache
DEF KEPT_ROWS = 16384       # room for rows that is kept when all have been taken
DEF TAKEN_ROWS = 8192       # rows taken at a time: the event loop may go on in between
DEF KINDS = 12


cdef inline PyObject* now() noexcept nogil:
    """Return the time in nanoseconds, as it waits in a slot."""
    cdef timespec time
    clock_gettime(CLOCK_REALTIME, &time)
    return <PyObject*><intptr_t>(<int64_t>time.tv_sec * 1000000000 + time.tv_nsec)


cdef inline void store(PyObject** slots, Py_ssize_t place, object value) noexcept:
    Py_INCREF(value)
    slots[place] = <PyObject*>value


cdef class Waiting:
    """What waits for the writer thread.  The event loop adds and the writer thread takes, both under the GIL."""

    cdef PyObject** slots
    cdef Py_ssize_t count, capacity
    cdef PyObject** taken       # being taken: those before `place` are gone
    cdef Py_ssize_t taken_count, taken_capacity, place

    def __dealloc__(self):
        for slots, first, count in ((<intptr_t>self.slots, 0, self.count), (<intptr_t>self.taken, self.place, self.taken_count)):
            self.release(<PyObject**><intptr_t>slots, first, count)
        PyMem_Free(self.slots)
        PyMem_Free(self.taken)

    cdef int release(self, PyObject** slots, Py_ssize_t first, Py_ssize_t count) except -1:
        cdef Py_ssize_t at
        for at in range(first * WIDTH, count * WIDTH):
            if at % WIDTH:
                Py_XDECREF(slots[at])
        return 0

    def __len__(self):
        return self.count + self.taken_count - self.place

    cdef PyObject** add(self) except NULL:
        """Return the slots of a new row, for the caller to fill before anything else happens."""
        cdef Py_ssize_t capacity
        cdef PyObject** slots
        if self.count == self.capacity:
            capacity = 2 * self.capacity if self.capacity else 512
            slots = <PyObject**>PyMem_Realloc(self.slots, capacity * WIDTH * sizeof(PyObject*))
            if slots == NULL:
                raise MemoryError()
            self.slots, self.capacity = slots, capacity
        slots = self.slots + self.count * WIDTH
        self.count += 1
        return slots

    cdef list take(self):
        """Return what waits longest, some thousand rows at most, as one list; it waits no longer."""
        cdef Py_ssize_t row, slot, rows
        cdef PyObject** given
        if self.place == self.taken_count:
            if self.taken_capacity > KEPT_ROWS:
                PyMem_Free(self.taken)
                self.taken, self.taken_capacity = NULL, 0
            self.slots, self.taken = self.taken, self.slots
            self.capacity, self.taken_capacity = self.taken_capacity, self.capacity
            self.taken_count, self.count, self.place = self.count, 0, 0
        rows = min(self.taken_count - self.place, TAKEN_ROWS)
        values = PyList_New(rows * WIDTH)
        for row in range(rows):
            given = self.taken + self.place * WIDTH
            PyList_SET_ITEM(values, row * WIDTH, PyLong_FromLongLong(<long long><intptr_t>given[0]))
            self.place += 1     # the list owns its references from here on
            for slot in range(1, WIDTH):
                PyList_SET_ITEM(values, row * WIDTH + slot, given[slot])
        return values


cdef inline object item(list values, Py_ssize_t place):
    return <object>PyList_GET_ITEM(values, place)


# ---------------------------------------------------------------- what both hooks have


cdef PyObject* called(PyObject* hook, PyObject* arguments, PyObject* named) noexcept:
    """Take a call as CPython passes it on: nothing is unpacked, and no keyword copied."""
    try:
        (<Hook>hook).count += 1
        if PyTuple_GET_SIZE(<tuple>arguments) < 3:
            raise TypeError("Dask calls the hook in another way than this recup knows")
        (<Hook>hook).keep(
            (<tuple>arguments)[0], (<tuple>arguments)[1], (<tuple>arguments)[2],
            None if named == NULL else <object>named,
        )
    except Exception as reason:
        (<Hook>hook).failed(reason)
    Py_INCREF(None)
    return <PyObject*>None


cdef PyMethodDef definition = PyMethodDef("transition", <PyCFunction>called, METH_VARARGS | METH_KEYWORDS, NULL)


cdef class Hook:
    """Keeps what transitions say, and makes rows of it.

    Parameters
    ----------
    spool : Spool
        Takes the rows.
    switch_off : callable
        Called when the hook has failed a hundred times.
    """

    cdef Waiting waiting
    cdef long long count
    cdef object spool, switch_off, put, put_result, put_startstop, put_error
    cdef str table

    def __cinit__(self, spool, switch_off, *_):
        self.spool, self.switch_off, self.waiting = spool, switch_off, Waiting()
        self.put_result, self.put_startstop = spool.extender("results"), spool.extender("startstops")
        self.put_error = spool.extender("errors")

    @property
    def function(self):
        """The hook as Dask is to call it."""
        return PyCFunction_New(&definition, self)

    cdef int keep(self, key, start, finish, named) except -1:
        raise NotImplementedError

    cdef int make(self, list values, Py_ssize_t first, list rows) except -1:
        """Add a row of the table of transitions, and put those of others, from what waited."""
        raise NotImplementedError

    cdef int failed(self, reason) except -1:
        if self.spool.failed("transition", reason, self.table):
            self.switch_off()
        return 0

    def make_rows(self):
        """Give what waits to the spool; by the writer thread, before each flush."""
        cdef Py_ssize_t first
        while len(self.waiting):
            values, rows = self.waiting.take(), []
            for first in range(0, len(values), WIDTH):
                try:
                    self.make(values, first, rows)
                except Exception as reason:
                    self.failed(reason)
            self.put(rows)

    def limit(self, Py_ssize_t row_limit):
        """Drop the oldest when more than that wait; by the event loop, as the writer thread may be stuck."""
        if len(self.waiting) <= row_limit:
            return
        dropped = end_count = 0
        while len(self.waiting) > row_limit // 2:
            values = self.waiting.take()
            dropped += len(values) // WIDTH
            end_count += sum(type(each) in (dict, tuple) for each in values[WIDTH - 1 :: WIDTH])
        for table, count in ((self.table, dropped), ("results", end_count)):
            if count:
                self.spool.lose("dropped", table, "the disk did not take rows fast enough", count)

    cdef object put_each(self, key, run_id, startstops, start):
        """Put rows of startstops, but of the attempt's own computation, which is returned; its start may not be known."""
        own = None
        for each in startstops or ():
            if own is None and each["action"] == "compute" and (start is None or each["start"] == start):
                own = each
            else:
                self.put_startstop((key, run_id, each["action"], each["start"], each["stop"], each.get("source")))
        return own


# ---------------------------------------------------------------- the scheduler's


cdef class SchedulerHook(Hook):
    """Keeps the scheduler's transitions.

    Parameters
    ----------
    tasks : dict
        The scheduler's tasks by key.
    """

    cdef dict tasks

    def __init__(self, spool, switch_off, dict tasks not None):
        self.table, self.put, self.tasks = "scheduler_transitions", spool.extender("scheduler_transitions"), tasks

    @property
    def counts(self):
        """How often the hook was called."""
        return self.count

    cdef int keep(self, key, start, finish, named) except -1:
        cdef PyObject** row
        cdef PyObject* found
        holder = end = None
        run_id = -1
        if finish == "processing":
            task = self.tasks[key]
            holder, run_id = task.processing_on, task.run_id
        elif start == "processing":
            found = PyDict_GetItemWithError(self.tasks, key)
            if found != NULL:
                run_id = (<object>found).run_id
            end = named
        stimulus_id = None
        if named is not None:
            found = PyDict_GetItemWithError(<dict>named, "stimulus_id")
            if found != NULL:
                stimulus_id = <object>found
        row = self.waiting.add()
        row[0] = now()
        store(row, 1, key)
        store(row, 2, start)
        store(row, 3, finish)
        store(row, 4, stimulus_id)
        store(row, 5, holder)
        store(row, 6, run_id)
        store(row, 7, end)
        return 0

    cdef int make(self, list values, Py_ssize_t first, list rows) except -1:
        moment, key, finish, run_id = item(values, first), item(values, first + 1), item(values, first + 3), item(values, first + 6)
        holder, end = item(values, first + 5), item(values, first + 7)
        worker = None
        if holder is not None:
            worker = holder.address
        elif end is not None:
            worker = (<dict>end).get("worker")
        rows += moment, key, item(values, first + 2), finish, item(values, first + 4), worker, run_id
        if end is None:
            return 0
        startstops = (<dict>end).get("startstops")
        if worker is None and startstops is None:
            return 0
        own = self.put_each(key, run_id, startstops, None)
        begin, stop = (None, None) if own is None else (own["start"], own["stop"])
        thread, size = (<dict>end).get("thread"), (<dict>end).get("nbytes")
        self.put_result((
            moment, key, run_id, finish, worker, -1 if thread is None else thread, -1 if size is None else size,
            (<dict>end).get("typename"), begin, stop, None,
        ))
        exception = (<dict>end).get("exception_text")
        if exception is not None:
            cause = (<dict>end).get("cause")
            blamed = None if cause is None or cause == key else cause
            self.put_error((moment, key, run_id, worker, blamed, exception, (<dict>end).get("traceback_text")))
        return 0


# ---------------------------------------------------------------- a worker's


cdef object _NEVER = object()   # equals the start of no computation

cdef class WorkerHook(Hook):
    """Keeps a worker's transitions.

    Parameters
    ----------
    worker : Worker
        Its state is read at each transition.
    ends : set of str
        Names of the events with which an attempt ends.
    executes : callable
        Given the task when the worker is about to run it.
    type_name : callable
        Returns the name of a type.
    """

    cdef object worker, state, stimulus_log, executes, type_name, ends, written_end
    cdef dict tasks, delays
    cdef PyObject* kinds[KINDS]     # types of events seen
    cdef bint is_end[KINDS]
    cdef int kind_count
    cdef long long compound, counter, counted    # Dask's count, and ours, when they were last compared

    def __init__(self, spool, switch_off, worker, ends, executes, type_name):
        self.table, self.put = "worker_transitions", spool.extender("worker_transitions")
        self.worker, self.state, self.ends = worker, worker.state, ends
        self.tasks, self.stimulus_log = self.state.tasks, self.state.stimulus_log
        self.executes, self.type_name, self.delays = executes, type_name, {}
        self.counter = self.state.transition_counter

    def __dealloc__(self):
        for at in range(self.kind_count):
            Py_XDECREF(self.kinds[at])

    @property
    def counts(self):
        """How often the hook was called, and how many of Dask's transitions were made of others."""
        return self.count, self.compound

    cdef int keep(self, key, start, finish, named) except -1:
        cdef PyObject** row
        cdef PyObject* found
        cdef Py_ssize_t logged = len(self.stimulus_log)
        cdef long long counter
        stimulus = task = reached = more = None
        run_id = -1
        if logged:
            stimulus = self.stimulus_log[logged - 1]
        found = PyDict_GetItemWithError(self.tasks, key)
        if found != NULL:
            task = <object>found
            reached, run_id = task.state, task.run_id
        if finish == "executing":
            more = self.worker.scheduler_delay
        elif logged and self.ends_attempt(stimulus) and stimulus is not self.written_end and stimulus.key == key:
            self.written_end = stimulus
            more = (
                "gone" if task is None else reached, self.state.threads.get(key),
                None if task is None else tuple(task.startstops),
            )
        row = self.waiting.add()
        row[0] = now()
        store(row, 1, key)
        store(row, 2, run_id)
        store(row, 3, start)
        store(row, 4, finish)
        store(row, 5, reached)
        store(row, 6, stimulus)
        store(row, 7, more)
        if finish == "released":
            counter = self.state.transition_counter
            self.compound += counter - self.counter == self.count - self.counted + 1
            self.counter, self.counted = counter, self.count
        elif finish == "executing" and task is not None:
            self.executes(task)
        return 0

    cdef bint ends_attempt(self, stimulus) except -1:
        cdef PyObject* kind = Py_TYPE(stimulus)
        cdef int at
        for at in range(self.kind_count):
            if self.kinds[at] == kind:
                return self.is_end[at]
        is_end = type(stimulus).__name__ in self.ends
        if self.kind_count < KINDS:
            Py_INCREF(<object>kind)
            self.kinds[self.kind_count], self.is_end[self.kind_count] = kind, is_end
            self.kind_count += 1
        return is_end

    cdef int make(self, list values, Py_ssize_t first, list rows) except -1:
        moment, key, run_id, finish = item(values, first), item(values, first + 1), item(values, first + 2), item(values, first + 4)
        reached, stimulus, more = item(values, first + 5), item(values, first + 6), item(values, first + 7)
        cause = None if stimulus is None else stimulus.stimulus_id
        rows += moment, key, run_id, item(values, first + 3), finish, None if reached == finish else reached, cause
        if type(more) is tuple:
            outcome, thread, startstops = more
            self.put_end(moment, key, run_id, stimulus, outcome, thread, startstops)
        elif finish == "executing":
            self.delays[key] = more
        elif finish == "waiting" and stimulus is not None and type(stimulus).__name__ == "ComputeTaskEvent":
            who_has = getattr(stimulus, "who_has", None)
            if who_has is not None and stimulus.key == key:
                self.put_reception(moment, key, stimulus, who_has)
        return 0

    cdef int put_reception(self, moment, key, stimulus, who_has) except -1:
        address, remote = self.worker.address, 0
        for holders in who_has.values():
            remote += address not in holders
        self.spool.extender("receptions")((
            moment, key, stimulus.run_id, len(who_has), sum(stimulus.nbytes.values()), remote,
        ))
        return 0

    cdef int put_end(self, moment, key, run_id, stimulus, outcome, thread, startstops) except -1:
        """Put the end of the attempt that this event of the state machine reports."""
        run_id, start = getattr(stimulus, "run_id", run_id), getattr(stimulus, "start", None)
        size, kind = getattr(stimulus, "nbytes", None), getattr(stimulus, "type", None)
        self.put_result((
            moment, key, run_id, outcome, self.worker.address, -1 if thread is None else thread,
            -1 if size is None else size, None if kind is None else self.type_name(kind),
            start, getattr(stimulus, "stop", None), self.delays.pop(key, None),
        ))
        self.put_each(key, run_id, startstops, _NEVER if start is None else start)
        failure = getattr(stimulus, "exception_text", None)
        if failure is not None:
            self.put_error((
                moment, key, run_id, self.worker.address, None, failure, getattr(stimulus, "traceback_text", None),
            ))
        return 0
