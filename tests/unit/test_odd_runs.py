"""What holds of every run holds of those whose rows hold together as little as those of real trouble."""

from hypothesis import given, settings

from recup.store import open_run
from tests.unit import test_budget, test_critical_path
from tests.unit.odd_runs import odd_runs, write_odd


@settings(max_examples=12, deadline=None)
@given(odd_runs())
def test_budget_sums_to_threads_times_wall_and_the_chain_to_the_last_result(tmp_path_factory, made):
    # One test of both, as most of the time goes into making and opening the run.
    with open_run(write_odd(tmp_path_factory.mktemp("odd"), *made)) as run:
        test_budget.check(run)
        test_critical_path.check(run)
