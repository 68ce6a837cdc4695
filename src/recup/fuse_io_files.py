"""Views under the join of I/O: what is known of each file, and of which files time alone tells nothing.

Part of `recup.fuse`, which says what all views have in common.

Darshan books reads and writes on a file by the number of their descriptor, and does not see
every end of a descriptor: not when `fclose` closes one that `fdopen` made a C stream of
(numpy's `.npy` payload: `dup`, `fdopen`, `fclose`), nor when `dup2` puts another file in its
place (output that was redirected and is put back).  What the next owner of the number does,
a socket, a pipe or a file that Darshan leaves out, is booked on the old file from then on, and
moves its times of last use, too.  So of such a file only that is sure what was done before it
was first made a stream; and nothing, where it was duplicated for something else.
"""

from __future__ import annotations

from recup.store import View

IO_NAMES = View(
    "io_names",
    "One row per log and file: its names, what its counters say of when it was open, from when on what is booked on it "
    "may be of another descriptor (`doubt_from_s`), and whether it is a file of Python, Dask or recup.",
    (),
    """
with seen as (
    select log, file_id, any_value(path) as path
    from (
        select log, file_id, any_value(path) as path from raw.io_segments group by all
        union all
        select log, file_id, any_value(path) from raw.io_files group by all
    )
    group by all
), records as (
    select
        log,
        file_id,
        max(open_count) filter (module = 'POSIX') as open_count,
        sum(open_count) filter (module = 'POSIX') = 1
            and sum(try_cast(counters ->> '$.POSIX_RENAME_SOURCES' as bigint)) filter (module = 'POSIX') = 1
            as is_opened_and_renamed_once,
        -- The record may have begun by something else than that opening: the renaming may have come first.
        coalesce(
            sum(try_cast(counters ->> '$.POSIX_STATS' as bigint)) filter (module = 'POSIX'), 0
        ) + coalesce(sum(try_cast(counters ->> '$.POSIX_RENAME_TARGETS' as bigint)) filter (module = 'POSIX'), 0) = 0
            as is_begun_by_opening,
        min(first_s) filter (module = 'POSIX') as first_s,
        max(last_s) filter (module = 'POSIX') as last_s,
        min(first_s) filter (module = 'STDIO') as stream_first_s,
        coalesce(sum(try_cast(counters ->> '$.STDIO_FDOPENS' as bigint)) filter (module = 'STDIO'), 0) as fdopen_count,
        coalesce(sum(try_cast(counters ->> '$.POSIX_DUPS' as bigint)) filter (module = 'POSIX'), 0) as dup_count,
        case
            when dup_count > fdopen_count then 0.0
            when fdopen_count > 0 then coalesce(stream_first_s, 0.0)
        end as doubt_from_s,
        coalesce(bool_or(module = 'POSIX'), false) as has_descriptors,
        coalesce(bool_or(module = 'STDIO'), false) as has_streams
    from raw.io_files
    group by log, file_id
), cut_logs as (
    -- Files without counters in a log that lost some may have been duplicated and reopened, too.
    select
        log,
        coalesce(bool_or(modules ->> '$.POSIX.state' = 'damaged'), false) as lacks_descriptors,
        coalesce(bool_or(modules ->> '$.STDIO.state' = 'damaged' or modules ->> '$.STDIO.partial' = 'true'), false)
            as lacks_streams
    from raw.io_logs
    group by log
), renamed as (
    -- Darshan keeps the id of the old name, an unsigned number, on the record of the new one.
    select
        log,
        file_id as new_id,
        try_cast(counters ->> '$.POSIX_RENAMED_FROM' as hugeint) as raw_id,
        case when raw_id >= 9223372036854775808 then raw_id - 18446744073709551616 else raw_id end::bigint as file_id
    from raw.io_files
    where module = 'POSIX' and contains(counters, 'POSIX_RENAMED_FROM')
), new_names as (
    -- When it was renamed is not told, and a name may be given to a new file later.  So the new name is sure where the
    -- file was opened once, and before it was renamed: nothing else is known of the name, or it is one of random digits
    -- for a file that is not finished, to be used once (a `stat` of the open file looks like one of the name).
    select r.log, r.file_id, any_value(s.path) as path
    from renamed r
    join seen s on s.log = r.log and s.file_id = r.new_id
    join seen old on old.log = r.log and old.file_id = r.file_id
    join records f on f.log = r.log and f.file_id = r.file_id
    where r.raw_id <> 0 and f.is_opened_and_renamed_once
        and (f.is_begun_by_opening or regexp_matches(
            old.path, '([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})[.](partial|part|tmp|temp)$'
        ))
    group by r.log, r.file_id
    having count(distinct r.new_id) = 1
), own_places as (
    select distinct rtrim(place, '/') || '/' as place
    from (
        select local_directory as place from raw.processes
        union all
        select path from raw.filesystems where purpose = 'run'
        union all
        select regexp_extract(executable, '^(.*)/bin/[^/]*$', 1) from raw.processes
    )
    where length(place) > 1 and place not in ('/usr', '/usr/local')
), own_files as (
    select distinct log, file_id from seen join own_places on starts_with(seen.path, own_places.place)
)
select
    row_number() over () as file,
    s.log,
    s.file_id,
    coalesce(n.path, s.path) as path,
    case when n.path is not null then s.path end as written_as,
    r.open_count,
    r.first_s,
    r.last_s,
    case
        when lacks_descriptors and not coalesce(has_descriptors, false) then 0.0
        when lacks_streams and not coalesce(has_streams, false) then 0.0
        else r.doubt_from_s
    end as doubt_from_s,
    b.path is not null as is_beacon,
    b.path is not null
        or own_files.file_id is not null
        or coalesce(regexp_matches(
            s.path,
            '(/site-packages/|/dist-packages/|/lib/python[0-9.]+/|[.](py|pyc|pyi|pth|so)$|[.]so[.][0-9.]+$|/pyvenv[.]cfg$'
            || '|^/(proc|sys|dev|etc|lib|lib64|usr/lib|usr/lib64|usr/share)/|/[.]config/dask/)'
        ), false) as is_runtime
from seen s
left join records r on r.log = s.log and r.file_id = s.file_id
left join cut_logs on cut_logs.log = s.log
left join new_names n on n.log = s.log and n.file_id = s.file_id
left join own_files on own_files.log = s.log and own_files.file_id = s.file_id
left join (select distinct path from raw.clock_beacons) b on b.path = s.path
""",
    is_kept=True,
    is_inner=True,
)

