"""The page in a real browser: what people click and see, live, on a phone, by keyboard, and what must never happen."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import urllib.request
from pathlib import Path

import pytest

from resmon.flight.layout import claim
from resmon.records import RunEnd
from tests.agent.conftest import get
from tests.browser import Page
from tests.flight.flights import begin
from tests.page.conftest import Place
from tests.page.runs import HOSTILE, fill, record
from tests.waiting import wait_for

DRAWN = "document.querySelectorAll('.plot .main-svg').length > 4 && !document.querySelector('.waiting')"
HEAT = "[data-key=heat] .plot"
OWNED = "document.title === 'owned' || document.querySelector('main img, main script, main b[onclick], figure a')"


@pytest.fixture(scope="module", autouse=True)
def runs(place: Place) -> None:
    record(place.runs, "well", steps=200)
    record(place.runs, "broken", steps=150, broken_at=90)
    record(place.runs, HOSTILE[0], names=HOSTILE, broken_at=60)
    wait_for(lambda: json.loads(get(f"{place.url}/api/runs")[1])["total"] == 3)


def text(tab: Page, selector: str) -> str:
    return str(tab.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))


def centre(tab: Page, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
    """A point in an element, scrolled into view."""
    found = tab.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
        f"const r = e.getBoundingClientRect(); return [r.x + {across} * r.width, r.y + {down} * r.height]; }})()"
    )
    return float(found[0]), float(found[1])


def choose(tab: Page, name: str, value: str) -> None:
    select = f"document.querySelector('[data-{name}]')"
    tab.run(f"{select}.value = {json.dumps(value)}; {select}.dispatchEvent(new Event('change', {{bubbles: true}}))")


def overflows(tab: Page) -> bool:
    return bool(tab.run("document.documentElement.scrollWidth > innerWidth"))


def test_the_runs_and_a_click_on_one(place: Place, tab: Page) -> None:
    tab.open(place.url)
    tab.until("document.querySelectorAll('.run').length === 3")
    listed = text(tab, "[data-runs]")
    assert "well" in listed and "finished" in listed and "nonfinite" in listed and "ago" in listed
    assert "Step 90: sqrt in module h.4" in listed
    tab.run("(e => { e.value = 'brok'; e.dispatchEvent(new Event('input')); })(document.querySelector('[data-match]'))")
    tab.until("document.querySelectorAll('.run').length === 1")
    tab.click(*centre(tab, ".run .name", 0.1))
    tab.until(DRAWN)
    assert tab.run("document.querySelector('h1[data-name]').innerText") == "broken"
    assert "nonfinite" in text(tab, "[data-outcome]")
    assert "sqrt in module h.4" in text(tab, ".card.bad") and "runbook: nonfinite" in text(tab, ".card.bad")
    assert "The branch of h.4 gives 6 times as much" in text(tab, "[data-trouble]")
    tab.run("history.back()")
    tab.until("!document.querySelector('[data-view=runs]').hidden")


def test_a_click_into_the_map_chooses_block_and_step(place: Place, tab: Page) -> None:
    tab.open(place.address("well"))
    tab.until(DRAWN)
    tab.click(*centre(tab, f"{HEAT} .nsewdrag", 0.5, 2.5 / 6))
    tab.until("document.querySelector('[data-key=block] .main-svg') && document.querySelector('[data-key=magnitudes] .main-svg')")
    query = tab.run("Object.fromEntries(new URLSearchParams(location.search))")
    assert query["block"] == "2" and abs(int(query["at"]) - 100) <= 2
    assert text(tab, "[data-key=block] h2") == "Block h.2"
    assert f"step {query['at']}" in text(tab, "[data-at-shown]")
    assert tab.run("document.querySelector('[data-block]').value") == "2"


@pytest.mark.slow
def test_another_quantity_and_a_closer_look(place: Place, tab: Page) -> None:
    tab.open(place.address("well"))
    tab.until(DRAWN)
    choose(tab, "quantity", "gradient_norm")
    tab.until("document.querySelector('[data-key=heat] h2').innerText.startsWith('Gradient norm')")
    x, y = centre(tab, "[data-key=loss] .nsewdrag", 0.25, 0.5)
    width = tab.run("document.querySelector('[data-key=loss] .nsewdrag').getBoundingClientRect().width")
    tab.drag(x, y, x + width / 2)
    tab.until("new URLSearchParams(location.search).get('from')")
    shown = "document.querySelector('[data-key=heat] .plot').layout.xaxis.range"
    tab.until(f"{shown}[0] > 40 && {shown}[1] < 160")
    assert text(tab, "[data-shown]").startswith("steps ")
    tab.click(*centre(tab, "[data-range=whole]"))
    tab.until(f"{shown}[0] < 1 && {shown}[1] > 198")
    tab.run("history.back()")
    tab.until(f"{shown}[0] > 40")


def test_a_run_that_is_recorded_no_more_says_so_also_beside_another(place: Place, tab: Page) -> None:
    _, writer = begin(place.runs, "full", launch="launch of full")
    fill(writer, 40, 3)
    writer.stopped(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    wait_for(lambda: '"full"' in get(f"{place.url}/api/runs")[1])
    sentence = "Recording stopped after step 39: No space left on device."
    cards = "[...document.querySelector('[data-trouble]').children].map((each) => each.innerText.split('\\n')[0])"
    try:
        tab.open(place.url)
        tab.until("document.querySelectorAll('.run').length === 4")
        assert sentence in text(tab, f"a[href*='{place.id('full')}']")
        tab.open(place.address("full"))
        tab.until(DRAWN)
        assert tab.run(cards) == [sentence]
        assert "What came after that is not on file" in text(tab, ".card.bad")
        tab.open(place.address("full", **{"with": place.id("broken")}))
        tab.until(
            "document.querySelector('[data-key=heat-2] .main-svg') && document.querySelector('[data-key=events-2] .main-svg')"
        )
        names = tab.run(cards)
        assert names[:3] == ["full", sentence, "broken"] and names[3].startswith("Step 90: sqrt in module h.4"), names
        assert text(tab, "[data-key=events-2] h2") == "What happened when: broken"
        assert "Vertical lines are incidents, in the colour of their run." in text(tab, "[data-key=loss] figcaption")
        lines = tab.run("document.querySelector('[data-key=loss] .plot').layout.shapes.filter((each) => each.x0 === 90).length")
        assert lines == 1
    finally:
        writer.end(RunEnd("finished", 1000.0, 39))
        shutil.rmtree(place.runs / "full")
    wait_for(lambda: '"full"' not in get(f"{place.url}/api/runs")[1])


@pytest.mark.slow
def test_two_runs_side_by_side(place: Place, tab: Page) -> None:
    tab.open(place.address("well"))
    tab.until(DRAWN)
    tab.run("document.querySelector('[data-beside]').focus()")
    tab.until("document.querySelector('[data-beside]').options.length === 3")
    choose(tab, "beside", place.id("broken"))
    tab.until("document.querySelector('[data-key=heat-2] .main-svg')")
    axes = "(({xaxis, coloraxis}) => [xaxis.range, coloraxis.cmin, coloraxis.cmax])"
    one, two = (tab.run(f"{axes}(document.querySelector('[data-key={key}] .plot').layout)") for key in ("heat", "heat-2"))
    assert one == two
    places = tab.run("['heat', 'heat-2'].map((key) => document.querySelector(`[data-key=${key}]`).getBoundingClientRect().top)")
    assert places[0] == places[1], "beside each other"
    assert tab.run("document.querySelectorAll('[data-facts] th[scope=col]').length") == 2


def test_attempts_are_chosen_and_compared(place: Place, tab: Page) -> None:
    for number in (1, 2):
        _, writer = begin(place.runs, "resumed", launch=f"launch {number}")
        fill(writer, 40 * number, 3)
        writer.end(RunEnd("finished", 1000.0, 40 * number - 1))
    wait_for(lambda: '"resumed"' in get(f"{place.url}/api/runs")[1])
    try:
        tab.open(place.address("resumed"))
        tab.until(DRAWN)
        assert "attempt 2 of 2" in text(tab, "[data-line]")
        choose(tab, "attempt", f"{place.id('resumed')}@1")
        tab.until("document.querySelector('h1[data-name]').innerText === 'resumed, attempt 1'")
        assert text(tab, "[data-shown]") == "all steps to 39"
        tab.run("document.querySelector('[data-beside]').focus()")
        tab.until(
            "[...document.querySelector('[data-beside]').options].some((each) => each.text === 'attempt 2: finished, 80 steps')"
        )
        choose(tab, "beside", place.id("resumed"))
        tab.until("document.querySelector('[data-key=heat-2] .main-svg')")
        assert text(tab, "h1[data-name]") == "resumed, attempt 1 beside resumed, attempt 2"
        tab.click(*centre(tab, "[data-all]"))
        tab.until("!document.querySelector('[data-view=runs]').hidden")
    finally:
        shutil.rmtree(place.runs / "resumed")
    wait_for(lambda: '"resumed"' not in get(f"{place.url}/api/runs")[1])


def test_figures_are_drawn_one_by_one_what_is_seen_first(place: Place, tab: Page) -> None:
    """Between two of them the browser takes clicks and keys: ten figures at once would hold it up for a fifth of a second."""
    tab.open(place.address("well", block=1))
    all_drawn = "[...document.querySelectorAll('figure')].every((each) => each.querySelector('.main-svg'))"
    tab.until(f"document.querySelector('[data-key=scores]') && {all_drawn}")
    tab.run(
        "window.turn = 0; window.turns = []; window.keys = []; window.react = Plotly.react; Plotly.react = (place, ...rest) => {"
        "turns.push(turn); keys.push(place.closest('figure').dataset.key); setTimeout(() => { turn += 1; });"
        "return react(place, ...rest); }"
    )
    choose(tab, "quantity", "gradient_norm")
    tab.until("keys.length === document.querySelectorAll('figure').length")
    turns, keys = tab.run("turns"), tab.run("keys")
    assert len(set(turns)) == len(turns), "each in a task of its own"
    assert len(keys) == len(set(keys)) and keys[0] == "loss"
    tab.run("keys.length = 0; document.querySelector('[data-key=scores]').scrollIntoView()")
    choose(tab, "quantity", "skip_rms")
    tab.until("keys.length === document.querySelectorAll('figure').length")
    assert tab.run("keys[0]") not in ("loss", "heat"), "which were scrolled away"


LEGIBLE = (Path(__file__).parent / "legible.js").read_text()


@pytest.mark.parametrize("dark", [False, True])
def test_texts_can_be_read_and_what_is_pressed_can_be_hit(dark: bool, place: Place, tab: Page) -> None:
    """WCAG 2.2, level AA: contrast 4.5 (1.4.3), targets of 24 pixels (2.5.8); with a finger more."""
    for width, least in ((1280, 24), (390, 36)):
        tab.size(width, 800, touch=width < 700)
        tab.media(dark)
        for address, there in (
            (place.url, "document.querySelectorAll('.run').length >= 3"),
            (place.address("broken", block=1), DRAWN),
        ):
            tab.open(address)
            tab.until(there)
            assert tab.run(LEGIBLE.replace("LEAST", str(least))) == {"faint": [], "small": []}, (address, width)


def test_the_keyboard_is_enough(place: Place, tab: Page) -> None:
    tab.open(place.url)
    tab.until("document.querySelectorAll('.run').length === 3")
    tab.run(f"document.querySelector('.run[href*={json.dumps(place.id('well').split('~')[1])}]').previousElementSibling?.focus()")
    focus = "document.activeElement"
    for _ in range(12):
        tab.key("Tab")
        if "well" in str(tab.run(f"{focus}.innerText")) and tab.run(f"{focus}.classList.contains('run')"):
            break
    assert tab.run(f"getComputedStyle({focus}).outlineStyle") == "solid", "one sees where one is"
    tab.key("Enter")
    tab.until(DRAWN)
    for _ in range(40):
        tab.key("Tab")
        if tab.run(f"{focus}.closest('[data-key=heat]') !== null && {focus}.classList.contains('plot')"):
            break
    else:
        raise AssertionError("Tab does not lead to the heat map")
    tab.key("ArrowDown")
    tab.key("ArrowDown")
    tab.until("new URLSearchParams(location.search).get('block') === '1'")
    before = int(tab.run("document.querySelector('[data-at]').value"))
    tab.key("ArrowLeft")
    tab.until(f"Number(document.querySelector('[data-at]').value) < {before}")
    tab.until("document.querySelector('[data-key=block] h2')?.innerText === 'Block h.1'")
    tab.key("Escape")
    tab.until("!document.querySelector('[data-key=block]')")


@pytest.mark.parametrize(
    ("width", "dark"),
    [(360, True), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((360, False), (800, False), (800, True)))],
)
def test_small_screens_in_light_and_dark(width: int, dark: bool, place: Place, tab: Page) -> None:
    tab.size(width, 780, touch=width < 700)
    tab.media(dark)
    tab.open(place.address(HOSTILE[0], block=3, quantity="skip_rms"))
    tab.until(DRAWN)
    assert not overflows(tab), "nothing sticks out to the right"
    edges = tab.run("[...document.querySelectorAll('.group button')].map((each) => each.getBoundingClientRect().right)")
    assert max(edges) <= width - 8, "nor is a button cut"
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert tab.run("document.querySelector('[data-key=loss] .plot').layout.font.color") == ("#e7eaee" if dark else "#1c2026")
    seen = "[...document.querySelectorAll('button, select')].filter((e) => e.offsetParent)"
    small = tab.run(f"{seen}.filter((e) => e.getBoundingClientRect().height < 30).map((e) => e.outerHTML.slice(0, 80))")
    assert all("theme-button" in each or "link" in each for each in small), "large enough for a finger"
    tab.open(place.url)
    tab.until("document.querySelectorAll('.run').length === 3")
    assert not overflows(tab)


@pytest.mark.slow
def test_the_theme_can_be_chosen_and_stays(place: Place, tab: Page) -> None:
    tab.open(place.address("well"))
    tab.until(DRAWN)
    tab.click(*centre(tab, "[data-theme-button]"))
    tab.until("document.querySelector('[data-key=loss] .plot').layout.font.color === '#e7eaee'")
    tab.open(place.url)
    assert tab.run("document.documentElement.dataset.theme") == "dark"
    tab.run("localStorage.clear()")


def test_hostile_names_are_shown_as_they_are(place: Place, tab: Page) -> None:
    tab.open(place.url)
    tab.until("document.querySelectorAll('.run').length === 3")
    assert HOSTILE[0] in text(tab, "[data-runs]")
    for block, name in enumerate(HOSTILE):
        tab.open(place.address(HOSTILE[0], block=block))
        tab.until("document.querySelector('[data-key=block] .main-svg')")
        assert text(tab, "h1[data-name]") == HOSTILE[0]
        assert text(tab, "[data-key=block] h2") == f"Block {name}"
        x, y = centre(tab, f"{HEAT} .nsewdrag", 0.3, (block + 0.5) / 4)
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        tab.until("document.querySelector('[data-key=heat] .hoverlayer .hovertext')")
        assert name[:20] in str(tab.run("document.querySelector('[data-key=heat] .hoverlayer').textContent"))
        assert not tab.run(f"Boolean({OWNED})")


def test_the_policy_is_strict_and_nothing_comes_from_elsewhere(place: Place, tab: Page) -> None:
    with urllib.request.urlopen(place.url) as answer:
        policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy and "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    tab.open(place.address("broken", block=1))
    tab.until(DRAWN)
    hosts = tab.run("[...new Set(performance.getEntriesByType('resource').map((each) => new URL(each.name).host))]")
    assert hosts == [place.url.removeprefix("http://")]
    assert tab.run("document.querySelectorAll('style').length") == 0


@pytest.mark.slow
def test_a_run_that_goes_while_it_is_looked_at(place: Place, tab: Page) -> None:
    folder = record(place.runs, "going", steps=50, end=False)
    wait_for(lambda: "going" in get(f"{place.url}/api/runs")[1])
    tab.open(place.address("going"))
    tab.until(DRAWN)
    shutil.rmtree(folder.parent.parent)
    tab.until("document.querySelector('[data-banner]').innerText.includes('This run is gone')")
    assert tab.run(DRAWN), "what was read is there still"
    tab.complaints[:] = [each for each in tab.complaints if "404" not in each]  # the browser tells of each answer that it is none


@pytest.mark.slow
def test_no_run_of_that_name(place: Place, tab: Page) -> None:
    tab.open(f"{place.url}/?run=%3Cimg%20src%3Dx%3E")
    tab.until("document.querySelector('[data-banner]').innerText.startsWith('There is nothing to show')")
    tab.complaints[:] = [each for each in tab.complaints if "404" not in each]


@pytest.mark.slow
def test_a_flight_that_is_damaged_while_it_is_looked_at(place: Place, tab: Page) -> None:
    folder, writer = begin(place.runs, "hurt", launch="hurt")
    fill(writer, 60, 4)
    wait_for(lambda: "hurt" in get(f"{place.url}/api/runs")[1])
    tab.open(place.address("hurt"))
    tab.until(DRAWN)
    (segment,) = folder.glob("steps-*.arrow")
    with segment.open("ab") as file:
        file.write(b"\xff" * 30_000)
    tab.until("document.querySelector('[data-line]').innerText.includes('damaged rows left out')")
    assert tab.run(DRAWN)


def test_a_runbook_is_a_page(place: Place, tab: Page) -> None:
    tab.open(f"{place.url}/runbooks/nonfinite")
    assert "Meaning" in text(tab, "main") and "Mitigation" in text(tab, "main")
    assert get(f"{place.url}/runbooks/no-such")[0] == 404
    assert get(f"{place.url}/runbooks/..%2f..%2fREADME")[0] == 404
    assert get(f"{place.url}/static/..%2fpage.py")[0] == 404


@pytest.mark.slow
def test_steps_arrive_without_a_reload_and_a_tab_that_slept_catches_up(place: Place, tab: Page) -> None:
    """Two ranks are trained beside: a live run of a real process."""
    trainer = place.house.trainer(run="live", sites=3, pace=0.05, last=400)
    wait_for(lambda: '"live"' in get(f"{place.url}/api/runs")[1])
    tab.open(place.address("live"))
    tab.until(DRAWN)
    tab.run("window.mark = 1")
    steps = "Number(document.querySelector('[data-line] b').innerText.replaceAll(',', ''))"
    last = "document.querySelector('[data-key=loss] .plot').data.at(-1).x.at(-1)"
    before, drawn = tab.run(steps), tab.run(last)
    tab.until(f"{steps} > {before} + 10 && {last} > {drawn} + 10", 20)
    assert "live" in text(tab, ".connection")
    hide = "Object.defineProperty(document, 'hidden', {{value: {0}, configurable: true}});"
    hide += "document.dispatchEvent(new Event('visibilitychange'))"
    tab.run(hide.format("true"))
    asleep = tab.run("performance.getEntriesByType('resource').length")
    wait_for(lambda: json.loads(get(f"{place.url}/api/run?id={place.id('live')}")[1])["whole"][1] > drawn + 60)
    assert tab.run("performance.getEntriesByType('resource').length") <= asleep + 1, "it asks for nothing while nobody looks"
    tab.run(hide.format("false"))
    tab.until(f"{last} > {drawn} + 50", 10)
    trainer.kill()
    tab.until("document.querySelector('[data-outcome]').innerText === 'killed'", 20)
    assert tab.run("window.mark") == 1, "and all of that without a reload"


@pytest.mark.slow
def test_a_post_mortem_is_made_on_demand(place: Place, tab: Page) -> None:
    tab.open(f"{place.url}/postmortem?id={place.id('broken')}")
    tab.until("document.querySelectorAll('.main-svg').length > 2")
    assert "broken" in text(tab, "h1") and "sqrt in module h.4" in text(tab, "main")
    assert get(f"{place.url}/postmortem?id=../../etc")[0] == 404


@pytest.mark.slow
def test_an_agent_that_goes_and_comes_back(tmp_path: Path, place: Place, tab: Page) -> None:
    """The page says so, keeps what it shows, and goes on by itself."""
    from tests.agent.conftest import House
    from tests.ports import free_port

    port = free_port()
    home = tmp_path / "runtime"
    home.mkdir(mode=0o700)
    (home / "directories.json").write_text(json.dumps({"directories": [str(place.runs)]}))
    house = House(tmp_path, home)
    command = (sys.executable, "-m", "resmon", "agent", "--listen", f"127.0.0.1:{port}", "--linger", "600")
    agent = house.start(*command, environment={"RESMON_RUNTIME_DIR": str(home)})
    try:
        url = house.ready(port)
        tab.open(f"{url}/?run={place.id('well')}")
        tab.until(DRAWN)
        agent.terminate()
        agent.wait()
        tab.until("document.querySelector('[data-banner]').innerText.includes('does not answer')", 30)
        assert tab.run(DRAWN) and "no answer" in text(tab, ".connection")
        house.start(*command, environment={"RESMON_RUNTIME_DIR": str(home)})
        tab.until("document.querySelector('[data-banner]').hidden", 30)
    finally:
        house.stop()
    tab.complaints[:] = [each for each in tab.complaints if "ERR_CONNECTION" not in each]


@pytest.mark.slow
def test_claiming_a_run_is_all_that_a_page_needs(place: Place) -> None:
    """A run before its first row, and one whose name is another's beginning."""
    claim(place.runs, "wel", "launch", 0)
    told = (
        json.loads(get(f"{place.url}/api/run?id={place.id('wel')}")[1])
        if wait_for(lambda: '"wel"' in get(f"{place.url}/api/runs")[1])
        else {}
    )
    assert told["figures"] == [] and told["run"]["outcome"] == "unreadable"
