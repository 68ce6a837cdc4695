"""What holds of every run holds of those whose rows hold together as little as those of real trouble."""

import json

from hypothesis import given, settings

from recup.analyse.answers import answer
from recup.questions import QUESTIONS
from recup.store import open_run
from tests.unit import test_budget, test_critical_path
from tests.unit.odd_runs import odd_runs, write_odd


@settings(max_examples=12, deadline=None)
@given(odd_runs())
def test_every_question_is_answered_and_budget_and_chain_sum_to_their_times(tmp_path_factory, made):
    # One test of all, as most of the time goes into making and opening the run.
    with open_run(write_odd(tmp_path_factory.mktemp("odd"), *made)) as run:
        test_budget.check(run)
        test_critical_path.check(run)
        for question in QUESTIONS:
            json.dumps(answer(run, question).document())