IO_LOOSE_FILES = View(
    "io_loose_files",
    "One row per file, of logs without thread ids, that was used while no attempt ran: something else than tasks uses "
    "it, so that time alone tells nothing.",
    (),
    """
with placed as (
    select
        n.file,
        c.process,
        c.zero_ns + try_cast(s.start_s * 1e9 as bigint) - c.error_ns as from_ns,
        c.zero_ns + try_cast(s.stop_s * 1e9 as bigint) + c.error_ns as to_ns
    from raw.io_segments s
    join io_clocks c on c.log = s.log
    join io_names n on n.log = s.log and n.file_id = s.file_id
    where s.thread is null and c.process is not null
)
select distinct p.file
from placed p
asof left join (select * from io_steps where is_begin) b
    on b.scope = -p.process and p.to_ns >= b.at_ns
asof left join (select * from io_steps where not is_begin) e
    on e.scope = -p.process and p.from_ns > e.at_ns
where coalesce(b.attempts, 0) = coalesce(e.attempts, 0)
""",
    is_kept=True,
    is_inner=True,
)

IO_FILE_OWNERS = View(
    "io_file_owners",
    "One row per file, of logs without thread ids, that one attempt surely opened and closed: it was opened once, and "
    "from that to its end one attempt may have run, and did.",
    (),
    """
with opened_once as (
    select
        n.file,
        c.process,
        c.zero_ns + try_cast(n.first_s * 1e9 as bigint) as opened_ns,
        c.zero_ns + try_cast(n.last_s * 1e9 as bigint) as closed_ns,
        c.error_ns
    from io_names n
    join io_clocks c on c.log = n.log
    where n.open_count = 1 and not c.has_thread_ids and not c.is_doubtful and c.process is not null
        and not n.is_runtime and n.doubt_from_s is null and n.last_s >= n.first_s
), pairs as (
    select f.*, f.opened_ns + f.error_ns as opened_by_ns, h.holder
    from opened_once f
    join io_holders h on h.process = f.process
), held as (
    select
        f.file,
        t.attempt,
        coalesce(t.out_to_ns >= f.closed_ns - f.error_ns, false) as is_possible,
        is_possible and t.in_from_ns <= f.opened_ns - f.error_ns and t.in_to_ns >= f.closed_ns + f.error_ns as is_sure,
        coalesce(t.before_to_ns >= f.closed_ns - f.error_ns, false) as is_crowded
    from pairs f
    asof left join io_turns t on t.holder = f.holder and f.opened_by_ns >= t.out_from_ns
), others as (
    -- Coroutines and attempts without an end held no thread that is known; they might have done it.
    select distinct f.file
    from opened_once f
    join io_attempts a
        on a.process = f.process and a.thread is null
        and a.out_from_ns <= f.closed_ns + f.error_ns and a.out_to_ns >= f.opened_ns - f.error_ns
)
select file, any_value(attempt) filter (is_sure) as attempt
from held
where file not in (select file from others)
group by file
having count(*) filter (is_possible) = 1 and count(*) filter (is_sure) = 1 and not bool_or(is_crowded)
""",
    is_kept=True,
    is_inner=True,
)

