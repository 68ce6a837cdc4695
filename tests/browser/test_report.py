"""The report in a browser: nothing in a run can act, nothing is asked of a network, and what is drawn is what was recorded."""

import base64
import time

import pytest

from recup.report.html import write_comparison, write_report
from recup.store import open_run
from tests.browser.chromium import chromium
from tests.unit.reported import HOSTILE, TOKEN, write_reported

LINE = "recupTimeline"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    paths = [
        write_reported(root, run_id="20231114T221320Z-aaaa"),
        write_reported(root, run_id="20231114T221320Z-bbbb", slow=4.0),
    ]
    with open_run(paths[0]) as one, open_run(paths[1]) as other:
        yield one, other


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    root = tmp_path_factory.mktemp("reports")
    write_report(runs[0], root / "one.html")
    write_comparison(*runs, root / "two.html")
    return root


@pytest.fixture(scope="module")
def tab():
    with chromium(width=1360, height=1000) as found:
        found.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        yield found


@pytest.fixture
def page(tab, files):
    """The report of one run, freshly opened."""
    return opened(tab, files / "one.html")


def opened(tab, path):
    tab.messages.clear()
    tab.requests.clear()
    tab.go(path.as_uri())
    tab.until("document.readyState === 'complete' && window.recupReady !== undefined")
    tab.value("recupReady")
    tab.value("localStorage.removeItem('recup-theme')")
    return tab


def view(page):
    return page.value(f"[{LINE}.view.from, {LINE}.view.to]")


def place(page, selector, x=0.5, y=0.5):
    """A point of what a selector names, in the window."""
    page.value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    box = page.value(
        f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }})()"
    )
    return box[0] + x * box[2], box[1] + y * box[3]


def mouse(page, kind, at, **more):
    page.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **more)


def click(page, at):
    mouse(page, "mousePressed", at, button="left", buttons=1, clickCount=1)
    mouse(page, "mouseReleased", at, button="left", clickCount=1)


def drag(page, begin, end, modifiers=0):
    mouse(page, "mousePressed", begin, button="left", buttons=1, clickCount=1, modifiers=modifiers)
    for share in (0.5, 1.0):
        at = [b + share * (e - b) for b, e in zip(begin, end, strict=True)]
        mouse(page, "mouseMoved", at, button="left", buttons=1, modifiers=modifiers)
    mouse(page, "mouseReleased", end, button="left", clickCount=1, modifiers=modifiers)


