"""Views: what follows from the raw tables of several servers taken together.

Covers identity of servers, clocks, attempts of tasks, activities of workers, transfers
seen from both ends, lives of workers, submissions seen from both ends, I/O of tasks, and
a summary.
It does not cover raw tables (`recup.schema`) nor answers to questions (`recup.analyse`).

Every view says what is observed or follows; what does not follow is null or ``unknown``.
Times called ``*_s`` are seconds since the epoch on the clock of the scheduler, with
``clock_error_s`` as the bound of what alignment may be off by (null: no bound is known).
The worker's own rows are taken where there are any: they know failed attempts, and their
clock is known better.
"""

from __future__ import annotations

from recup.fuse_attempts import ACTIVITIES, ATTEMPTS, SERVER_NUMBERS
from recup.fuse_io import IO_VIEWS
from recup.fuse_servers import CLOCKS, SERVERS, WORKER_LIVES
from recup.fuse_task_runs import ATTEMPT_FACTS, TASK_RUNS
from recup.fuse_threads import COUNTER_SUMS, TASK_COUNTERS
from recup.fuse_wasted import WASTED_ATTEMPTS
from recup.store import View, ViewColumn

_SCHEDULER_ID = ViewColumn("scheduler_id", "Server id of the scheduler", null="not told")
_CLOCK_ERROR = ViewColumn(
    "clock_error_s", "Bound of what the alignment of clocks may be off by", "s", "no bound is known"
)

