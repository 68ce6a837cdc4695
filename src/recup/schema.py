"""Every table of a run: its columns, their units, meanings and null rules.

This module is the only place a table or column is defined.  The Arrow types of the spool
and of the sealed Parquet files, the data dictionary (`recup schema`), the Data Package
and the checks derive from it.

Covers the raw tables: what was observed and by whom.  Conclusions (views) are defined in
`recup.fuse`.  It does not cover how rows reach the disk (`recup.spool`).

Conventions
-----------
* Times are `time_ns`: nanoseconds since the Unix epoch on the clock of the observing host,
  unshifted.  Dask's own floats keep their name (`*_s`) and their shift: see `results`.
* Every row is seen by one server (scheduler, worker, nanny or client).  Its `server_id` is
  not repeated in the rows while they are written: it stands in the file's metadata and
  becomes a column of every table when the run is opened.
* A column of kind ``key`` holds a Dask key.  On disk it is an integer into the table
  `keys`; in Python rows it is the key object itself.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Hashable
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

VERSION = 1
"""Schema version of this recup.  Columns are only added within a version's life."""


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """Meaning of one column.

    Attributes
    ----------
    meaning : str
        One sentence for the data dictionary.
    unit : str or None
        Unit of the value; None for text, identifiers and pure numbers.
    category : bool
        Text drawn from few values; written as an Arrow dictionary.
    null : str
        What a null says.  Empty when the column has no nulls.
    null_value : int or None
        Integer that the hot paths write in place of None (never a real value).
    """

    meaning: str
    unit: str | None = None
    category: bool = False
    null: str = ""
    null_value: int | None = None
    name: str = ""
    kind: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """One raw table: its name, its row class and its columns in order."""

    name: str
    row: type[Any]
    meaning: str
    step: int
    sort: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns in row order."""
        return tuple(column.name for column in self.columns)


TABLES: dict[str, Table] = {}
"""Every raw table by name, in the order of the steps they belong to."""

KINDS = {int: "int64", float: "float64", str: "text", bool: "bool", Hashable: "key"}

Row = TypeVar("Row", bound=type)


def table(name: str, *, step: int, sort: tuple[str, ...] = ()) -> Any:
    """Register a row class as the definition of a raw table."""

    def register(row: Row) -> Row:
        columns = []
        hints = get_type_hints(row, include_extras=True)
        for field in row._fields:  # type: ignore[attr-defined]
            hint, column = get_args(hints[field])
            optional = get_origin(hint) in (Union, types.UnionType)
            if optional:
                hint = next(each for each in get_args(hint) if each is not type(None))
            kind = "category" if column.category else KINDS[hint]
            if bool(column.null) != (optional or column.null_value is not None):
                raise TypeError(f"{name}.{field}: nullable exactly when `null` says what null means")
            columns.append(dataclasses.replace(column, name=field, kind=kind))
        meaning = " ".join((row.__doc__ or "").split())
        TABLES[name] = Table(name, row, meaning, step, sort, tuple(columns))
        return row

    return register


def table_of(row: Any) -> Table:
    """Return the table a row object (or row class) belongs to."""
    row_class = row if isinstance(row, type) else type(row)
    for each in TABLES.values():
        if each.row is row_class:
            return each
    raise KeyError(row_class.__name__)


Key = Hashable
_TIME = Column("When it was observed, on the observer's wall clock", unit="ns")
_MICROSECOND = Column("When it was observed, on the observer's wall clock, in whole microseconds", unit="ns")
_KEY = Column("Dask key of the task")
_WORKER = Column("Address of the worker", category=True)
_JSON_NULL = "nothing to say"


# ---------------------------------------------------------------- step 1: configuration


@table("hosts", step=1)
class Host(NamedTuple):
    """One row per server and host it runs on: the machine as the kernel describes it."""

    host_id: Annotated[str, Column("Boot id of the kernel and host name; one per boot", category=True)]
    hostname: Annotated[str, Column("Host name", category=True)]
    operating_system: Annotated[str, Column("System name and distribution", category=True)]
    kernel: Annotated[str, Column("Kernel release", category=True)]
    architecture: Annotated[str, Column("Machine architecture, e.g. x86_64", category=True)]
    cpu_model: Annotated[str | None, Column("CPU model name", category=True, null="not told by the kernel")]
    cpu_count: Annotated[int | None, Column("Logical CPUs of the host", null="not told")]
    core_count: Annotated[int | None, Column("Physical cores of the host", null="not told")]
    socket_count: Annotated[int | None, Column("CPU packages", null="not told")]
    numa_nodes: Annotated[str | None, Column("JSON: NUMA node to its CPU list", null="not told")]
    memory_bytes: Annotated[int | None, Column("Installed memory", unit="bytes", null="not told")]
    swap_bytes: Annotated[int | None, Column("Swap space", unit="bytes", null="not told")]
    container: Annotated[str | None, Column("Container runtime", category=True, null="none detected")]


@table("accelerators", step=1)
class Accelerator(NamedTuple):
    """One row per accelerator of a host."""

    host_id: Annotated[str, Column("Host it is in", category=True)]
    device: Annotated[str, Column("Index or bus address")]
    kind: Annotated[str, Column("gpu or other", category=True)]
    model: Annotated[str | None, Column("Model name", null="not told")]
    memory_bytes: Annotated[int | None, Column("Device memory", unit="bytes", null="not told")]
    driver: Annotated[str | None, Column("Driver version", null="not told")]


@table("network_interfaces", step=1)
class NetworkInterface(NamedTuple):
    """One row per network interface of a host."""

    host_id: Annotated[str, Column("Host it is in", category=True)]
    name: Annotated[str, Column("Interface name")]
    kind: Annotated[str, Column("ethernet, infiniband, loopback or other", category=True)]
    is_up: Annotated[bool, Column("Whether the link is up")]
    speed_bits_per_s: Annotated[int | None, Column("Link speed", unit="bit/s", null="not told")]
    mtu_bytes: Annotated[int | None, Column("Largest packet", unit="bytes", null="not told")]
    used_by_server: Annotated[bool, Column("Whether the server's own address is known to be on it")]


@table("filesystems", step=1)
class Filesystem(NamedTuple):
    """One row per path a server uses: the filesystem that holds it."""

    host_id: Annotated[str, Column("Host that mounted it", category=True)]
    purpose: Annotated[str, Column("cwd, script, run, local_directory or temporary", category=True)]
    path: Annotated[str, Column("The path in use")]
    mount_point: Annotated[str | None, Column("Where it is mounted", null="not found")]
    filesystem: Annotated[str | None, Column("Type, e.g. ext4, lustre", category=True, null="not found")]
    source: Annotated[str | None, Column("Device or server, credentials removed", null="not found")]
    size_bytes: Annotated[int | None, Column("Size", unit="bytes", null="not told")]
    free_bytes: Annotated[int | None, Column("Free at start", unit="bytes", null="not told")]


@table("batch_jobs", step=1)
class BatchJob(NamedTuple):
    """One row per fact about the batch job a server runs in."""

    system: Annotated[str, Column("slurm, pbs, lsf, flux, sge, mpi or none", category=True)]
    job_id: Annotated[str | None, Column("Job id as the batch system writes it", category=True, null="no job")]
    name: Annotated[str, Column("Name of the fact", category=True)]
    value: Annotated[str, Column("Its value as text")]
    origin: Annotated[str, Column("environment or the command that told it", category=True)]


@table("processes", step=1)
class Process(NamedTuple):
    """One row per server: the process it runs in."""

    time_ns: Annotated[int, _TIME]
    role: Annotated[str, Column("scheduler, worker, nanny, client or launcher", category=True)]
    address: Annotated[str | None, Column("Address of the server", null="a client or launcher has none")]
    name: Annotated[str | None, Column("Name the user gave the worker", null="none given")]
    scheduler_id: Annotated[str | None, Column("Server id of its scheduler", category=True, null="not known yet")]
    host_id: Annotated[str, Column("Host it runs on", category=True)]
    pid: Annotated[int, Column("Process id")]
    parent_pid: Annotated[int, Column("Process id of the parent")]
    process_started_s: Annotated[float | None, Column("Start of the process, epoch", unit="s", null="not told")]
    executable: Annotated[str, Column("Path of the interpreter", category=True)]
    arguments: Annotated[str, Column("JSON list: argv of the process, secrets redacted")]
    cwd: Annotated[str | None, Column("Working directory", null="it no longer exists")]
    python_version: Annotated[str, Column("Python version", category=True)]
    dask_version: Annotated[str | None, Column("dask version", category=True, null="not installed")]
    distributed_version: Annotated[str | None, Column("distributed version", category=True, null="not installed")]
    recup_version: Annotated[str, Column("recup version", category=True)]
    thread_count: Annotated[int | None, Column("Task threads of a worker", null="not a worker")]
    memory_limit_bytes: Annotated[int | None, Column("Dask's memory limit", unit="bytes", null="none or not a worker")]
    local_directory: Annotated[str | None, Column("Dask's local directory", null="has none")]
    affinity: Annotated[str | None, Column("JSON list: CPUs the process may use", null="not told")]
    cgroup_cpu_limit: Annotated[float | None, Column("CPUs the cgroup allows", null="no limit or not told")]
    cgroup_memory_limit_bytes: Annotated[
        int | None, Column("Memory the cgroup allows", unit="bytes", null="no limit or not told")
    ]
    resource_limits: Annotated[str, Column("JSON: ulimits, soft and hard; null is unlimited")]
    packages_digest: Annotated[str | None, Column("Into `packages`", category=True, null="not collected")]
    config_digest: Annotated[str | None, Column("Into `config`", category=True, null="not collected")]
    details: Annotated[str | None, Column("JSON: facts only this role has", null=_JSON_NULL)]


@table("process_ends", step=4, sort=("time_ns",))
class ProcessEnd(NamedTuple):
    """One row per end of a process or server, as the observer saw it."""

    time_ns: Annotated[int, _TIME]
    subject: Annotated[str, Column("Server id or address of what ended", category=True)]
    role: Annotated[str, Column("Role of what ended", category=True)]
    pid: Annotated[int | None, Column("Its process id", null="not known to the observer")]
    how: Annotated[str, Column("closed (in order), exited, or signalled", category=True)]
    exit_code: Annotated[int | None, Column("Exit code", null="not an exit, or not seen")]
    signal: Annotated[int | None, Column("Signal that ended it", null="not by a signal, or not seen")]
    reason: Annotated[str | None, Column("Reason Dask gave", null="none given")]


@table("packages", step=1)
class Package(NamedTuple):
    """One row per distinct set of installed packages and package in it."""

    packages_digest: Annotated[str, Column("Names the set; processes point to it", category=True)]
    name: Annotated[str, Column("Distribution name, normalised")]
    version: Annotated[str, Column("Installed version")]


@table("environment", step=1)
class EnvironmentVariable(NamedTuple):
    """One row per environment variable of a server that the allow-list admits."""

    name: Annotated[str, Column("Variable", category=True)]
    value: Annotated[str | None, Column("Value", null="redacted: the name looks secret")]


@table("config", step=1)
class ConfigValue(NamedTuple):
    """One row per distinct resolved Dask configuration and value in it."""

    config_digest: Annotated[str, Column("Names the configuration; processes point to it", category=True)]
    name: Annotated[str, Column("Dotted name", category=True)]
    value: Annotated[str | None, Column("JSON of the value", null="redacted")]
    origin: Annotated[
        str | None, Column("default, a file's path, an environment variable, or set in code", null="not known")
    ]


@table("sources", step=1)
class Source(NamedTuple):
    """One row per distinct piece of source text: the script, the notebook cell, a submitting frame."""

    source_digest: Annotated[str, Column("SHA-256 of the original text, before redaction")]
    kind: Annotated[str, Column("script, cell or frame", category=True)]
    path: Annotated[str, Column("File it stands in")]
    first_line: Annotated[int, Column("Line of the file where the text begins")]
    text: Annotated[str | None, Column("The text", null="recording source is switched off, or too large")]


@table("repositories", step=1)
class Repository(NamedTuple):
    """One row per git repository that holds the script."""

    path: Annotated[str, Column("Top of the work tree")]
    commit: Annotated[str | None, Column("Commit checked out", null="no commit yet")]
    branch: Annotated[str | None, Column("Branch", null="detached")]
    is_dirty: Annotated[bool | None, Column("Tracked files differ from the commit", null="git did not tell")]
    changed_file_count: Annotated[int | None, Column("Tracked files that differ", null="git did not tell")]
    remote: Annotated[str | None, Column("URL of origin, credentials removed", null="none")]


# ---------------------------------------------------------------- step 2: submission


@table("client_submissions", step=2, sort=("time_ns",))
class ClientSubmission(NamedTuple):
    """One row per graph a client sent: compute, persist, submit, map, get, seen at the client."""

    time_ns: Annotated[int, _TIME]
    submission: Annotated[int, Column("Counts a client's submissions from 0")]
    client: Annotated[str, Column("Client id", category=True)]
    call: Annotated[str | None, Column("Outermost Dask call, e.g. compute, map", category=True, null="not found")]
    expression: Annotated[str, Column("Class of the expression sent", category=True)]
    wanted_key_count: Annotated[int, Column("Keys the client asked for")]
    first_key: Annotated[Key | None, Column("The first of the keys asked for", null="none, or could not be read")]
    keys_digest: Annotated[
        str | None, Column("Digest of the keys asked for; joins `submissions`", null="too many keys")
    ]
    layer_count: Annotated[int | None, Column("Layers before optimization", null="not a layered graph")]
    task_count: Annotated[int | None, Column("Tasks before optimization", null="not known without materialising")]
    annotations: Annotated[str | None, Column("JSON: annotations in force", null=_JSON_NULL)]
    span: Annotated[str | None, Column("JSON list: names of the span", null="default span")]
    submitting_key: Annotated[Key | None, Column("Task that submitted it", null="not submitted from a task")]
    duration_ns: Annotated[int, Column("Time the client spent sending it", unit="ns")]
    capture_duration_ns: Annotated[int, Column("Part of it that recup added", unit="ns")]
    error: Annotated[str | None, Column("Class of the error Dask raised", category=True, null="it was sent")]


@table("submission_frames", step=2)
class SubmissionFrame(NamedTuple):
    """One row per user frame on the stack of a submission, outermost first."""

    submission: Annotated[int, Column("Into `client_submissions` of the same server")]
    depth: Annotated[int, Column("0 is the outermost user frame")]
    path: Annotated[str, Column("Source file", category=True)]
    line: Annotated[int, Column("Line being run")]
    function: Annotated[str, Column("Name of the function", category=True)]
    line_text: Annotated[str | None, Column("The source line", null="not found or switched off")]
    source_digest: Annotated[str | None, Column("Into `sources`", null="not found or switched off")]


@table("layers", step=2)
class Layer(NamedTuple):
    """One row per layer (or expression node) of a graph before optimization."""

    submission: Annotated[int, Column("Into `client_submissions` of the same server")]
    layer: Annotated[int, Column("Counts the layers of a submission from 0, in graph order")]
    name: Annotated[str, Column("Name of the layer")]
    layer_type: Annotated[str, Column("Class of the layer or expression", category=True)]
    is_materialized: Annotated[bool | None, Column("Whether its tasks existed already", null="not a layer")]
    task_count: Annotated[int | None, Column("Tasks in it", null="not known without materialising")]
    dependencies: Annotated[str, Column("JSON list: names of the layers it stands on")]
    collection_type: Annotated[str | None, Column("Class of the collection", category=True, null="not a collection")]
    shape: Annotated[str | None, Column("JSON list; null entries are unknown lengths", null="has none")]
    dtype: Annotated[str | None, Column("dtype or JSON of column dtypes", category=True, null="has none")]
    chunks: Annotated[
        str | None, Column("JSON: chunk sizes per axis or partition count, cut when long", null="has none")
    ]
    annotations: Annotated[str | None, Column("JSON: annotations of the layer", null=_JSON_NULL)]
    details: Annotated[str | None, Column("JSON: further facts of the layer", null=_JSON_NULL)]


@table("submissions", step=2, sort=("time_ns",))
class Submission(NamedTuple):
    """One row per update_graph: a graph as the scheduler took it."""

    time_ns: Annotated[int, _TIME]
    submission: Annotated[int, Column("Counts the scheduler's graphs from 0")]
    client: Annotated[str | None, Column("Client id", category=True, null="tasks that were there before recup")]
    stimulus_id: Annotated[str, Column("Stimulus of the update")]
    wanted_key_count: Annotated[int, Column("Keys the client asked for")]
    keys_digest: Annotated[
        str | None, Column("Digest of the keys asked for; joins `client_submissions`", null="too many keys")
    ]
    task_count: Annotated[int, Column("Tasks the graph touches, known ones included")]
    new_task_count: Annotated[
        int, Column("Tasks of it that are rows of `tasks`: new ones, and released ones run again")
    ]
    span_id: Annotated[str | None, Column("Span of the tasks", null="spans not available")]
    span: Annotated[str | None, Column("JSON list: names of the span", null="spans not available")]
    annotations: Annotated[
        str | None, Column("JSON: names of the annotations given, with task counts", null=_JSON_NULL)
    ]
    capture_duration_ns: Annotated[int, Column("Time recup held the scheduler to read the graph", unit="ns")]


@table("tasks", step=2)
class Task(NamedTuple):
    """One row per task a submission brought: as the scheduler knows it, after optimization.

    A task that an earlier submission brought and that still stands is not repeated.
    """

    submission: Annotated[int, Column("Into `submissions`")]
    key: Annotated[Key, _KEY]
    prefix: Annotated[str, Column("Dask's task prefix", category=True)]
    group: Annotated[str, Column("Dask's task group", category=True)]
    function: Annotated[
        str | None, Column("Name of the function it calls", category=True, null="data, alias or not found")
    ]
    priority_user: Annotated[float | None, Column("User part of the priority, Dask's sign", null="not a number")]
    priority_generation: Annotated[int | None, Column("Generation part of the priority", null="not an integer")]
    priority_order: Annotated[int | None, Column("Order within the graph", null="not an integer")]
    dependency_count: Annotated[int, Column("Direct dependencies")]
    annotations: Annotated[str | None, Column("JSON: annotations", category=True, null=_JSON_NULL)]
    restrictions: Annotated[
        str | None, Column("JSON: worker, host and resource restrictions, loose or not", category=True, null="none")
    ]
    retries: Annotated[int, Column("Retries left at submission")]
    is_actor: Annotated[bool, Column("Whether the task makes an actor")]


@table("dependencies", step=2)
class Dependency(NamedTuple):
    """One row per edge of the graph as run."""

    submission: Annotated[int, Column("Into `submissions`")]
    key: Annotated[Key, Column("The task that needs the other's result")]
    dependency: Annotated[Key, Column("The task whose result is needed")]


@table("fused_tasks", step=2)
class FusedTask(NamedTuple):
    """One row per original key inside a task that optimization fused."""

    submission: Annotated[int, Column("Into `submissions`")]
    key: Annotated[Key, Column("The key that is run")]
    inner_key: Annotated[Key, Column("The key it had in the graph before fusion")]
    function: Annotated[str | None, Column("Function of the inner task", category=True, null="not found")]


# ---------------------------------------------------------------- step 3: scheduler


@table("scheduler_transitions", step=3, sort=("time_ns",))
class SchedulerTransition(NamedTuple):
    """One row per transition of a task on the scheduler.  A steal is none: see `steals`."""

    time_ns: Annotated[int, _MICROSECOND]
    key: Annotated[Key, _KEY]
    start: Annotated[str, Column("State left", category=True)]
    finish: Annotated[str, Column("State reached", category=True)]
    stimulus_id: Annotated[str, Column("Dask's cause of it; unique only on the node that made it", category=True)]
    worker: Annotated[
        str | None,
        Column("Worker it was sent to or came from", category=True, null="neither to nor from processing"),
    ]
    run_id: Annotated[
        int, Column("Attempt; joins the worker's rows", null="neither to nor from processing", null_value=-1)
    ]


@table("results", step=3, sort=("time_ns",))
class Result(NamedTuple):
    """One row per end of an attempt, as seen by the scheduler and, separately, by the worker.

    Dask shifts `compute_start_s` and `compute_stop_s` by the worker's scheduler_delay; the
    worker's rows carry that delay.
    """

    time_ns: Annotated[int, _MICROSECOND]
    key: Annotated[Key, _KEY]
    run_id: Annotated[int, Column("Attempt", null="not known to the observer", null_value=-1)]
    outcome: Annotated[str, Column("State reached: memory, error, erred, rescheduled, cancelled, ...", category=True)]
    worker: Annotated[str | None, Column("Worker that ran it", category=True, null="not told")]
    thread: Annotated[
        int, Column("threading.get_ident() of its thread", null="ran on the event loop or not told", null_value=-1)
    ]
    nbytes: Annotated[int, Column("Size of the result by Dask's sizeof", unit="bytes", null="no result", null_value=-1)]
    typename: Annotated[str | None, Column("Type of the result", category=True, null="no result")]
    compute_start_s: Annotated[
        float | None, Column("Start of the computation, Dask's clock", unit="s", null="not told")
    ]
    compute_stop_s: Annotated[float | None, Column("Stop of the computation, Dask's clock", unit="s", null="not told")]
    scheduler_delay_s: Annotated[
        float | None, Column("Shift that the two times carry", unit="s", null="seen at the scheduler: not known there")
    ]


@table("startstops", step=3)
class StartStop(NamedTuple):
    """One row per startstop of an attempt beside its first computation: transfers, times in the worker's store.

    Dask calls disk-read and disk-write whatever took the store over 5 ms: only where the
    worker spilled (`spills`) was a disk part of it.
    """

    key: Annotated[Key, _KEY]
    run_id: Annotated[int, Column("Attempt", null="not known to the observer", null_value=-1)]
    action: Annotated[str, Column("transfer, disk-read, disk-write, compute, deserialize", category=True)]
    start_s: Annotated[float, Column("Start, Dask's clock (disk-*: the worker's own)", unit="s")]
    stop_s: Annotated[float, Column("Stop, same clock", unit="s")]
    source: Annotated[str | None, Column("Worker it came from", category=True, null="not a transfer or not told")]


@table("errors", step=3, sort=("time_ns",))
class TaskError(NamedTuple):
    """One row per failed attempt, as seen by the worker (every failure) and the scheduler (the last one)."""

    time_ns: Annotated[int, _MICROSECOND]
    key: Annotated[Key, _KEY]
    run_id: Annotated[int, Column("Attempt", null="not known to the observer", null_value=-1)]
    worker: Annotated[str | None, Column("Worker it failed on", category=True, null="not told")]
    blamed_key: Annotated[Key | None, Column("Task that Dask blames", null="itself, or not told")]
    exception_text: Annotated[str | None, Column("repr of the exception, as Dask cut it", null="not told")]
    traceback_text: Annotated[str | None, Column("Traceback, as Dask cut it", null="not told")]


@table("workers", step=3, sort=("time_ns",))
class Worker(NamedTuple):
    """One row per worker coming or going, as the scheduler saw it."""

    time_ns: Annotated[int, _TIME]
    action: Annotated[str, Column("add, remove, or present (there before recup was)", category=True)]
    address: Annotated[str, _WORKER]
    worker_id: Annotated[str | None, Column("Server id of the worker; the address may be used again", null="not told")]
    name: Annotated[str | None, Column("Name of the worker", null="none")]
    host: Annotated[str | None, Column("Host part of the address", category=True, null="not told")]
    pid: Annotated[int | None, Column("Process id", null="not told")]
    thread_count: Annotated[int | None, Column("Task threads", null="not told")]
    memory_limit_bytes: Annotated[int | None, Column("Memory limit, 0 is none", unit="bytes", null="not told")]
    nanny: Annotated[str | None, Column("Address of its nanny", null="has none")]
    status: Annotated[str | None, Column("Status at that moment", category=True, null="not told")]
    local_directory: Annotated[str | None, Column("Its local directory", null="not told")]
    stimulus_id: Annotated[str | None, Column("Cause of a removal", null="an arrival")]
    processing_count: Annotated[int | None, Column("Tasks it was processing", null="not told")]
    result_count: Annotated[int | None, Column("Results it held", null="not told")]
    result_bytes: Annotated[int | None, Column("Size of the results it held", unit="bytes", null="not told")]
    details: Annotated[str | None, Column("JSON: services, resources, versions, extra", null=_JSON_NULL)]


@table("clients", step=3, sort=("time_ns",))
class Client(NamedTuple):
    """One row per client coming or going, as the scheduler saw it."""

    time_ns: Annotated[int, _TIME]
    action: Annotated[str, Column("add, remove, or present (there before recup was)", category=True)]
    client: Annotated[str, Column("Client id", category=True)]
    wanted_key_count: Annotated[int | None, Column("Keys it wanted at that moment", null="not told")]
    details: Annotated[str | None, Column("JSON: versions and what else Dask knows", null=_JSON_NULL)]


@table("steals", step=3, sort=("time_ns",))
class Steal(NamedTuple):
    """One row per decision of work stealing; `request` may be answered by one of the others."""

    time_ns: Annotated[int, _TIME]
    decision: Annotated[
        str,
        Column("request, confirm, already-computing, reschedule, stale-response or already-aborted", category=True),
    ]
    key: Annotated[Key, _KEY]
    victim: Annotated[str | None, Column("Worker it was on", category=True, null="not told")]
    thief: Annotated[str | None, Column("Worker that wanted it", category=True, null="not told")]
    worker_state: Annotated[str | None, Column("State on the victim when it answered", category=True, null="a request")]
    level: Annotated[int | None, Column("Level of the compute to transfer ratio", null="not a request")]
    cost_s: Annotated[float | None, Column("Estimated cost of the move", unit="s", null="not a request")]
    victim_occupancy_s: Annotated[float | None, Column("Occupancy of the victim", unit="s", null="not a request")]
    thief_occupancy_s: Annotated[float | None, Column("Occupancy of the thief", unit="s", null="not a request")]
    stimulus_id: Annotated[str | None, Column("Id of the steal", null="a request: Dask does not log it")]
    run_id: Annotated[int, Column("Attempt the confirmed move starts", null="no new attempt", null_value=-1)]


@table("events", step=3, sort=("time_ns",))
class Event(NamedTuple):
    """One row per event published on a topic of the scheduler, stealing excepted."""

    time_ns: Annotated[int, _TIME]
    topic: Annotated[str, Column("Topic: an address, a client id, all, scheduler, p2p, ...", category=True)]
    action: Annotated[str | None, Column("The event's own action", category=True, null="it has none")]
    payload: Annotated[str, Column("JSON of the event; what does not serialise is named by its type")]


@table("samples", step=3, sort=("time_ns",))
class Sample(NamedTuple):
    """One row per measured value: long form, one metric of one subject at one moment."""

    time_ns: Annotated[int, _TIME]
    metric: Annotated[str, Column("Name of the metric; its unit stands in the name", category=True)]
    subject: Annotated[str | None, Column("Worker it is about", category=True, null="the observer itself")]
    value: Annotated[float, Column("The value")]


@table("clock_samples", step=3, sort=("time_ns",))
class ClockSample(NamedTuple):
    """One row per second and server: its clocks, read together."""

    time_ns: Annotated[int, _TIME]
    monotonic_ns: Annotated[int, Column("Monotonic clock of the host", unit="ns")]
    scheduler_delay_s: Annotated[
        float | None, Column("Dask's estimate of scheduler clock minus this clock", unit="s", null="not a worker")
    ]


# ---------------------------------------------------------------- step 4: worker


@table("worker_transitions", step=4, sort=("time_ns",))
class WorkerTransition(NamedTuple):
    """One row per transition of a task on a worker."""

    time_ns: Annotated[int, _MICROSECOND]
    key: Annotated[Key, _KEY]
    run_id: Annotated[int, Column("Attempt", null="a replica, or the task is gone", null_value=-1)]
    start: Annotated[str, Column("State left", category=True)]
    finish: Annotated[str, Column("State asked for", category=True)]
    state: Annotated[str | None, Column("State reached", category=True, null="as asked for, or the task is gone")]
    stimulus_id: Annotated[str | None, Column("Dask's cause of it", category=True, null="no stimulus recorded")]


@table("receptions", step=4, sort=("time_ns",))
class Reception(NamedTuple):
    """One row per task a worker was told to compute, with where its dependencies were."""

    time_ns: Annotated[int, _MICROSECOND]
    key: Annotated[Key, _KEY]
    run_id: Annotated[int, Column("Attempt", null="not told", null_value=-1)]
    dependency_count: Annotated[int, Column("Dependencies named")]
    dependency_bytes: Annotated[int, Column("Their size as the scheduler knew it", unit="bytes")]
    remote_count: Annotated[int, Column("Dependencies not on this worker at that moment")]


@table("transfers", step=4, sort=("time_ns",))
class Transfer(NamedTuple):
    """One row per gather request a worker received an answer to (incoming) or served (outgoing)."""

    time_ns: Annotated[int, _TIME]
    transfer: Annotated[int, Column("Counts the server's transfers from 0")]
    direction: Annotated[str, Column("incoming or outgoing", category=True)]
    peer: Annotated[str | None, Column("Address of the other side", category=True, null="not told: a client")]
    start_s: Annotated[float, Column("Start; incoming: shifted by scheduler_delay", unit="s")]
    stop_s: Annotated[float, Column("Stop; incoming: shifted by scheduler_delay", unit="s")]
    nbytes: Annotated[int, Column("Size of the results moved, Dask's sizeof", unit="bytes")]
    compressed_bytes: Annotated[
        int | None, Column("Bytes on the wire", unit="bytes", null="not told (incoming)", null_value=-1)
    ]
    key_count: Annotated[int, Column("Results moved")]
    scheduler_delay_s: Annotated[float, Column("Delay of the worker at that moment", unit="s")]


@table("transfer_keys", step=4)
class TransferKey(NamedTuple):
    """One row per result moved by a transfer."""

    transfer: Annotated[int, Column("Into `transfers` of the same server")]
    key: Annotated[Key, _KEY]
    nbytes: Annotated[int, Column("Its size", unit="bytes", null="not told", null_value=-1)]


@table("spills", step=4, sort=("time_ns",))
class Spill(NamedTuple):
    """One row per result written to disk for want of memory, or read back."""

    time_ns: Annotated[int, _TIME]
    key: Annotated[Key, _KEY]
    direction: Annotated[str, Column("spill (to disk) or unspill (back)", category=True)]
    memory_bytes: Annotated[
        int, Column("Size in memory by Dask's sizeof", unit="bytes", null="not told", null_value=-1)
    ]
    disk_bytes: Annotated[
        int, Column("Size on disk", unit="bytes", null="not told, or no longer on disk", null_value=-1)
    ]


@table("fine_metrics", step=4, sort=("time_ns",))
class FineMetric(NamedTuple):
    """One row per fine performance metric and second in which it grew; `value` is the growth."""

    time_ns: Annotated[int, _TIME]
    context: Annotated[str, Column("execute, gather-dep, get-data, memory-monitor, p2p", category=True)]
    span_id: Annotated[str | None, Column("Span of the tasks", category=True, null="not of a task")]
    prefix: Annotated[str | None, Column("Task prefix", category=True, null="not of a task")]
    activity: Annotated[str, Column("thread-cpu, thread-noncpu, network, serialize, disk-write, ...", category=True)]
    unit: Annotated[str, Column("seconds, bytes or count", category=True)]
    value: Annotated[float, Column("Growth since the row before")]


@table("logs", step=4, sort=("time_ns",))
class Log(NamedTuple):
    """One row per log record of Dask's loggers in a recorded process.

    Where a process holds several servers of a role, one that the message does not name may
    have spoken although it stands under another of them.
    """

    time_ns: Annotated[int, _TIME]
    level: Annotated[str, Column("Level name", category=True)]
    logger: Annotated[str, Column("Logger", category=True)]
    message: Annotated[str, Column("The message, secrets redacted")]
    exception_text: Annotated[str | None, Column("Traceback logged with it", null="none")]


@table("losses", step=4, sort=("time_ns",))
class Loss(NamedTuple):
    """One row per thing recup knows it did not record."""

    time_ns: Annotated[int, _TIME]
    kind: Annotated[
        str,
        Column("dropped, degraded, hook_failed, hook_disabled, not_captured, gap or write_failed", category=True),
    ]
    table: Annotated[str | None, Column("Table that lacks rows", category=True, null="no single table")]
    row_count: Annotated[int, Column("Rows lost", null="not countable", null_value=-1)]
    detail: Annotated[str, Column("What happened, in words")]


# ---------------------------------------------------------------- step 5: execution

_NOT_COUNTED = "the kernel did not tell"
_LOG = Column("Name of the Darshan log in foreign/darshan", category=True)
_PATH = Column("Path of the file", category=True, null="the log lost the name")
_FILE_ID = Column("Darshan's record id of the file, as a signed number")


@table("threads", step=5, sort=("time_ns",))
class Thread(NamedTuple):
    """One row per thread that ran a task: its two names for the same thing."""

    time_ns: Annotated[int, _TIME]
    thread: Annotated[int, Column("threading.get_ident(); reused after the thread ends")]
    native_id: Annotated[int, Column("The kernel's thread id")]
    name: Annotated[str, Column("Name of the thread")]


@table("thread_counters", step=5, sort=("time_ns",))
class ThreadCounter(NamedTuple):
    """One row per attempt that ran in a recorded worker: what its own thread used from start to stop.

    Counters of a coroutine (`kind`) are null: the event loop's thread ran other things
    meanwhile.  What helper threads of a task did is in no row.  Reads and writes count
    sockets and pipes too, as the kernel does.
    """

    time_ns: Annotated[int, Column("Start of the task's own code, on the worker's wall clock", unit="ns")]
    key: Annotated[Key, _KEY]
    run_id: Annotated[int, Column("Attempt", null="a method of an actor", null_value=-1)]
    kind: Annotated[str, Column("task, coroutine or actor", category=True)]
    outcome: Annotated[str, Column("returned or the class of what it raised", category=True)]
    thread: Annotated[int, Column("threading.get_ident(); joins `results` and Darshan's pthread_id")]
    wall_ns: Annotated[int, Column("Start to stop, monotonic clock", unit="ns")]
    cpu_ns: Annotated[int, Column("CPU time of the thread", unit="ns", null=_NOT_COUNTED, null_value=-1)]
    user_ns: Annotated[
        int, Column("CPU time in user mode, as of the kernel's last tick", unit="ns", null=_NOT_COUNTED, null_value=-1)
    ]
    system_ns: Annotated[
        int, Column("CPU time in the kernel, as of the kernel's last tick", unit="ns", null=_NOT_COUNTED, null_value=-1)
    ]
    queue_wait_ns: Annotated[
        int, Column("Time ready to run without a CPU", unit="ns", null=_NOT_COUNTED, null_value=-1)
    ]
    voluntary_switch_count: Annotated[int, Column("Times it waited", null=_NOT_COUNTED, null_value=-1)]
    involuntary_switch_count: Annotated[int, Column("Times it was put off the CPU", null=_NOT_COUNTED, null_value=-1)]
    minor_fault_count: Annotated[int, Column("Page faults without I/O", null=_NOT_COUNTED, null_value=-1)]
    major_fault_count: Annotated[
        int, Column("Page faults with I/O, e.g. of memory maps", null=_NOT_COUNTED, null_value=-1)
    ]
    read_chars_bytes: Annotated[
        int, Column("Bytes returned by read calls, cached or not", unit="bytes", null=_NOT_COUNTED, null_value=-1)
    ]
    written_chars_bytes: Annotated[
        int, Column("Bytes given to write calls", unit="bytes", null=_NOT_COUNTED, null_value=-1)
    ]
    read_call_count: Annotated[int, Column("Read calls", null=_NOT_COUNTED, null_value=-1)]
    write_call_count: Annotated[int, Column("Write calls", null=_NOT_COUNTED, null_value=-1)]
    storage_read_bytes: Annotated[
        int, Column("Bytes fetched from storage", unit="bytes", null=_NOT_COUNTED, null_value=-1)
    ]
    storage_written_bytes: Annotated[
        int, Column("Bytes sent to storage", unit="bytes", null=_NOT_COUNTED, null_value=-1)
    ]


@table("clock_beacons", step=5, sort=("time_ns",))
class ClockBeacon(NamedTuple):
    """One row per one-byte write into a file that Darshan sees too: it ties Darshan's clock to the worker's."""

    time_ns: Annotated[int, Column("Wall clock just before the write", unit="ns")]
    after_ns: Annotated[int, Column("Wall clock just after the write", unit="ns")]
    thread: Annotated[int, Column("threading.get_ident() of the writing thread")]
    offset: Annotated[int, Column("Offset of the byte in the file")]
    path: Annotated[str, Column("Path of the file", category=True)]


@table("io_logs", step=5)
class IoLog(NamedTuple):
    """One row per Darshan log: what it is, and how much of it there is."""

    log: Annotated[str, _LOG]
    content_digest: Annotated[str, Column("SHA-256 of the log; a log is read into a run once")]
    format_version: Annotated[str, Column("Version of the log format")]
    hostname: Annotated[str | None, Column("Host", category=True, null="no traced file tells")]
    pid: Annotated[int | None, Column("Process, from the name of the log or of the beacon in it", null="neither tells")]
    exe: Annotated[str | None, Column("Command line, as Darshan cut it, secrets redacted", null="not readable")]
    job_id: Annotated[int | None, Column("Job id as Darshan saw it", null="not readable")]
    process_count: Annotated[int | None, Column("MPI ranks; 1 without MPI", null="not readable")]
    start_s: Annotated[float | None, Column("Start of the process on its host's clock", unit="s", null="not readable")]
    run_s: Annotated[float | None, Column("Darshan's run time", unit="s", null="the process was killed: not known")]
    modules: Annotated[str, Column("JSON: module to its version, bytes, partial flag and state")]
    segment_layout: Annotated[
        str | None, Column("Layout of DXT segments: plain-32, thread-40, text-96, ...", null="no DXT in the log")
    ]
    has_thread_ids: Annotated[bool, Column("Whether segments name their thread")]
    segment_count: Annotated[int, Column("DXT segments read")]
    operation_count: Annotated[
        int | None,
        Column("Reads and writes by the counters of POSIX and MPI-IO, of files DXT could trace", null="no counters"),
    ]
    is_killed: Annotated[bool, Column("Whether it is a memory map left by a killed process: counters only")]
    lost: Annotated[str | None, Column("JSON list: what is missing or damaged, in words", null="nothing known")]


@table("io_files", step=5)
class IoFile(NamedTuple):
    """One row per file and Darshan module in one log: the module's counters."""

    log: Annotated[str, _LOG]
    module: Annotated[str, Column("POSIX, STDIO, MPI-IO, LUSTRE, H5F, H5D, HEATMAP, ...", category=True)]
    file_id: Annotated[int, _FILE_ID]
    path: Annotated[str | None, _PATH]
    rank: Annotated[int, Column("MPI rank; -1: shared by all")]
    mount: Annotated[str | None, Column("Mount point", category=True, null="not told")]
    filesystem: Annotated[str | None, Column("Type of the file system", category=True, null="not told")]
    open_count: Annotated[int | None, Column("Opens", null="the module does not count them")]
    read_count: Annotated[int | None, Column("Reads", null="the module does not count them")]
    write_count: Annotated[int | None, Column("Writes", null="the module does not count them")]
    read_bytes: Annotated[int | None, Column("Bytes read", unit="bytes", null="the module does not count them")]
    written_bytes: Annotated[int | None, Column("Bytes written", unit="bytes", null="the module does not count them")]
    read_s: Annotated[float | None, Column("Time in reads", unit="s", null="the module does not count it")]
    write_s: Annotated[float | None, Column("Time in writes", unit="s", null="the module does not count it")]
    meta_s: Annotated[float | None, Column("Time in opens, stats, seeks, closes", unit="s", null="not counted")]
    first_s: Annotated[float | None, Column("First open, since the log's start", unit="s", null="not told")]
    last_s: Annotated[float | None, Column("Last close, or last use, since the log's start", unit="s", null="not told")]
    counters: Annotated[str, Column("JSON: every counter of the record that is not zero, by Darshan's name")]


