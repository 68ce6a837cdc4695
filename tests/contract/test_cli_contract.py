"""What holds of every verb of the command line, and what importing it may cost."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from recup.cli import main

VERBS = sorted(main.commands)
HEAVY = (
    "pyarrow",
    "duckdb",
    "distributed",
    "dask",
    "rich",
    "numpy",
    "pandas",
    "psutil",
    "recup.store",
    "recup.capture",
)


def help_of(verb):
    return CliRunner().invoke(main, [verb, "--help"], prog_name="recup").output


def test_the_entry_point_is_a_click_group_named_recup():
    assert isinstance(main, click.Group)
    assert main.name == "recup"


def test_the_verbs_are_those_documented():
    assert set(VERBS) >= {"run", "ls", "info", "map", "story", "sql", "check", "seal", "doctor", "schema"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_summary_a_paragraph_and_an_example(verb):
    summary, *paragraphs = (main.commands[verb].help or "").strip().split("\n\n")
    assert summary.endswith((".", "?"))
    assert len(summary.splitlines()) == 1
    assert len(paragraphs) >= 2
    example = paragraphs[-1]
    assert "Example:" in example
    assert f"recup {verb}" in example


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_offers_json(verb):
    assert "--json" in help_of(verb)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_and_verb_is_explained(verb):
    for parameter in main.commands[verb].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{verb} {parameter.opts}"
    assert verb in CliRunner().invoke(main, ["--help"]).output


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_is_wrong_usage(verb):
    assert CliRunner().invoke(main, [verb, "--no-such-option"]).exit_code == 2


def test_importing_the_command_line_imports_nothing_heavy():
    program = (
        "import json, sys, time; import click; begun = time.process_time(); import recup.cli; "
        "took = time.process_time() - begun; print(json.dumps([took, sorted(sys.modules)]))"
    )
    took_s = []
    for _ in range(3):  # the first may have to compile modules
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        took, modules = json.loads(done.stdout)
        took_s.append(took)
        assert [name for name in HEAVY if name in modules] == []
    assert min(took_s) < 0.1


def test_dask_offers_the_same_group():
    done = subprocess.run(
        [sys.executable, "-m", "dask", "recup", "--version"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.startswith("recup, version ")) == (0, True)


def test_python_dash_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "recup", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("recup, version ")