TRANSFERS_DISTINCT = View(
    "transfers_distinct",
    "One row per movement of results between two workers, told once though both ends recorded it.  Ends are paired "
    "where workers, keys and count of such requests agree and the times overlap; else each end stays a row of its own.",
    (
        _SCHEDULER_ID,
        ViewColumn("source_worker", "Address it came from", null="not told"),
        ViewColumn("source_worker_id", "Server id of that worker", null="not told"),
        ViewColumn("destination_worker", "Address it went to; a client or the scheduler may ask too", null="not told"),
        ViewColumn("destination_worker_id", "Server id of that worker", null="no worker, or not told"),
        ViewColumn("start_s", "Start; the receiver's where it told", "s"),
        ViewColumn("stop_s", "Stop; the receiver's where it told", "s"),
        ViewColumn("duration_s", "Stop less start", "s"),
        ViewColumn("nbytes", "Size of the results moved, Dask's sizeof", "bytes"),
        ViewColumn("compressed_bytes", "Bytes on the wire", "bytes", "the sender did not tell"),
        ViewColumn("key_count", "Results moved"),
        ViewColumn("bandwidth_bytes_per_s", "nbytes by duration", "bytes/s", "shorter than a millisecond: fiction"),
        ViewColumn("seen_by", "both, destination or source"),
        ViewColumn("is_paired", "Whether both ends are in this row"),
        ViewColumn("incoming_transfer", "Into `transfers` of the receiver", null="the receiver did not tell"),
        ViewColumn("outgoing_transfer", "Into `transfers` of the sender", null="the sender did not tell"),
        _CLOCK_ERROR,
    ),
    """
with moved_one as (
    select server_id, transfer, cast(any_value(key_id) as varchar) as moved_keys, count(*) as moved_count
    from raw.transfer_keys
    group by server_id, transfer
), moved_several as (
    -- Putting keys in order costs much, and most transfers move one.
    select server_id, transfer, string_agg(key_id, ',' order by key_id) as moved_keys
    from raw.transfer_keys
    semi join (from moved_one where moved_count > 1) using (server_id, transfer)
    group by server_id, transfer
), moved as (
    select server_id, transfer, moved_keys from moved_one where moved_count = 1
    union all
    from moved_several
), ends as (
    select
        t.*,
        s.scheduler_id,
        s.address,
        moved.moved_keys,
        -- Dask shifts both ends by the scheduler_delay of the worker that tells.
        coalesce(c.offset_s, 0.0) - t.scheduler_delay_s as shift_s,
        c.error_s
    from raw.transfers t
    left join servers s on s.server_id = t.server_id
    left join clocks c on c.server_id = t.server_id
    left join moved on moved.server_id = t.server_id and moved.transfer = t.transfer
), lives as (
    select scheduler_id, address, worker_id, came_s
    from worker_lives
    where address is not null and came_s is not null
), lived_again as (
    select scheduler_id, address from lives group by all having count(*) > 1
), only_lives as (
    from lives
    anti join lived_again using (scheduler_id, address)
), one_of_lives as (
    select ends.server_id, ends.transfer, ends.direction, ends.time_ns, any_value(life.worker_id) as worker_id
    from ends
    semi join lived_again on lived_again.scheduler_id = ends.scheduler_id and lived_again.address = ends.peer
    asof join lives life
        on life.scheduler_id = ends.scheduler_id and life.address = ends.peer and ends.stop_s >= life.came_s
    group by all
), named as (
    select
        ends.*,
        start_s + shift_s as begun_s,
        stop_s + shift_s as ended_s,
        coalesce(only_lives.worker_id, one_of_lives.worker_id) as peer_id
    from ends
    left join only_lives
        on only_lives.scheduler_id = ends.scheduler_id
        and only_lives.address = ends.peer
        and ends.stop_s >= only_lives.came_s
    left join one_of_lives
        on one_of_lives.server_id = ends.server_id
        and one_of_lives.transfer = ends.transfer
        and one_of_lives.direction = ends.direction
        and one_of_lives.time_ns = ends.time_ns
), incoming as (
    select *, peer as source_worker, peer_id as source_worker_id,
        row_number() over pairs as turn, count(*) over sides as turn_count
    from named
    where direction = 'incoming'
    window
        pairs as (partition by peer_id, server_id, moved_keys order by begun_s),
        sides as (partition by peer_id, server_id, moved_keys)
), outgoing as (
    select *, nullif(peer, 'None') as destination_worker, peer_id as destination_worker_id,
        row_number() over pairs as turn, count(*) over sides as turn_count
    from named
    where direction = 'outgoing'
    window
        pairs as (partition by server_id, peer_id, moved_keys order by begun_s),
        sides as (partition by server_id, peer_id, moved_keys)
)
select
    coalesce(i.scheduler_id, o.scheduler_id) as scheduler_id,
    coalesce(i.source_worker, o.address) as source_worker,
    coalesce(i.source_worker_id, o.server_id) as source_worker_id,
    coalesce(i.address, o.destination_worker) as destination_worker,
    coalesce(i.server_id, o.destination_worker_id) as destination_worker_id,
    coalesce(i.begun_s, o.begun_s) as start_s,
    coalesce(i.ended_s, o.ended_s) as stop_s,
    coalesce(i.ended_s - i.begun_s, o.ended_s - o.begun_s) as duration_s,
    coalesce(i.nbytes, o.nbytes) as nbytes,
    o.compressed_bytes,
    coalesce(i.key_count, o.key_count) as key_count,
    case when coalesce(i.ended_s - i.begun_s, o.ended_s - o.begun_s) >= 1e-3
        then coalesce(i.nbytes, o.nbytes) / coalesce(i.ended_s - i.begun_s, o.ended_s - o.begun_s)
    end as bandwidth_bytes_per_s,
    case when o.server_id is null then 'destination' when i.server_id is null then 'source' else 'both' end as seen_by,
    i.server_id is not null and o.server_id is not null as is_paired,
    i.transfer as incoming_transfer,
    o.transfer as outgoing_transfer,
    coalesce(i.error_s, o.error_s) as clock_error_s
from incoming i
full join outgoing o
    on o.server_id = i.source_worker_id
    and o.destination_worker_id = i.server_id
    and o.moved_keys = i.moved_keys
    and o.turn = i.turn
    and o.turn_count = i.turn_count
    and o.begun_s <= i.ended_s + coalesce(i.error_s, 0) + coalesce(o.error_s, 0) + 1e-3
    and o.ended_s >= i.begun_s - coalesce(i.error_s, 0) - coalesce(o.error_s, 0) - 1e-3
""",
    is_kept=True,
)