def wait_for(holds, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def press(page, key):
    page.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
    page.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def on_task(page, number):
    """Where a task is drawn, as (x, y) in the window."""
    page.value("document.querySelector('.lanes').scrollIntoView({block: 'center'})")
    return page.value(
        f"(() => {{ const l = {LINE}, i = {number}, b = l.scroller.getBoundingClientRect();"
        "return [b.x + l.xAt((l.tasks.start[i] + l.tasks.stop[i]) / 2), b.y + (l.tasks.lane[i] + 0.5) * l.laneHeight]; })()"
    )


# ---------------------------------------------------------------- nothing acts, nothing is asked


@pytest.mark.parametrize("name", ["one.html", "two.html"])
def test_the_page_asks_for_nothing_and_complains_of_nothing(tab, files, name):
    page = opened(tab, files / name)
    page.value("document.getElementById('open-all').click()")
    page.until("[...document.querySelectorAll('[data-table]')].every((each) => each.querySelector('table, .note'))")
    assert [each for each in page.requests if not each.startswith(("file:", "data:"))] == []
    assert page.messages == []


@pytest.mark.parametrize("name", ["one.html", "two.html"])
def test_hostile_text_is_shown_as_text(tab, files, name):
    page = opened(tab, files / name)
    page.value("document.getElementById('open-all').click()")
    page.until("[...document.querySelectorAll('[data-table]')].every((each) => each.querySelector('table, .note'))")
    assert page.value("document.querySelectorAll('img').length") == 0
    assert page.value(f"document.body.innerText.includes({HOSTILE!r})")
    page.value(f"{LINE}.choose([...{LINE}.tasks.start.keys()].find((i) => {LINE}.tasks.key(i).includes('<img')))")
    assert HOSTILE in page.value(f"{LINE}.details.innerText")
    assert page.messages == []


def test_a_script_that_got_into_the_page_would_not_run(page):
    page.value(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.acted = 1'; document.body.append(s); })()"
    )
    assert page.value("window.acted === undefined")
    assert page.value("fetch('http://127.0.0.1:9/').then(() => 'went', () => 'refused')") == "refused"


# ---------------------------------------------------------------- time line


def test_every_task_of_the_run_is_in_the_page(page, runs):
    told = page.value(
        f"[...{LINE}.tasks.start.keys()].map((i) => [{LINE}.tasks.key(i), {LINE}.tasks.start[i], {LINE}.tasks.stop[i], "
        f"{LINE}.tasks.prefixName(i), {LINE}.tasks.outcome(i), {LINE}.tasks.size(i)])"
    )
    recorded = (
        runs[0]
        .sql(
            "select key, r.started_s - s.started_s, r.started_s - s.started_s + r.compute_s, prefix, outcome, "
            "case when nbytes is null then '' when nbytes < 1024 then nbytes || ' B' "
            "else format('{:.1f} KiB', nbytes / 1024) end "
            "from task_runs r cross join (select started_s from run_summary) s"
        )
        .fetchall()
    )
    by_key = {each[0]: each[1:] for each in recorded}
    assert len(told) == len(recorded) == 240
    for key, start, stop, *rest in told:
        assert (start, stop) == pytest.approx(by_key[key][:2], abs=3e-6)
        assert rest[:2] == list(by_key[key][2:4])
        assert rest[2] == by_key[key][4]


def test_idle_is_left_white_and_busy_has_the_colour_of_its_prefix(page):
    page.value(f"{LINE}.axis.set(1, 1.2)")
    page.until(f"{LINE}.waiting === 0")
    colours = page.value(
        f"""(() => {{
        const l = {LINE}, pen = l.canvas.getContext('2d'), found = [];
        l.draw();
        const at = (moment, lane) => [...pen.getImageData(l.xAt(moment), (lane + 0.75) * l.laneHeight, 1, 1).data].slice(0, 3);
        const shown = (name) => {{ pen.fillStyle = Recup.colour(name); pen.fillRect(0, 0, 1, 1); return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3); }};
        const load = l.about.prefixes.findIndex((each) => each.name === 'load');
        return {{ busy: at(1.0075, 0), idle: at(1.025, 0), load: shown('p' + load), ground: shown('idle') }};
        }})()"""
    )
    assert colours["busy"] == colours["load"]
    assert colours["idle"] == colours["ground"] == [255, 255, 255]


def test_what_is_thinner_than_a_pixel_is_as_strong_as_it_is_busy(page):
    weight = page.value(
        f"""(() => {{
        const l = {LINE}, pen = l.canvas.getContext('2d');
        l.axis.end = 4000; l.axis.set(0, 4000); l.draw();
        const [r, g, b] = pen.getImageData(l.xAt(2), 0.75 * l.laneHeight, 1, 1).data;
        return r + g + b;
        }})()"""
    )
    assert 300 < weight < 765


def test_dragging_zooms_and_a_double_click_shows_all(page):
    left, right = place(page, ".lanes", 0.4), place(page, ".lanes", 0.6)
    whole = view(page)
    wanted = page.value(
        f"[{left[0]}, {right[0]}].map((x) => {LINE}.momentAt(x - {LINE}.scroller.getBoundingClientRect().x))"
    )
    drag(page, left, right)
    assert view(page) == pytest.approx(wanted, abs=0.01)
    page.value(f"{LINE}.scroller.dispatchEvent(new MouseEvent('dblclick'))")
    assert view(page) == whole


def test_the_wheel_zooms_where_it_points_once_the_time_line_is_clicked(page):
    at = place(page, ".lanes", 0.6, 0.9)
    whole = view(page)
    turn = "new WheelEvent('wheel', {deltaY: -120, cancelable: true})"
    assert page.value(f"{LINE}.scroller.dispatchEvent({turn})") is True  # the page itself scrolls
    assert view(page) == whole
    click(page, at)
    at_moment = f"{LINE}.momentAt({at[0]} - {LINE}.scroller.getBoundingClientRect().x)"
    moment = page.value(at_moment)
    mouse(page, "mouseWheel", at, deltaX=0, deltaY=-120)
    page.until(f"{LINE}.view.to - {LINE}.view.from < {whole[1]} * 0.9")
    assert page.value(at_moment) == pytest.approx(moment, abs=0.01)


def test_the_keyboard_zooms_moves_and_comes_back(page):
    whole = view(page)
    page.value(f"{LINE}.scroller.focus()")
    press(page, "+")
    page.until(f"{LINE}.view.to < {whole[1]}")
    zoomed = view(page)
    assert zoomed[1] - zoomed[0] == pytest.approx((whole[1] - whole[0]) / 2)
    press(page, "ArrowRight")
    page.until(f"{LINE}.view.from > {zoomed[0]}")
    press(page, "0")
    page.until(f"{LINE}.view.to === {whole[1]}")
    assert view(page) == whole


def test_shift_and_drag_moves_the_stretch_shown(page):
    page.value(f"{LINE}.axis.set(1, 2)")
    drag(page, place(page, ".lanes", 0.8), place(page, ".lanes", 0.6), modifiers=8)
    begin, end = view(page)
    assert begin > 1.1
    assert end - begin == pytest.approx(1)


def test_strips_follow_the_time_line_and_zoom_it(page):
    page.value(f"{LINE}.axis.set(1, 2)")
    scales = "recupStrips[0].plots.map((each) => [each.scales.x.min, each.scales.x.max])"
    page.until(f"{scales}.every((each) => Math.abs(each[0] - 1) < 1e-6)")
    assert page.value(scales) == [[1, 2]] * page.value("recupStrips[0].plots.length")
    assert page.value("recupStrips[0].told.strips.map((each) => each.name)") == [
        "threads",
        "io",
        "memory",
        "network",
        "lag",
    ]
    ends = [place(page, ".strip .u-over", share) for share in (0.25, 0.75)]
    drag(page, *ends)
    page.until(f"Math.abs({LINE}.view.from - 1.25) < 0.02")
    assert view(page) == pytest.approx([1.25, 1.75], abs=0.02)
    left = page.value(
        "recupStrips[0].plots[0].over.getBoundingClientRect().x - document.querySelector('.strips').getBoundingClientRect().x"
    )
    assert left == pytest.approx(page.value(f"{LINE}.xAt({LINE}.view.from)"), abs=1.5)


def test_search_finds_keys_and_prefixes_and_steps_through_them(page):
    search = f"(async (q) => {{ await {LINE}.find(q); return [{LINE}.matchList.length, {LINE}.found.textContent]; }})"
    assert page.value(f"{search}('load')") == [80, "80 matches"]
    assert page.value(f"{search}('no such')") == [0, "no match"]
    assert page.value(f"{search}('<IMG')") == [80, "80 matches"]
    key = f"('load-{TOKEN}', 30, 210)"
    assert page.value(f"{search}({key!r})".replace('"', "`")) == [1, "1 match"]
    page.value(f"{LINE}.step(1)")
    assert page.value(f"{LINE}.found.textContent") == "1 of 1 match"
    begin, end = view(page)
    assert begin < 1.30 < end < begin + 1
    assert key in page.value(f"{LINE}.details.innerText")


def test_typing_into_the_search_field_finds(page):
    page.value(f"{LINE}.search.focus()")
    page.call("Input.insertText", text="sum-")
    page.until(f"{LINE}.found.textContent === '80 matches'")


def test_pointing_tells_and_a_click_keeps_what_a_task_is(page):
    page.value(f"{LINE}.axis.set(0.9, 1.3)")
    number = page.value(f"[...{LINE}.tasks.start.keys()].find((i) => {LINE}.tasks.key(i).startsWith('sum-'))")
    at = on_task(page, number)
    mouse(page, "mouseMoved", at)
    page.until("document.getElementById('tip').classList.contains('on')")
    assert page.value("document.getElementById('tip').innerText").startswith("sum-")
    click(page, at)
    details = page.value(f"{LINE}.details.innerText")
    key = page.value(f"{LINE}.tasks.key({number})")
    assert f"recup story '{key}' --run 20231114T221320Z-aaaa" in details
    assert "15 ms" in details
    assert "tcp://10.0.0.2:4002 on " in details or "tcp://10.0.0.1:4001 on " in details


def test_a_prefix_of_the_legend_is_shown_alone(page):
    page.value("document.querySelectorAll('.legend button')[1].click()")
    assert page.value(f"{LINE}.prefixShown") == 1
    assert page.value("document.querySelectorAll('.legend button')[1].getAttribute('aria-pressed')") == "true"
    assert page.value(f"[...{LINE}.tasks.start.keys()].filter((i) => !{LINE}.isDimmed(i)).length") == 80


# ---------------------------------------------------------------- tables, sections, themes, paper


def table(page, name):
    return f"[...Recup.tables].find(([place]) => place.dataset.table === {name!r})[1]"


def test_a_table_sorts_by_its_columns_and_back(page):
    first = f"{table(page, 'prefixes')}.body.rows[0].cells[0].textContent"
    header = "document.querySelectorAll('[data-table=prefixes] th button')[{}].click()"
    page.value(header.format(0))
    assert page.value(first) == HOSTILE
    page.value(header.format(0))
    assert page.value(first) == "sum"
    assert page.value("document.querySelector('[data-table=prefixes] th').getAttribute('aria-sort')") == "descending"


def test_the_csv_of_a_table_holds_its_values(page, tmp_path):
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.value("document.querySelector('[data-table=prefixes] .csv').click()")
    file = tmp_path / "prefixes.csv"
    wait_for(file.exists)
    lines = file.read_text().splitlines()
    assert lines[0].startswith("prefix,attempt_count,compute_s,compute_share,min_s,q25_s,median_s,q75_s,max_s")
    told = {line.split(",")[0]: line.split(",") for line in lines[1:]}
    assert set(told) == {"load", "sum", HOSTILE}
    assert float(told["load"][2]) == pytest.approx(1.2, abs=1e-3)


def test_csv_quotes_what_needs_it(page):
    told = page.value(
        f"(() => {{ const t = Object.create(Object.getPrototypeOf({table(page, 'prefixes')}));"
        "t.told = { columns: [{ name: 'a', values: ['x,\"y\"\\n', null, 1.5] }] }; t.order = [2, 0, 1]; return t.csv(); }})()".replace(
            "}}", "}"
        )
    )
    assert told == 'a\r\n1.5\r\n"x,""y""\n"\r\n\r\n'


def test_a_question_opens_when_its_name_in_the_contents_is_clicked(page):
    assert not page.value("document.getElementById('lost').open")
    page.value("document.querySelector('nav a[href=\"#lost\"]').click()")
    page.until("document.getElementById('lost').open")
    page.until("document.querySelector('#lost .table table, #lost .table .note') !== null")


def test_dark_follows_the_system_and_the_button_overrules_it(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.value(ground)
    page.shade("dark")
    dark = page.value(ground)
    assert (light, dark) == ("rgb(251, 250, 248)", "rgb(18, 21, 24)")
    page.value("document.getElementById('theme').click()")
    assert page.value(ground) == light
    page.shade("light")
    page.value("document.getElementById('theme').click()")
    assert page.value(ground) == dark
    assert page.value("Recup.colour('idle')") == "#191d21"
    page.value("document.getElementById('theme').click()")
    assert page.value(ground) == light


def test_on_paper_everything_is_open_and_light_and_the_page_is_as_before_afterwards(page):
    page.shade("dark")
    page.value("document.getElementById('fold-all').click()")
    page.value("addEventListener('beforeprint', () => setTimeout(() => {}, 0)); window.printed = 0")
    page.value(
        "addEventListener('beforeprint', () => { window.printed = [...document.querySelectorAll('details')].filter((each) => !each.open).length + "
        "' ' + document.documentElement.dataset.theme; })"
    )
    data = base64.b64decode(page.call("Page.printToPDF", printBackground=True)["data"])
    assert data.startswith(b"%PDF-")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") >= 3
    assert page.value("window.printed") == "0 light"
    assert page.value("[...document.querySelectorAll('details')].some((each) => each.open)") is False
    page.shade("light")


def test_a_reader_without_a_mouse_reaches_everything(page):
    unnamed = page.value(
        "[...document.querySelectorAll('button, a, input, [tabindex]')].filter((each) => "
        "!(each.textContent.trim() || each.getAttribute('aria-label') || each.title)).length"
    )
    assert unnamed == 0
    assert page.value("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [390, 800])
def test_a_narrow_window_needs_no_sideways_scrolling(page, width):
    metrics = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", width=width, **metrics)
    try:
        page.until(f"innerWidth === {width}")
        page.until(f"document.documentElement.scrollWidth <= {width}", timeout_s=5)
    finally:
        page.call("Emulation.setDeviceMetricsOverride", width=1360, **metrics | {"height": 1000})


# ---------------------------------------------------------------- two runs


def test_two_time_lines_stand_on_one_scale_and_in_the_same_colours(tab, files):
    page = opened(tab, files / "two.html")
    assert page.value("recupTimelines.length") == 2
    assert page.value("recupTimelines[0].axis === recupTimelines[1].axis")
    page.value("recupTimelines[1].axis.set(1, 1.5)")
    assert page.value("recupTimelines[0].view.to") == 1.5
    colours = "recupTimelines.map((l) => Object.fromEntries(l.about.prefixes.map((each) => [each.name, each.colour])))"
    one, other = page.value(colours)
    assert one == other
    assert page.value("document.querySelectorAll('.waterfall rect').length") >= 3


def test_beyond_the_limit_bins_are_drawn_and_the_slowest_can_be_found(tab, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("recup.report.timeline.timeline.__kwdefaults__", {"exact_limit": 10, "size_limit_bytes": 10**6})
    monkeypatch.setattr("recup.report.timeline.SLOWEST_KEPT", 20)
    write_report(runs[0], tmp_path / "bins.html")
    page = opened(tab, tmp_path / "bins.html")
    assert page.value(f"{LINE}.tasks.count") == 20
    assert "too many for one file" in page.value("document.querySelector('#time-line').innerText")
    pixels = f"(() => {{ const l = {LINE}; l.draw(); const d = l.canvas.getContext('2d').getImageData(l.xAt(1), 0.75 * l.laneHeight, l.xAt(3) - l.xAt(1), 1).data; let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i] + d[i + 1] + d[i + 2] < 740) n += 1; return n; }})()"
    assert page.value(pixels) > 100
    assert page.messages == []
