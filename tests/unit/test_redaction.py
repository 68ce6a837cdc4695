import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recup.capture.redaction import (
    annotations_text,
    looks_secret,
    redacted_arguments,
    redacted_json,
    redacted_put,
    redacted_source,
    redacted_text,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git clone https://jane:hunter2@host.org/a.git", "git clone https://host.org/a.git"),
        ("https://ghp_0123456789abcdefghij0123@github.com/a", "https://github.com/a"),
        ("s3://key:p@ss@bucket/x", "s3://bucket/x"),
        ("password=hunter2 x", "password=[redacted] x"),
        ("PGPASSWORD='hun ter2'", "PGPASSWORD='[redacted]'"),
        ('{"db_password": "hunter2", "n": 1}', '{"db_password": "[redacted]", "n": 1}'),
        (r"{\"token\": \"abc\"}", r"{\"token\": \"[redacted]\"}"),
        ("{'AWS_SECRET_ACCESS_KEY': 'x/y'}", "{'AWS_SECRET_ACCESS_KEY': '[redacted]'}"),
        ("--password hunter2 --n 4", "--password [redacted] --n 4"),
        ("--api-token=abc", "--api-token=[redacted]"),
        ("Authorization: Bearer abc.def", "Authorization: [redacted]"),
        ("got bearer 0123456789", "got [redacted]"),
        ("GET /x?token=abc&page=2", "GET /x?token=[redacted]&page=2"),
        ("id AKIAIOSFODNN7EXAMPLE used", "id [redacted] used"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2ln", "[redacted]"),
        ("export API_KEY=abc\nsrun x", "export API_KEY=[redacted]\nsrun x"),
    ],
)
def test_secrets_are_removed_from_text(text, expected):
    assert redacted_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Start worker at: tcp://127.0.0.1:40331",
        "key=('sum-5a', 0) is lost; keys: 3",
        "tokenize: deterministic=True, author=Jane",
        "mail jane@example.org about http://host:8787/status",
        "10.0.0.1@tcp:/scratch",
        "KeyError: 'password'",
        "",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redacted_text(text) == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"action": "add", "key": "x-1"}, {"action": "add", "key": "x-1"}),
        ({"command": '--token=hunter2" def'}, {"command": '--token=[redacted]" def'}),
        ({"api_token": 12345, "n": 1}, {"api_token": "[redacted]", "n": 1}),
        ({"token": None, "password": {"user": "jane"}}, {"token": "[redacted]", "password": "[redacted]"}),
        ([{"url": "tcp://jane:hunter2@host:1"}], [{"url": "tcp://host:1"}]),
        ({"note": '{"secret": "hunter2"}'}, {"note": '{"secret": "[redacted]"}'}),
    ],
)
def test_values_stay_json_without_their_secrets(value, expected):
    assert json.loads(redacted_json(value)) == expected


_PIECES = st.sampled_from(
    ["--token=", "hunter2", '"', "\\", " ", "password", ": ", "://", "@", "{", "}", "\n", "é", ","]
)
_TEXTS = st.lists(_PIECES, max_size=8).map("".join)
_VALUES = st.recursive(
    st.none() | st.integers() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(_VALUES)
def test_what_is_redacted_is_json_and_nothing_is_left_that_text_would_lose(value):
    text = redacted_json(value)
    json.loads(text)
    assert redacted_text(text) == text


@pytest.mark.parametrize("piece", ["password", "token ", "a@://", "--x-", "passwordpassword=", "eyJ", '"', "://a@"])
def test_hostile_text_is_redacted_in_linear_time(piece):
    text = piece * (400_000 // len(piece))
    start = time.process_time()
    redacted_text(text)
    assert time.process_time() - start < 20


def test_a_secret_written_out_in_source_is_redacted_and_a_call_is_not():
    source = 'password = "hunter2"\ntoken = get_token()\nurl = "https://u:p@host/x"\n'
    assert redacted_source(source) == 'password = "[redacted]"\ntoken = get_token()\nurl = "https://host/x"\n'
    setting = 'run("AWS_SECRET_ACCESS_KEY=abcd1234efgh x", key=key, pwd=f(\'it\\\'s\', "a"))\n'
    assert redacted_source(setting) == setting.replace("abcd1234efgh", "[redacted]")
    hostile = 'x = "' + "password=\\" * 40_000
    start = time.process_time()
    assert redacted_source(hostile) == hostile
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "name",
    [
        "password", "DB_PASSWORD", "dbPassword", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "apikey", "api-key",
        "DB_PASS",
        "distributed.comm.tls.worker.key", "distributed.comm.tls.ca-file", "credentials", "auth", "http.auth.user",
        "SLURM_JWT", "PBS_JOBCOOKIE", "GDAL_HTTP_USERPWD", "OMPI_MCA_orte_precondition_transports", "--tls-key",
        "DASK_INTERNAL_INHERIT_CONFIG",
    ],
)  # fmt: skip
def test_secret_names_are_recognised(name):
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "keys", "optimization.fuse.rename-keys", "tokenize.ensure-deterministic", "author", "PYTHONPATH", "PATH",
        "distributed.comm.tls.ciphers", "distributed.comm.tls.min-version", "distributed.comm.require-encryption",
        "monkey", "OMP_NUM_THREADS", "SLURM_NTASKS", "compass", "certainty", "KEYBOARD",
    ],
)  # fmt: skip
def test_ordinary_names_are_not_taken_for_secrets(name):
    assert not looks_secret(name)


def test_secret_options_lose_their_value_in_both_spellings():
    arguments = [
        "python",
        "x.py",
        "--password",
        "hunter2",
        "--n",
        "4",
        "db.token=abc",
        "--tls-key=/k.pem",
        "--auth",
        "-v",
    ]
    assert redacted_arguments(arguments) == [
        "python", "x.py", "--password", "[redacted]", "--n", "4", "db.token=[redacted]", "--tls-key=[redacted]",
        "--auth", "-v",
    ]  # fmt: skip


def test_annotations_lose_secrets_by_name_and_by_form():
    text = annotations_text({"api_token": "tok-abcdef", "url": "postgres://bob:hunter3@db/y", "priority": 3, "x": [1]})
    assert json.loads(text) == {"api_token": "[redacted]", "url": "postgres://db/y", "priority": 3, "x": [1]}
    assert annotations_text({}) is None


def test_rows_are_put_with_some_of_their_texts_redacted():
    rows = []
    redacted_put(rows.append, 1, 2)((1, "at postgres://bob:hunter3@db/y", None, "s3://key:secret@bucket"))
    assert rows == [(1, "at postgres://db/y", None, "s3://key:secret@bucket")]