SPILLED_WORKERS = View(
    "spilled_workers",
    "One row per worker of which it is known that it spilled.",
    (),
    """
-- What Dask calls disk-read and disk-write is all that took its store over 5 ms, on a disk or not.
select server_id as worker_id from raw.spills
union
select server_id from raw.samples where metric = 'spilled_disk_bytes' and role = 'worker' and value > 0
union
select s.server_id
from raw.samples x
join servers s on s.address = x.subject
where x.metric = 'memory_spilled_bytes' and x.value > 0
""",
    is_inner=True,
)

MOVED_RESULTS = View(
    "moved_results",
    "One row per result that moved between workers: its prefix, how often, to how many, its size and the bytes moved.",
    (),
    """
with moves as (
    select t.scheduler_id, k.key_id, k.nbytes, t.destination_worker_id as destination
    from transfers_distinct t
    join raw.transfer_keys k
        on k.server_id = case when t.incoming_transfer is null then t.source_worker_id else t.destination_worker_id end
        and k.transfer = coalesce(t.incoming_transfer, t.outgoing_transfer)
    where t.destination_worker_id is not null
), moved_to as (
    -- To count distinct workers costs twice as much.
    select scheduler_id, key_id, destination, count(*) as move_count, max(nbytes) as nbytes, sum(nbytes) as moved_bytes
    from moves
    group by scheduler_id, key_id, destination
), moved as (
    select
        scheduler_id,
        key_id,
        sum(move_count)::bigint as move_count,
        count(*) as destination_count,
        max(nbytes) as nbytes,
        sum(moved_bytes)::bigint as moved_bytes
    from moved_to
    group by scheduler_id, key_id
), prefixes as (
    select server_id as scheduler_id, key_id, any_value(prefix) as prefix from raw.tasks group by all
)
select m.*, p.prefix
from moved m
left join prefixes p on p.scheduler_id = m.scheduler_id and p.key_id = m.key_id
""",
    is_kept=True,
    is_inner=True,
)

