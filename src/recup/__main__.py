"""`python -m recup`: the same as the command `recup`."""

from __future__ import annotations

from recup.cli import main

if __name__ == "__main__":
    main(prog_name="recup")
