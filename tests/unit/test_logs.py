"""Whose record a message of Dask's loggers is put into."""

import logging

import pytest

from recup.capture import logs
from recup.spool import Spool
from tests.unit.spooled import rows


@pytest.fixture
def servers(tmp_path):
    """Two nannies and a scheduler of one process."""
    found = {}
    for name, role in (("a", "nanny"), ("b", "nanny"), ("s", "scheduler")):
        found[name] = Spool(tmp_path, role, name)
        logs.attach(found[name], lambda name=name: (None, f"tcp://{name}:1"))
    yield found
    for spool in found.values():
        logs.detach(spool)
        spool.close()


def test_a_message_is_of_the_server_it_names_or_of_the_first_of_the_role_that_speaks(servers):
    nanny, scheduler = logging.getLogger("distributed.nanny"), logging.getLogger("distributed.scheduler")
    nanny.error("Closing Nanny at %r", "tcp://b:1")
    nanny.error("Worker failed to connect")
    scheduler.error("Remove worker of nanny tcp://b:1")
    logging.getLogger("dask").error("of none")
    found = {name: [row["message"] for row in rows(spool, "logs")] for name, spool in servers.items()}
    assert found == {
        "a": ["Worker failed to connect", "of none"],
        "b": ["Closing Nanny at 'tcp://b:1'"],
        "s": ["Remove worker of nanny tcp://b:1"],
    }


def test_the_arguments_of_a_task_that_failed_are_left_out(servers):
    logging.getLogger("distributed.worker").error(
        "Compute Failed\nKey:       %s\nState:     executing\nTask:  %s\nException: %r\n",
        "k",
        "<Task 'k' f('A\nB')>",
        "E",
    )
    (row,) = rows(servers["a"], "logs")
    assert row["message"] == (
        "Compute Failed\nKey:       k\nState:     executing\nTask:      [its arguments are not recorded]\nException: 'E'\n"
    )