SUBMISSION_STORY = View(
    "submission_story",
    "One row per graph: as its client sent it, joined to what the scheduler took.",
    (
        ViewColumn("client", "Client id"),
        ViewColumn("client_server_id", "Server id under which the client recorded", null="the client did not record"),
        ViewColumn("client_submission", "Into `client_submissions` of that server", null="the client did not record"),
        _SCHEDULER_ID,
        ViewColumn(
            "submission", "Into `submissions` of the scheduler", null="the scheduler took none, or did not record"
        ),
        ViewColumn(
            "is_exact",
            "Whether the two sides are joined by the digest of the keys and an equal number of such graphs; else by "
            "order",
            null="only one side",
        ),
        ViewColumn("sent_s", "When the client began to send it", "s", "the client did not record"),
        ViewColumn("taken_s", "When the scheduler had it as tasks", "s", "the scheduler took none, or did not record"),
        ViewColumn("call", "Outermost Dask call", null="not found, or the client did not record"),
        ViewColumn("expression", "Class of what was sent", null="the client did not record"),
        ViewColumn("wanted_key_count", "Keys asked for"),
        ViewColumn("layer_count", "Layers before optimization", null="not a layered graph, or not recorded"),
        ViewColumn("lazy_task_count", "Tasks before optimization", null="not known without materialising"),
        ViewColumn("task_count", "Tasks the graph touches", null="the scheduler took none, or did not record"),
        ViewColumn("new_task_count", "Tasks that were new", null="the scheduler took none, or did not record"),
        ViewColumn("path", "File of the outermost user frame", null="no user frame"),
        ViewColumn("line", "Line of it", null="no user frame"),
        ViewColumn("function", "Function of it", null="no user frame"),
        ViewColumn("line_text", "The source line", null="not found or switched off"),
        ViewColumn("error", "Class of the error on sending", null="it was sent"),
    ),
    """
with sent as (
    select *,
        row_number() over (partition by client, keys_digest order by submission) as turn,
        count(*) over (partition by client, keys_digest) as turn_count,
        row_number() over (partition by client order by submission) as place,
        count(*) over (partition by client) as place_count
    from raw.client_submissions
    where error is null
), taken as (
    select *,
        row_number() over (partition by client, keys_digest order by submission) as turn,
        count(*) over (partition by client, keys_digest) as turn_count,
        row_number() over (partition by client order by submission) as place,
        count(*) over (partition by client) as place_count
    from raw.submissions
), exact as (
    select s.server_id as sender, s.submission as sent, t.server_id as taker, t.submission as taken, true as is_exact
    from sent s
    join taken t
        on t.client = s.client and t.keys_digest = s.keys_digest and t.turn = s.turn and t.turn_count = s.turn_count
), by_order as (
    select s.server_id as sender, s.submission as sent, t.server_id as taker, t.submission as taken, false as is_exact
    from sent s
    join taken t on t.client = s.client and t.place = s.place and t.place_count = s.place_count
    where (s.keys_digest is null or t.keys_digest is null)
        and not exists (select 1 from exact e where e.sender = s.server_id and e.sent = s.submission)
        and not exists (select 1 from exact e where e.taker = t.server_id and e.taken = t.submission)
), pairs as (
    from exact
    union all
    from by_order
), frames as (
    select server_id, submission, path, line, function, line_text
    from raw.submission_frames
    qualify row_number() over (partition by server_id, submission order by depth) = 1
)
select
    coalesce(s.client, t.client) as client,
    s.server_id as client_server_id,
    s.submission as client_submission,
    t.server_id as scheduler_id,
    t.submission,
    p.is_exact,
    s.time_ns / 1e9 + coalesce(c.offset_s, 0.0) as sent_s,
    t.time_ns / 1e9 as taken_s,
    s.call,
    s.expression,
    coalesce(s.wanted_key_count, t.wanted_key_count) as wanted_key_count,
    s.layer_count,
    s.task_count as lazy_task_count,
    t.task_count,
    t.new_task_count,
    f.path,
    f.line,
    f.function,
    f.line_text,
    s.error
from raw.client_submissions s
left join pairs p on p.sender = s.server_id and p.sent = s.submission
full join raw.submissions t on t.server_id = p.taker and t.submission = p.taken
left join frames f on f.server_id = s.server_id and f.submission = s.submission
left join clocks c on c.server_id = s.server_id
""",
)

OUTCOMES = ("memory", "error", "rescheduled", "stolen", "cancelled", "lost", "running_at_end", "unknown")
"""Every value of `task_runs.outcome`."""

RUN_TIMES = View(
    "run_times",
    "One row: when the run began and ended, as far as recorded.",
    (
        ViewColumn("started_s", "First recorded moment of any server", "s", "nothing is recorded"),
        ViewColumn("ended_s", "Last recorded moment or sign of life of any server", "s", "nothing is recorded"),
        ViewColumn("wall_s", "Ended less started", "s", "nothing is recorded"),
    ),
    """
with moments as (
    select min(time_ns) as first_ns, max(time_ns) as last_ns from raw.scheduler_transitions
    union all
    select min(time_ns), max(time_ns) from raw.worker_transitions
    union all
    select min(time_ns), max(time_ns) from raw.clock_samples
    union all
    select min(time_ns), max(time_ns) from raw.processes
    union all
    select null, max(last_sign_ns) from spools
)
select
    min(first_ns) / 1e9 as started_s,
    max(last_ns) / 1e9 as ended_s,
    (max(last_ns)::hugeint - min(first_ns))::double / 1e9 as wall_s
from moments
""",
    is_kept=True,
)

