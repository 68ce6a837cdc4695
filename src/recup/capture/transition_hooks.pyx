# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The two hooks that Dask calls most, in C as far as it goes: compiled half of `transitions`.

A hook comes when the processor's caches hold other things, so that what it costs is the
memory it touches.  Dask has just touched what it calls the hook with: numbers are taken out
of it here, while they are at hand, and put beside references to texts and keys, as they are
to be written (`recup.columns.Slots`).

Covers what `recup.capture.transitions` does in Python where this could not be built; what is
recorded, and why, is told there.
"""

from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport Py_TYPE, PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.sequence cimport PySequence_Fast, PySequence_Fast_GET_SIZE, PySequence_Fast_ITEMS
from cpython.tuple cimport PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_REALTIME

from recup.capture.attributes cimport Place, slot
from recup.capture.c_functions cimport (
    METH_KEYWORDS, METH_VARARGS, PyCFunction, PyCFunctionWithKeywords, PyMethodDef, raise_again,
)
from recup.capture.clocks cimport now
from recup.columns cimport Slots, keep, new_row, real, whole

cdef extern from "Python.h":
    object PyCFunction_New(PyMethodDef*, object)
    bint PyUnicode_CHECK_INTERNED(object)

DEF KINDS = 12


cdef inline int64_t moment_ns() noexcept nogil:
    """Return the time in nanoseconds, rounded down to whole microseconds."""
    return now(CLOCK_REALTIME) // 1000 * 1000


cdef inline bint is_state(object state, str name):
    """Whether this is the state of that name: of texts that Python keeps once, only the same is equal."""
    if state is name:
        return True
    if PyUnicode_CheckExact(state) and PyUnicode_CHECK_INTERNED(state):
        return False
    return state == name


cdef inline bint is_key(object one, object other):
    """Whether two keys are equal; mostly they are the same object."""
    return one is other or one == other


cdef inline object told(dict named, object name):
    """Return a keyword, or None."""
    cdef PyObject* value = NULL if named is None else PyDict_GetItemWithError(named, name)
    return None if value == NULL else <object>value


cdef Place PROCESSING_ON, ADDRESS, RUN_ID       # on the scheduler
cdef Place TASK_RUN_ID, TASK_STATE, STARTSTOPS  # on a worker
cdef Place TOLD_KEY, TOLD_RUN_ID, WHO_HAS, SIZES
cdef Place END_KEY, END_RUN_ID, START, STOP, NBYTES, TYPE

# ---------------------------------------------------------------- what both hooks have


cdef PyObject* taken(PyObject* pointer, PyObject* arguments, PyObject* named) except NULL:
    """Take a call; what is raised is `called`'s."""
    cdef Hook hook = <Hook>pointer
    hook.count += 1
    if PyTuple_GET_SIZE(<tuple>arguments) < 3:
        raise TypeError("Dask calls the hook in another way than this recup knows")
    hook.take(
        (<tuple>arguments)[0], (<tuple>arguments)[1], (<tuple>arguments)[2], None if named == NULL else <dict>named
    )
    return pointer


cdef PyObject* called(PyObject* hook, PyObject* arguments, PyObject* named) except NULL:
    """Take a call as CPython passes it on: nothing is unpacked, and no keyword copied.

    Nothing of its own is raised; Ctrl-C, which may come at any moment, passes.
    """
    # Not in a `try`: looking up and putting aside the state of the thread takes a tenth of the whole call.
    if (<PyCFunctionWithKeywords>taken)(hook, arguments, named) == NULL:
        try:
            raise_again()
        except Exception as reason:
            (<Hook>hook).failed(reason)
    Py_INCREF(None)
    return <PyObject*>None


cdef PyMethodDef definition = PyMethodDef("transition", <PyCFunction>called, METH_VARARGS | METH_KEYWORDS, NULL)


cdef class Hook:
    """Puts rows of transitions and of the ends of attempts.

    Parameters
    ----------
    spool : Spool
        Takes the rows.
    switch_off : callable
        Called when the hook has failed a hundred times.
    put_error : callable
        Takes rows of `errors`.
    """

    cdef object spool, switch_off, put_startstop, put_error
    cdef Slots transitions, results
    cdef str table
    cdef long long count

    def __cinit__(self, spool, switch_off, put_error, *_):
        self.spool, self.switch_off, self.results = spool, switch_off, spool.slots("results")
        self.put_startstop, self.put_error = spool.extender("startstops"), put_error

    @property
    def function(self):
        """The hook as Dask is to call it."""
        return PyCFunction_New(&definition, self)

    cdef int take(self, key, start, finish, dict named) except -1:
        raise NotImplementedError

    cdef int failed(self, reason) except -1:
        if self.spool.failed("transition", reason, self.table):
            self.switch_off()
        return 0

    cdef dict own_computation(self, key, run_id, startstops, start):
        """Put rows of startstops but the first of a computation, from `start` if not None, which is returned if any."""
        cdef dict each, own = None
        cdef Py_ssize_t at
        each_of = PySequence_Fast(startstops, "startstops are no sequence")
        for at in range(PySequence_Fast_GET_SIZE(each_of)):
            each = <dict?>PySequence_Fast_ITEMS(each_of)[at]
            if own is None and each["action"] == "compute" and (start is None or each["start"] == start):
                own = each
            else:
                self.put_startstop((key, run_id, each["action"], each["start"], each["stop"], each.get("source")))
        return own

    cdef int put_result(
        self, int64_t moment, key, int64_t run_id, outcome, worker, thread, nbytes, typename, begin, stop, delay
    ) except -1:
        cdef Slots results = self.results
        cdef int64_t* row
        cdef int64_t thread_id = whole(results, 5, thread), size = whole(results, 6, nbytes)
        cdef int64_t begin_s = real(results, begin), stop_s = real(results, stop), delay_s = real(results, delay)
        row = new_row(results)
        row[0], row[2], row[5], row[6], row[8], row[9], row[10] = moment, run_id, thread_id, size, begin_s, stop_s, delay_s
        keep(row, 1, key)
        keep(row, 3, outcome)
        keep(row, 4, worker)
        keep(row, 7, typename)
        return 0


