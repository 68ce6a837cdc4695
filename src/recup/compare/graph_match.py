"""Which groups of tasks of two runs are the same, though their keys differ.

Keys carry hashes, so that tasks are never matched by key: a group of tasks is matched by
its prefix, the prefixes it depends on, its number of tasks, and its place among the groups
of that prefix in the order of submission and priority.  Single tasks are not matched.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recup.analyse.rows import Document, rows_of

if TYPE_CHECKING:
    from recup.store import Run

GROUPS_SQL = """
with tasks_once as materialized (
    select server_id, key_id, arg_min(prefix, submission) as prefix, arg_min("group", submission) as "group",
        min(submission) as submission, arg_min(priority_order, submission) as priority_order
    from raw.tasks
    group by server_id, key_id
), shapes as (
    select server_id, prefix, "group", count(*) as task_count, min(submission) as submission,
        min(priority_order) as priority_order
    from tasks_once
    group by server_id, prefix, "group"
), half as materialized (
    -- In one join of three the planner pairs all tasks of a scheduler with each other first.
    select distinct d.server_id, t.prefix, t."group", d.dependency_id
    from raw.dependencies d
    join tasks_once t on t.key_id = d.key_id and t.server_id = d.server_id
), edges as (
    select h.server_id, h.prefix, h."group", list_sort(list(distinct f.prefix)) as needed
    from half h
    join tasks_once f on f.key_id = h.dependency_id and f.server_id = h.server_id
    where f."group" is distinct from h."group"
    group by h.server_id, h.prefix, h."group"
)
select s.prefix, s.task_count, coalesce(e.needed, []) as needed
from shapes s
left join edges e using (server_id, prefix, "group")
order by s.server_id, s.submission, s.priority_order nulls last, s.prefix, s.task_count
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A group of tasks by what does not change from run to run.

    Attributes
    ----------
    prefix : str
        Dask's task prefix.
    place : int
        Counts the groups of that prefix from 1, in the order of submission and priority.
    task_count : int
        Its tasks.
    needed : tuple of str
        Prefixes its tasks depend on.
    """

    prefix: str
    place: int
    task_count: int
    needed: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as people read it."""
        tasks = f"{self.task_count:,} task{'' if self.task_count == 1 else 's'}"
        return f"{tasks} on {', '.join(self.needed)}" if self.needed else tasks


def graph_groups(run: Run) -> tuple[Group, ...]:
    """Return the groups of tasks of a run, in the order of submission and priority.

    From: tasks, dependencies
    """
    return numbered(rows_of(run, GROUPS_SQL))


def numbered(rows: Sequence[Document]) -> tuple[Group, ...]:
    """Return rows (prefix, task_count, needed) as groups, each with its place among those of its prefix."""
    places: dict[str, int] = defaultdict(int)
    found = []
    for row in rows:
        places[row["prefix"]] += 1
        found.append(Group(row["prefix"], places[row["prefix"]], row["task_count"], tuple(row["needed"])))
    return tuple(found)


def matched_groups(a: Sequence[Group], b: Sequence[Group]) -> list[tuple[Group | None, Group | None]]:
    """Return pairs of groups that are the same; a group without counterpart is paired with None.

    Of one prefix those that agree in all go together first, then those with the same
    dependencies, then those with the same number of tasks, then what is left, each in order.
    """
    prefixes = dict.fromkeys(each.prefix for each in (*a, *b))
    of_a, of_b = _by_prefix(a), _by_prefix(b)
    pairs: list[tuple[Group | None, Group | None]] = []
    for prefix in prefixes:
        left, right = of_a[prefix], of_b[prefix]
        for likeness in (_whole, _needed, _size, _any):
            waiting: dict[object, list[Group]] = defaultdict(list)
            for each in right:
                waiting[likeness(each)].append(each)
            rest = []
            for each in left:
                partners = waiting[likeness(each)]
                if partners:
                    pairs.append((each, partners.pop(0)))
                else:
                    rest.append(each)
            left, right = rest, [each for partners in waiting.values() for each in partners]
        pairs += [(each, None) for each in left]
        pairs += [(None, each) for each in right]
    return pairs


def _by_prefix(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = defaultdict(list)
    for each in groups:
        found[each.prefix].append(each)
    return found


def _whole(group: Group) -> object:
    return group.task_count, group.needed


def _needed(group: Group) -> object:
    return group.needed


def _size(group: Group) -> object:
    return group.task_count


def _any(_: Group) -> object:
    return None
