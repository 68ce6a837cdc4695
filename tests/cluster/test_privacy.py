"""What a program says in errors, annotations, arguments and on its command line, and what of it is in the record."""

import json

from recup.store import open_run
from tests.cluster.recorded import record

PROGRAM = """
    def leak(x):
        raise ValueError("cannot reach postgres://bob:" + "hunter" + "3@db/y")
    with local(processes=False) as cluster, Client(cluster) as client:
        with dask.annotate(api_token="tok-" + "abcdef"):
            failed = client.submit(leak, "ARG" + "UMENT", key="k")
        print(type(failed.exception()).__name__)
        client.log_event("mine", {"password": "hunter" + "5"})
"""
SECRETS = ("hunter3", "hunter4", "hunter5", "tok-abcdef", "ARGUMENT")


def test_no_secret_and_no_argument_of_a_task_is_in_the_record(tmp_path):
    run, code = record(tmp_path, PROGRAM, "--password", "hunter4", "--db", "mysql://u:hunter4@h/z")
    assert code == 0
    with open_run(run) as opened:
        tables = {name: opened.arrow(name).to_pylist() for name in opened.tables}
    texts = {name: json.dumps(rows, default=repr) for name, rows in tables.items()}
    texts["run.json"] = (run / "run.json").read_text()
    assert {(name, secret) for name, text in texts.items() for secret in SECRETS if secret in text} == set()
    assert "ValueError('cannot reach postgres://db/y')" in texts["errors"]
    assert [row["annotations"] for row in tables["tasks"]] == ['{"api_token": "[redacted]"}']
    assert "Task:      [its arguments are not recorded]" in texts["logs"]