# ---------------------------------------------------------------- the scheduler's


cdef class SchedulerHook(Hook):
    """Puts rows of the scheduler's transitions.

    Parameters
    ----------
    tasks : dict
        The scheduler's tasks by key.
    """

    cdef dict tasks

    def __init__(self, spool, switch_off, put_error, dict tasks not None):
        self.table, self.transitions, self.tasks = "scheduler_transitions", spool.slots("scheduler_transitions"), tasks

    @property
    def counts(self):
        """How often the hook was called."""
        return self.count

    cdef int take(self, key, start, finish, dict named) except -1:
        cdef int64_t* row
        cdef int64_t moment, run_id = -1
        cdef PyObject* found
        cdef bint is_end = False
        worker = None
        if is_state(finish, "processing"):
            task = self.tasks[key]
            holder = slot(&PROCESSING_ON, task, "processing_on")
            worker = slot(&ADDRESS, holder, "address")
            run_id = whole(self.transitions, 6, slot(&RUN_ID, task, "run_id"))
        elif is_state(start, "processing"):
            found = PyDict_GetItemWithError(self.tasks, key)
            if found != NULL:
                run_id = whole(self.transitions, 6, slot(&RUN_ID, <object>found, "run_id"))
            worker, is_end = told(named, "worker"), True
        stimulus_id = told(named, "stimulus_id")
        moment = moment_ns()
        row = new_row(self.transitions)
        row[0], row[6] = moment, run_id
        keep(row, 1, key)
        keep(row, 2, start)
        keep(row, 3, finish)
        keep(row, 4, stimulus_id)
        keep(row, 5, worker)
        if is_end:
            self.take_end(moment, key, run_id, finish, worker, named)
        return 0

    cdef int take_end(self, int64_t moment, key, int64_t run_id, finish, worker, dict named) except -1:
        cdef dict own
        startstops = told(named, "startstops")
        if worker is None and startstops is None:
            return 0
        own = None if startstops is None else self.own_computation(key, run_id, startstops, None)
        begin, stop = (None, None) if own is None else (own["start"], own["stop"])
        self.put_result(
            moment, key, run_id, finish, worker, told(named, "thread"), told(named, "nbytes"), told(named, "typename"),
            begin, stop, None,
        )
        exception = told(named, "exception_text")
        if exception is not None:
            cause = told(named, "cause")
            blamed = None if cause is None or cause == key else cause
            self.put_error((moment, key, run_id, worker, blamed, exception, told(named, "traceback_text")))
        return 0


# ---------------------------------------------------------------- a worker's


cdef object NEVER = object()    # equals the start of no computation

cdef enum Kind:
    OTHER, SUCCESS, OTHER_END, COMPUTE_TASK


