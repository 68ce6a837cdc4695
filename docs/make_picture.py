"""Draw docs/_static: terminal.svg, the first page of a real run in a terminal, and report.png, its report.

python docs/make_picture.py RUN [terminal | report]

The picture of the report needs a Chromium (the Debian package will do).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 110


PICTURE = (1240, 1190)
PLACES = """(() => {
    const line = document.querySelector("#time-line"), main = document.querySelector("main");
    document.querySelector("nav.contents").remove();
    main.style.margin = "0 auto";
    for (const each of document.querySelectorAll(".facts, details.inner, .hint, h1 + .note")) each.remove();
    for (const each of [...document.querySelectorAll(".section")]) if (!["thread-seconds", "time-line"].includes(each.id)) each.remove();
    for (const each of [...document.querySelectorAll("#thread-seconds .table, #thread-seconds h3, .areas, .areas-axis")]) each.remove();
    for (const each of [...document.querySelectorAll(".strip")].slice(3)) each.remove();
    const [first, last] = recupTimeline.tasks.start.length
        ? [Math.min(...recupTimeline.tasks.start), Math.max(...recupTimeline.tasks.stop)] : [0, 1];
    recupTimeline.axis.set(first - 0.05 * (last - first), last + 0.05 * (last - first));
})()"""
"""The parts of the page that a picture has room for."""


def main(run: str, which: str | None = None) -> None:
    """Draw what is asked for, else both."""
    static = Path(__file__).parent / "_static"
    if which != "report":
        terminal(run, static / "terminal.svg")
    if which != "terminal":
        report(run, static / "report.png")


def report(run: str, path: Path) -> None:
    """Write the picture of one run's report, as a browser shows it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.browser.chromium import chromium

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "report.html"
        subprocess.run([sys.executable, "-m", "recup", "report", run, "-o", str(file)], check=True)
        with chromium(*PICTURE) as page:
            page.go(file.as_uri())
            page.until("window.recupReady !== undefined")
            page.value("recupReady")
            page.value(PLACES)
            page.until("recupTimeline.waiting === 0")
            page.picture(path)


def terminal(run: str, path: Path) -> None:
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
    console.save_svg(str(path), title="recup")


main(*sys.argv[1:])