@table("io_segments", step=5)
class IoSegment(NamedTuple):
    """One row per read or write that DXT traced."""

    log: Annotated[str, _LOG]
    module: Annotated[str, Column("POSIX or MPI-IO", category=True)]
    direction: Annotated[str, Column("read or write", category=True)]
    file_id: Annotated[int, _FILE_ID]
    path: Annotated[str | None, _PATH]
    rank: Annotated[int, Column("MPI rank")]
    offset: Annotated[int, Column("Offset in the file; wrong for appends", null="not told by MPI-IO", null_value=-1)]
    nbytes: Annotated[int, Column("Bytes asked for or moved", unit="bytes")]
    start_s: Annotated[float, Column("Start, since the zero of the log's segment clock", unit="s")]
    stop_s: Annotated[float, Column("Stop, since the zero of the log's segment clock", unit="s")]
    thread: Annotated[
        int, Column("pthread_self(), which is threading.get_ident()", null="not in this layout", null_value=-1)
    ]


@table("function_calls", step=5, sort=("time_ns",))
class FunctionCall(NamedTuple):
    """One row per function, task prefix and thread that Yappi saw, and reading in which it grew.

    Counts and times are the growth since the row before: sum them.  A task is counted when
    it has ended.  Counts of functions outside tasks are of calls that have returned, and
    their own times are known only roughly while they run.
    """

    time_ns: Annotated[int, Column("When the row was made, on the clock of the host", unit="ns")]
    clock: Annotated[str, Column("wall or cpu", category=True)]
    prefix: Annotated[str | None, Column("Task prefix", category=True, null="outside tasks")]
    thread: Annotated[int | None, Column("threading.get_ident()", null="not told")]
    kind: Annotated[str, Column("task, coroutine (of the event loop) or other", category=True)]
    function: Annotated[str, Column("Qualified name of the function", category=True)]
    path: Annotated[str | None, Column("Source file", category=True, null="built in")]
    line: Annotated[int | None, Column("First line", null="built in")]
    call_count: Annotated[int, Column("Calls")]
    primitive_call_count: Annotated[int, Column("Calls that were no recursion")]
    own_s: Annotated[float, Column("Time in the function itself", unit="s")]
    total_s: Annotated[float, Column("Time in it and what it called", unit="s")]