RUN_SUMMARY = View(
    "run_summary",
    "One row: the run in numbers.",
    (
        ViewColumn("started_s", "First recorded moment of any server", "s", "nothing is recorded"),
        ViewColumn("ended_s", "Last recorded moment or sign of life of any server", "s", "nothing is recorded"),
        ViewColumn("wall_s", "Ended less started", "s", "nothing is recorded"),
        ViewColumn("first_task_s", "First task sent to a worker", "s", "no task was"),
        ViewColumn("last_task_s", "Last end of an attempt", "s", "no attempt ended"),
        ViewColumn("scheduler_count", "Schedulers"),
        ViewColumn("worker_count", "Lives of workers"),
        ViewColumn("worker_captured_count", "Of them with a spool"),
        ViewColumn("thread_count", "Task threads of all lives together"),
        ViewColumn("client_count", "Clients that recorded or that a scheduler saw"),
        ViewColumn("host_count", "Hosts"),
        ViewColumn("submission_count", "Graphs taken"),
        ViewColumn("task_count", "Distinct tasks (scheduler and key)"),
        ViewColumn("attempt_count", "Attempts to run one"),
        *(ViewColumn(f"{name}_count", f"Attempts with outcome {name}") for name in OUTCOMES),
        ViewColumn("compute_s", "Seconds computed by all threads", "s", "no attempt told"),
        ViewColumn("transfer_count", "Movements of results between workers"),
        ViewColumn("transfer_bytes", "Bytes moved", "bytes"),
        ViewColumn("spilled_bytes", "Bytes written to disk for want of memory, where told", "bytes"),
        ViewColumn("loss_count", "Rows of `losses`"),
    ),
    f"""
with seen_clients as (
    select client from raw.clients where client <> 'fire-and-forget'
    union
    select client from raw.client_submissions
)
select
    (select started_s from run_times) as started_s,
    (select ended_s from run_times) as ended_s,
    (select wall_s from run_times) as wall_s,
    min(assigned_s) as first_task_s,
    max(ended_s) as last_task_s,
    (select count(*) from servers where role = 'scheduler') as scheduler_count,
    (select count(*) from worker_lives) as worker_count,
    (select count(*) from worker_lives where is_captured) as worker_captured_count,
    (select coalesce(try_cast(sum(thread_count) as bigint), 0) from worker_lives) as thread_count,
    (select count(*) from seen_clients) as client_count,
    (select count(distinct host_id) from raw.processes) as host_count,
    (select count(*) from raw.submissions) as submission_count,
    (select count(*) from (select distinct server_id, key_id from raw.tasks)) as task_count,
    count(*) as attempt_count,
    {", ".join(f"count(*) filter (outcome = '{name}') as {name}_count" for name in OUTCOMES)},
    sum(compute_s) as compute_s,
    (select count(*) from transfers_distinct) as transfer_count,
    (select coalesce(try_cast(sum(nbytes) as bigint), 0) from transfers_distinct) as transfer_bytes,
    (select coalesce(try_cast(sum(memory_bytes) as bigint), 0) from raw.spills where direction = 'spill') as spilled_bytes,
    (select count(*) from raw.losses) as loss_count
from task_runs
""",
    is_kept=True,
)

VIEWS: tuple[View, ...] = (
    SERVERS,
    CLOCKS,
    WORKER_LIVES,
    SERVER_NUMBERS,
    ATTEMPTS,
    ATTEMPT_FACTS,
    TASK_RUNS,
    ACTIVITIES,
    TRANSFERS_DISTINCT,
    SPILLED_WORKERS,
    MOVED_RESULTS,
    SUBMISSION_STORY,
    RUN_TIMES,
    RUN_SUMMARY,
    TASK_COUNTERS,
    COUNTER_SUMS,
    WASTED_ATTEMPTS,
    *IO_VIEWS,
)
"""Every view, those it needs before it."""