IO_SPELLS = View(
    "io_spells",
    "One row per stretch of time in which attempts may have run in a process whose log has no thread ids: whether all "
    "reads, and all writes, that Darshan traced in it are exactly those that its attempts' own threads counted.  Where "
    "they are not, threads that attempts started, and left behind, may have done some: of which nothing tells.",
    (),
    """
with unnamed as (
    select log, process, zero_ns, error_ns from io_clocks where not has_thread_ids and process is not null
), in_order as (
    select
        a.*,
        coalesce(a.out_from_ns > max(a.out_to_ns) over (
            partition by a.process order by a.out_from_ns, a.attempt rows between unbounded preceding and 1 preceding
        ), true) as is_first
    from io_attempts a
    semi join unnamed u on u.process = a.process
), numbered as (
    select *, sum(is_first::integer) over (order by process, out_from_ns, attempt rows unbounded preceding) as spell
    from in_order
), spells as (
    select
        n.spell,
        n.process,
        min(n.out_from_ns) as from_ns,
        max(n.out_to_ns) as to_ns,
        -- Null, not a sum of the rest, where one attempt has no counters.
        case when count(*) = count(c.read_call_count) then sum(c.read_call_count) end as read_count,
        case when count(*) = count(c.read_chars_bytes) then sum(c.read_chars_bytes) end as read_bytes,
        case when count(*) = count(c.write_call_count) then sum(c.write_call_count) end as write_count,
        case when count(*) = count(c.written_chars_bytes) then sum(c.written_chars_bytes) end as written_bytes
    from numbered n
    -- Calls of one method of an actor are told apart by when they began.
    left join raw.thread_counters c
        on c.server_id = n.worker_id and c.key_id = n.key_id and c.run_id is not distinct from n.run_id
        and c.time_ns = n.from_ns
    group by n.spell, n.process
), placed as (
    select
        u.process,
        s.direction = 'write' as is_write,
        s.nbytes,
        u.zero_ns + try_cast(s.start_s * 1e9 as bigint) - u.error_ns as from_ns,
        u.zero_ns + try_cast(s.stop_s * 1e9 as bigint) + u.error_ns as to_ns
    from raw.io_segments s
    join unnamed u on u.log = s.log
    where s.module = 'POSIX'
), traced as (
    select
        e.spell,
        count(*) filter (not p.is_write) as read_count,
        coalesce(sum(p.nbytes) filter (not p.is_write), 0) as read_bytes,
        count(*) filter (p.is_write) as write_count,
        coalesce(sum(p.nbytes) filter (p.is_write), 0) as written_bytes
    from placed p
    asof join spells e on e.process = p.process and p.to_ns >= e.from_ns
    where p.from_ns <= e.to_ns
    group by e.spell
)
select
    e.process,
    e.from_ns,
    e.to_ns,
    coalesce(e.read_count = t.read_count and e.read_bytes = t.read_bytes, false) as is_all_read,
    coalesce(e.write_count = t.write_count and e.written_bytes = t.written_bytes, false) as is_all_written
from spells e
left join traced t on t.spell = e.spell
""",
    is_kept=True,
    is_inner=True,
)
