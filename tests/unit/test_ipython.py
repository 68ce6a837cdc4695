"""What `%recup` prints in a notebook."""

import pytest

from recup.ipython import recup_magic


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nosuch", "recup: No such command 'nosuch'.\n"),
        ("info a b", "recup: Got unexpected extra argument (b)\n"),
        ("info --nosuch", "recup: No such option"),
        ("sql last 'from", "recup: No closing quotation: sql last 'from\n"),
        ("info nowhere", "recup: No run 'nowhere'"),
    ],
)
def test_a_mistake_is_told_in_a_line(line, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recup_magic(line)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1
