"""Draw docs/_static/terminal.svg: the first page of a real run, as a terminal shows it.

python docs/make_picture.py RUN
"""

import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 110


def main(run: str) -> None:
    """Write the picture of one run's first page."""
    page = subprocess.run(
        [sys.executable, "-m", "recup", "info", run],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": str(WIDTH)},
    )
    # Paths of this machine are its own affair.
    lines = [line for line in page.stdout.splitlines() if not line.startswith("directory")]
    lines[0] = lines[0].split("  ")[0]
    console = Console(record=True, width=WIDTH, file=sys.stderr)
    console.print(Text("$ recup info last\n" + "\n".join(lines)))
    console.save_svg(str(Path(__file__).parent / "_static" / "terminal.svg"), title="recup")


main(sys.argv[1])
