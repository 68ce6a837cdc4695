"""Views of what attempts used in their own threads, beside who and where they were.

Part of `recup.fuse`, which says what all views have in common.
"""

from __future__ import annotations

from recup.store import View, ViewColumn

_NOT_COUNTED = "a coroutine, or the kernel did not tell"

TASK_COUNTERS = View(
    "task_counters",
    "One row per attempt that ran in a recorded worker, and per call of an actor's method: what its own thread used "
    "between start and stop of the task's code.  Helper threads are not in it; reads and writes count sockets and "
    "pipes too.",
    (
        ViewColumn("scheduler_id", "Server id of the scheduler", null="not told"),
        ViewColumn("key", "Dask key; of an actor's method <prefix>.<method>", null="its text is lost"),
        ViewColumn("key_id", "Number of the key"),
        ViewColumn("run_id", "Attempt", null="a method of an actor"),
        ViewColumn("prefix", "Dask's task prefix", null="the graph is not recorded, or a method of an actor"),
        ViewColumn("worker", "Address of the worker", null="not told"),
        ViewColumn("worker_id", "Server id of the worker"),
        ViewColumn("kind", "task, coroutine or actor"),
        ViewColumn("outcome", "returned, or the class of what it raised"),
        ViewColumn("thread", "threading.get_ident() of the thread"),
        ViewColumn("native_id", "The kernel's id of the thread", null="not recorded"),
        ViewColumn("thread_name", "Name of the thread", null="not recorded"),
        ViewColumn("started_s", "Start of the task's code", "s"),
        ViewColumn("wall_s", "Start to stop", "s"),
        ViewColumn("cpu_s", "CPU time", "s", _NOT_COUNTED),
        ViewColumn(
            "user_s", "CPU time in user mode, as of the kernel's last tick: sums of many tasks only", "s", _NOT_COUNTED
        ),
        ViewColumn(
            "system_s",
            "CPU time in the kernel, as of the kernel's last tick: sums of many tasks only",
            "s",
            _NOT_COUNTED,
        ),
        ViewColumn("queue_wait_s", "Time ready to run without a CPU", "s", _NOT_COUNTED),
        ViewColumn(
            "blocked_s", "Wall less CPU less queue wait: waiting for I/O, locks, the GIL, sleeping", "s", _NOT_COUNTED
        ),
        ViewColumn("voluntary_switch_count", "Times it waited", null=_NOT_COUNTED),
        ViewColumn("involuntary_switch_count", "Times it was put off the CPU", null=_NOT_COUNTED),
        ViewColumn("minor_fault_count", "Page faults without I/O", null=_NOT_COUNTED),
        ViewColumn("major_fault_count", "Page faults with I/O", null=_NOT_COUNTED),
        ViewColumn("read_chars_bytes", "Bytes returned by read calls", "bytes", _NOT_COUNTED),
        ViewColumn("written_chars_bytes", "Bytes given to write calls", "bytes", _NOT_COUNTED),
        ViewColumn("read_call_count", "Read calls", null=_NOT_COUNTED),
        ViewColumn("write_call_count", "Write calls", null=_NOT_COUNTED),
        ViewColumn("storage_read_bytes", "Bytes fetched from storage", "bytes", _NOT_COUNTED),
        ViewColumn("storage_written_bytes", "Bytes sent to storage", "bytes", _NOT_COUNTED),
        ViewColumn("clock_error_s", "Bound of what the start may be off by", "s", "no bound is known"),
    ),
    """
with named as (
    select server_id, thread, time_ns, native_id, name from raw.threads
), prefixes as (
    select server_id as scheduler_id, key_id, arg_max(prefix, submission) as prefix from raw.tasks group by all
)
select
    s.scheduler_id,
    keys.key,
    c.key_id,
    c.run_id,
    prefixes.prefix,
    s.address as worker,
    c.server_id as worker_id,
    c.kind,
    c.outcome,
    c.thread,
    named.native_id,
    named.name as thread_name,
    c.time_ns / 1e9 + coalesce(clocks.offset_s, 0.0) as started_s,
    c.wall_ns / 1e9 as wall_s,
    c.cpu_ns / 1e9 as cpu_s,
    c.user_ns / 1e9 as user_s,
    c.system_ns / 1e9 as system_s,
    c.queue_wait_ns / 1e9 as queue_wait_s,
    -- The three come from clocks of different resolution; greatest() would make 0 of what is not known.
    case when c.cpu_ns is not null then greatest(c.wall_ns - c.cpu_ns - coalesce(c.queue_wait_ns, 0), 0) / 1e9 end
        as blocked_s,
    c.voluntary_switch_count,
    c.involuntary_switch_count,
    c.minor_fault_count,
    c.major_fault_count,
    c.read_chars_bytes,
    c.written_chars_bytes,
    c.read_call_count,
    c.write_call_count,
    c.storage_read_bytes,
    c.storage_written_bytes,
    clocks.error_s as clock_error_s
from raw.thread_counters c
left join servers s on s.server_id = c.server_id
left join clocks on clocks.server_id = c.server_id
left join keys on keys.key_id = c.key_id
left join prefixes on prefixes.scheduler_id = s.scheduler_id and prefixes.key_id = c.key_id
asof left join named
    on named.server_id = c.server_id and named.thread = c.thread and c.time_ns + 1000000 >= named.time_ns
""",
)

COUNTER_SUMS = View(
    "counter_sums",
    "One row per worker, thread, prefix and what became of attempts: their counters summed up.  Methods of actors are no "
    "attempts: each of their keys has rows of its own.",
    (),
    """
with prefixes as (
    select key_id, any_value(prefix) as prefix from raw.tasks group by key_id
)
select
    c.server_id,
    c.thread,
    p.prefix,
    c.kind,
    c.outcome,
    c.cpu_ns is not null as is_counted,
    case when c.run_id is null then c.key_id end as key_id,
    count(*) as attempt_count,
    -- A sum of whole numbers is of a type that files lack.
    sum(c.wall_ns)::bigint as wall_ns,
    sum(c.cpu_ns)::bigint as cpu_ns,
    sum(case when c.cpu_ns is not null then greatest(c.wall_ns - c.cpu_ns - coalesce(c.queue_wait_ns, 0), 0) end)::bigint
        as blocked_ns,
    sum(c.system_ns)::bigint as system_ns,
    sum(c.read_chars_bytes)::bigint as read_chars_bytes,
    sum(c.written_chars_bytes)::bigint as written_chars_bytes,
    sum(c.read_chars_bytes + c.written_chars_bytes)::bigint as moved_chars_bytes,
    sum(c.read_call_count)::bigint as read_call_count,
    sum(c.write_call_count)::bigint as write_call_count,
    sum(c.read_call_count + c.write_call_count)::bigint as call_count,
    sum(c.storage_read_bytes)::bigint as storage_read_bytes,
    sum(c.storage_written_bytes)::bigint as storage_written_bytes,
    sum(c.major_fault_count)::bigint as major_fault_count
from raw.thread_counters c
left join prefixes p on p.key_id = c.key_id
group by all
""",
    is_kept=True,
    is_inner=True,
)
