import json

import pytest

from recup import schema
from recup.rundir import create_run, update_manifest
from recup.spool import Spool
from tests.browser.chromium import chromium
from tests.unit.served import serving
from tests.unit.written_runs import A, row, write_run

HOSTILE = "</script><img src=x onerror=alert(1)><b>'\"&\u202e"


@pytest.fixture(scope="module")
def page():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of three runs whose every text is hostile: two that ended, and one that grows."""
    root = tmp_path_factory.mktemp("browser") / "<img src=x onerror=alert(2)>"
    for run_id in ("20261124T100000Z-aaaa", "20261124T110000Z-<i>"):
        update_manifest(write_run(root, run_id=run_id), command=["python", HOSTILE])
    path = create_run(root, way="run", command=[HOSTILE], run_id="20261124T120000Z-cccc")
    begun_ns = json.loads((path / "run.json").read_text())["started_ns"]

    def later(seconds):
        return begun_ns + round(seconds * 1e9)

    scheduler, worker = Spool(path, "scheduler", "Scheduler-1"), Spool(path, "worker", "Worker-a")
    keys = [f"{HOSTILE}-{number}" for number in range(4)]
    for each in [
        row(
            schema.Worker, time_ns=later(0), action="add", address=A, worker_id="Worker-a", name=HOSTILE, thread_count=2
        ),
        *(row(schema.Task, key=key, prefix=HOSTILE, group=HOSTILE) for key in keys),
        *(schema.SchedulerTransition(later(0), key, "released", "waiting", "x", None, -1) for key in keys),
        *(schema.SchedulerTransition(later(0), key, "waiting", "processing", "x", A, 1) for key in keys[:3]),
        schema.SchedulerTransition(later(0), keys[0], "processing", "memory", "x", A, 1),
        schema.SchedulerTransition(later(0), keys[1], "processing", "erred", "x", A, 1),
        schema.TaskError(later(0), keys[1], 1, A, None, HOSTILE, HOSTILE),
        row(schema.Loss, time_ns=later(0), kind="dropped", table=HOSTILE, row_count=3, detail=HOSTILE),
    ]:
        scheduler.put(each)
    for each in [
        schema.WorkerTransition(later(0), keys[0], 0, "ready", "executing", None, "x"),
        schema.WorkerTransition(later(0.3), keys[0], 0, "executing", "memory", None, "x"),
        schema.WorkerTransition(later(0.4), keys[2], 1, "ready", "executing", None, "x"),
    ]:
        worker.put(each)
    assert scheduler.flush()
    with serving(root) as server:
        yield server
    scheduler.close()
    worker.close()


@pytest.fixture
def inside(page, served):
    """The page after the printed address was opened; at the end nothing may have gone wrong in it."""
    page.go(served.address)
    page.until("location.search === '' && document.querySelectorAll('#runs tbody tr').length === 3")
    page.messages.clear()
    page.requests.clear()
    yield page
    assert page.messages == []
    assert [each for each in page.requests if not each.startswith((f"http://127.0.0.1:{served.port}/", "data:"))] == []
    assert page.value("document.querySelectorAll('img, b i, script:not([src])').length") == 0


def test_the_list_shows_runs_and_offers_to_compare_ticked_ones(inside):
    rows = "[...document.querySelectorAll('#runs tbody tr')]"
    assert inside.value(f"{rows}.map((row) => row.querySelector('small').textContent)") == [
        "20261124T120000Z-cccc",
        "20261124T110000Z-<i>",
        "20261124T100000Z-aaaa",
    ]
    assert inside.value(f"{rows}.map((row) => row.querySelector('.state').textContent)") == ["live", "ended", "ended"]
    assert inside.value(f"{rows}[1].lastChild.textContent") == "python " + HOSTILE.replace("\u202e", "\\u{202e}")
    assert inside.value("document.getElementById('compare').hidden")
    inside.value(f"{rows}.slice(1).forEach((row) => row.querySelector('input').click())")
    assert inside.value("document.getElementById('ticked').textContent") == "2 runs ticked"
    assert inside.value("document.getElementById('go').getAttribute('href')") == (
        "/compare?run=20261124T100000Z-aaaa&run=20261124T110000Z-%3Ci%3E"
    )


def test_words_narrow_the_list(inside):
    inside.value(
        "const find = document.getElementById('find'); find.value = 'ended PYTHON'; find.dispatchEvent(new Event('input'))"
    )
    assert inside.until("document.getElementById('count').textContent === '2 of 3 runs'")


def test_the_live_page_shows_what_runs_and_hostile_texts_stay_texts(inside, served, tmp_path):
    shown = HOSTILE.replace("\u202e", "\\u{202e}")
    inside.go(f"http://127.0.0.1:{served.port}/runs/20261124T120000Z-cccc/live")
    inside.until("document.querySelectorAll('#now tbody tr').length === 1")
    assert inside.value("document.querySelector('#now td').textContent") == f"{shown}-2"
    assert inside.value("[...document.querySelectorAll('#prefixes tbody td')].map((cell) => cell.textContent)") == [
        shown, "", "1", "1", "1", "1", "4",
    ]  # fmt: skip
    assert inside.value("[...document.querySelectorAll('.tile b')].map((each) => each.textContent)") == [
        "25 %", "1", "1", "1", "1", "1",
    ]  # fmt: skip
    assert inside.value("document.querySelector('#workers td').firstChild.textContent") == shown
    assert inside.value("document.querySelector('#failures td:nth-child(3)').textContent") == shown
    assert inside.value("document.querySelector('#losses td:nth-child(5)').textContent") == shown
    inside.value("document.querySelector('#prefixes button').click()")
    inside.until("document.getElementById('chosen').textContent !== 'all prefixes'")
    colours = """(() => {
        const canvas = document.getElementById('lanes'), pen = canvas.getContext('2d');
        const data = pen.getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
        for (let i = 0; i < data.length; i += 4) seen.add(data.slice(i, i + 3).join());
        return seen.size;
    })()"""
    assert inside.value(colours) > 5
    for shade in ("light", "dark"):
        inside.shade(shade)
        inside.picture(tmp_path / f"{shade}.png")
    inside.shade("light")
    first, second = ((tmp_path / f"{shade}.png").read_bytes() for shade in ("light", "dark"))
    assert first != second


def test_what_is_at_a_point_of_the_lanes_is_told(inside, served):
    inside.go(f"http://127.0.0.1:{served.port}/runs/20261124T120000Z-cccc/live")
    inside.until("document.querySelectorAll('#now tbody tr').length === 1")
    box = inside.value("(({right, top}) => ({right, top}))(document.getElementById('lanes').getBoundingClientRect())")
    inside.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["right"] - 8, y=box["top"] + 10)
    inside.until("!document.getElementById('tip').hidden")
    assert "running for" in inside.value("document.getElementById('tip').textContent")


def test_a_run_is_shown_by_its_report_which_is_walled_off(inside, served):
    address = f"http://127.0.0.1:{served.port}/runs/20261124T100000Z-aaaa"
    inside.go(address)
    inside.until(
        "document.querySelector('iframe') !== null || document.getElementById('note').textContent.includes('could not')"
    )
    assert inside.value("document.getElementById('note')?.textContent") is None
    inside.until(
        "document.querySelector('iframe')?.getAttribute('sandbox') === 'allow-scripts allow-downloads allow-modals'"
    )
    assert inside.value("document.getElementById('alone').getAttribute('href')").endswith("/report.html")
    inside.go(address.replace("/runs/", "/api/runs/") + "/report.html")
    inside.until("location.pathname.endsWith('report.html') && document.readyState === 'complete'")
    assert inside.messages == []
    assert (
        inside.value("(() => { try { return document.cookie; } catch (reason) { return reason.name; } })()")
        == "SecurityError"
    )
    assert inside.value("fetch('/api/runs').then(() => 'read', () => 'refused')") == "refused"
    refused = [text for _, text in inside.messages]
    assert refused
    assert all("Content Security Policy" in text for text in refused)
    inside.messages.clear()
    inside.go(served.address)
    inside.until("document.getElementById('runs') !== null")


def test_a_page_of_a_run_that_is_not_there_says_so(page, served):
    page.go(served.address)
    page.until("location.search === '' && document.querySelectorAll('#runs tbody tr').length === 3")
    page.go(f"http://127.0.0.1:{served.port}/runs/none/live")
    assert page.until("document.getElementById('note').textContent === 'The run is no longer here.'")


def test_a_page_without_the_cookie_is_refused(served):
    with chromium() as stranger:
        stranger.go(f"http://localhost:{served.port}/")
        stranger.until("document.body.textContent.startsWith('403')")