cdef class WorkerHook(Hook):
    """Puts rows of a worker's transitions.

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

    cdef object worker, state, stimulus_log, address, executes, ends, written_end, type_name, last_type, last_name
    cdef Slots receptions
    cdef dict tasks, threads, delays
    cdef PyTypeObject* kinds[KINDS]     # types of events seen
    cdef int kind_of[KINDS]
    cdef Place causes[KINDS + 1]
    cdef int kind_count
    cdef long long compound, counter, counted    # Dask's count, and ours, when they were last compared

    def __init__(self, spool, switch_off, put_error, worker, ends, executes, type_name):
        self.table, self.transitions = "worker_transitions", spool.slots("worker_transitions")
        self.receptions = spool.slots("receptions")
        self.worker, self.state, self.address = worker, worker.state, worker.address
        self.tasks, self.threads, self.stimulus_log = self.state.tasks, self.state.threads, self.state.stimulus_log
        self.ends, self.executes, self.type_name, self.delays = ends, executes, type_name, {}
        self.counter = self.state.transition_counter

    def __dealloc__(self):
        cdef int at
        for at in range(self.kind_count):
            Py_XDECREF(<PyObject*>self.kinds[at])

    @property
    def counts(self):
        """How often the hook was called, and how many of Dask's transitions were made of others."""
        return self.count, self.compound

    cdef int take(self, key, start, finish, dict named) except -1:
        cdef int64_t* row
        cdef int64_t moment, number = -1
        cdef PyObject* found
        cdef Py_ssize_t logged = len(self.stimulus_log)
        cdef int kind = OTHER
        cdef Place* cause_place
        cdef long long counter
        stimulus = cause = task = reached = None
        run_id = -1
        if logged:
            stimulus = self.stimulus_log[logged - 1]
            kind = self.kind(stimulus, &cause_place)
            cause = slot(cause_place, stimulus, "stimulus_id")
        found = PyDict_GetItemWithError(self.tasks, key)
        if found != NULL:
            task = <object>found
            reached, run_id = slot(&TASK_STATE, task, "state"), slot(&TASK_RUN_ID, task, "run_id")
            number = whole(self.transitions, 2, run_id)
        told_state = None if reached == finish else reached
        moment = moment_ns()
        row = new_row(self.transitions)
        row[0], row[2] = moment, number
        keep(row, 1, key)
        keep(row, 3, start)
        keep(row, 4, finish)
        keep(row, 5, told_state)
        keep(row, 6, cause)
        if is_state(finish, "executing"):
            self.delays[key] = self.worker.scheduler_delay
            if task is not None:
                self.executes(task)
            return 0
        if is_state(finish, "waiting"):
            if kind == COMPUTE_TASK and is_key(slot(&TOLD_KEY, stimulus, "key"), key):
                self.take_reception(moment, key, stimulus)
        elif (
            (kind == SUCCESS or kind == OTHER_END) and stimulus is not self.written_end
            and is_key(slot(&END_KEY, stimulus, "key"), key)
        ):
            self.written_end = stimulus
            self.take_end(moment, key, task, run_id, stimulus, kind == SUCCESS)
        if is_state(finish, "released"):
            counter = self.state.transition_counter
            self.compound += counter - self.counter == self.count - self.counted + 1
            self.counter, self.counted = counter, self.count
        return 0

    cdef int kind(self, stimulus, Place** cause) except -1:
        """Return the kind of an event, and where its stimulus_id is."""
        cdef PyTypeObject* type_ = Py_TYPE(stimulus)
        cdef int at, kind
        for at in range(self.kind_count):
            cause[0] = &self.causes[at]
            if self.kinds[at] == type_:
                return self.kind_of[at]
        cause[0] = &self.causes[self.kind_count]
        name = type(stimulus).__name__
        kind = SUCCESS if name == "ExecuteSuccessEvent" else OTHER_END if name in self.ends else OTHER
        if name == "ComputeTaskEvent":
            kind = COMPUTE_TASK
        if self.kind_count < KINDS:
            Py_INCREF(type(stimulus))
            self.kinds[self.kind_count], self.kind_of[self.kind_count] = type_, kind
            self.kind_count += 1
        return kind

    cdef int take_reception(self, int64_t moment, key, stimulus) except -1:
        cdef int64_t* row
        cdef int64_t remote = 0, size = 0, run_id = whole(self.receptions, 2, slot(&TOLD_RUN_ID, stimulus, "run_id"))
        cdef dict who_has = slot(&WHO_HAS, stimulus, "who_has"), sizes = slot(&SIZES, stimulus, "nbytes")
        for holders in who_has.values():
            remote += self.address not in holders
        for each in sizes.values():
            size += <int64_t>each
        row = new_row(self.receptions)
        row[0], row[2], row[3], row[4], row[5] = moment, run_id, len(who_has), size, remote
        keep(row, 1, key)
        return 0

    cdef int take_end(self, int64_t moment, key, task, run_id, stimulus, bint is_success) except -1:
        """Put the end of the attempt that this event of the state machine reports."""
        size = kind = failure = None
        if is_success:  # of what is not there, Python makes an exception first
            run_id, begin = slot(&END_RUN_ID, stimulus, "run_id"), slot(&START, stimulus, "start")
            stop, size = slot(&STOP, stimulus, "stop"), slot(&NBYTES, stimulus, "nbytes")
            kind = slot(&TYPE, stimulus, "type")
        else:
            run_id, failure = getattr(stimulus, "run_id", run_id), getattr(stimulus, "exception_text", None)
            begin, stop = getattr(stimulus, "start", None), getattr(stimulus, "stop", None)
            size, kind = getattr(stimulus, "nbytes", None), getattr(stimulus, "type", None)
        if kind is not self.last_type:
            self.last_type, self.last_name = kind, None if kind is None else self.type_name(kind)
        self.put_result(
            moment, key, whole(self.results, 2, run_id), "gone" if task is None else slot(&TASK_STATE, task, "state"), self.address,
            self.threads.get(key), size, self.last_name, begin, stop, self.delays.pop(key, None),
        )
        if task is not None:
            self.own_computation(key, run_id, slot(&STARTSTOPS, task, "startstops"), NEVER if begin is None else begin)
        if failure is not None:
            self.put_error((
                moment, key, run_id, self.address, None, failure, getattr(stimulus, "traceback_text", None),
            ))
        return 0
