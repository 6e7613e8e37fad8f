"""Which alerts a post-mortem shows: by a real Prometheus whose rules fire and end, and a real Alertmanager with a silence."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from resmon.cli import main
from resmon.errors import ServerError
from resmon.postmortem import markdown, page
from resmon.postmortem.alerts import AFTER, Alerts, asked, history
from resmon.postmortem.alerts import Alert as Shown
from resmon.postmortem.case import Case, read
from resmon.postmortem.report import make
from resmon.rules import Alert, Group, rule_file
from resmon.servers.alertmanager import Alertmanager, Matcher
from resmon.servers.prometheus import Prometheus, quoted
from tests.ports import free_port
from tests.postmortem.runs import record
from tests.prometheus import serving
from tests.servers.alertmanager.servers import Server, running

HOSTILE = 'a"b\\c\nd{}=,é🤖/../%s\x01'


def between(first: float, last: float) -> str:
    return f"(vector(time()) >= {first:.3f}) < {last:.3f}"


@dataclass
class World:
    """Both servers, and a run that began at `began`."""

    url: str
    alertmanager: Server
    began: float
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Some seconds in which alerts come and go."""
    folder = tmp_path_factory.mktemp("world")
    watched = f"global: {{evaluation_interval: 1s}}\nrule_files: [{folder}/rules*.yaml]\n"
    with running(folder / "alertmanager") as alertmanager, Alertmanager.of([alertmanager.url]) as client:
        matchers = [Matcher("run", "digits"), Matcher("block", "h[.][12]", is_regex=True)]
        client.create(matchers, "1h", "pruned on purpose", author="me@here")
        with serving(folder / "prometheus", watched) as prometheus:
            began = time.time()
            (folder / "rules.yaml").write_text(rule_file([Group("alerts", rules(began), "1s")], ""))
            prometheus.read_again()
            made = World(prometheus.url, alertmanager, began, record(folder / "runs", steps=20, started=began, outcome="failed"))
            time.sleep(max(0.0, began + 10 - time.time()))
            yield made


def rules(began: float) -> list[Alert]:
    of_block = {"severity": "page", "run": "digits", "model": "Net", "block": "h.2"}
    ticket = {"severity": "ticket", "run": "digits"}
    return [
        Alert("ResmonDeadBranch", between(began + 3, began + 7), of_block, {}, lasts="1s"),
        Alert("ResmonDrift", between(began + 3, began + 9e9), {**ticket, "block": "h.0"}, {}),
        Alert("ResmonBlip", between(began + 4, began + 5), ticket, {}),
        Alert("ResmonTwice", f"{between(began + 3, began + 4.5)} or {between(began + 7, began + 9e9)}", ticket, {}),
        Alert("ResmonSlow", between(began + 3, began + 9e9), ticket, {}, lasts="1h"),
        Alert("ResmonAgentGone", between(began + 3, began + 9e9), {"severity": "page", "instance": "host:9699"}, {}),
        Alert("ResmonDrift", between(began + 3, began + 9e9), {"severity": "ticket", "run": "another"}, {}),
        Alert("NodeDown", between(began + 3, began + 9e9), {"severity": "page"}, {}),
        Alert("ResmonDrift", between(began + 3, began + 9e9), {"severity": "ticket", "run": HOSTILE}, {}),
    ]


@pytest.fixture(scope="module")
def case(world: World) -> Case:
    return read(world.folder)


def told(world: World, case: Case) -> Alerts:
    with Prometheus.of(world.url) as server, Alertmanager.of([world.alertmanager.url]) as other:
        return history(case, server, other)


def test_what_fired_when(world: World, case: Case) -> None:
    found = told(world, case)
    names = [alert.name for alert in found.alerts]
    assert sorted(names) == sorted(
        ["ResmonDeadBranch", "ResmonDrift", "ResmonBlip", "ResmonTwice", "ResmonTwice", "ResmonSlow", "ResmonAgentGone"]
    )
    by_name = {alert.name: alert for alert in found.alerts}
    dead = by_name["ResmonDeadBranch"]
    assert (dead.severity, dead.block, dead.labels["model"]) == ("page", "h.2", "Net")
    assert dead.pending is not None and dead.fired is not None and dead.until is not None
    # Rules are evaluated once a second and asked for once a second: 2 s either way.
    assert -0.1 <= dead.pending - world.began - 3 <= 2.1
    assert 0.9 <= dead.fired - dead.pending <= 2.1
    assert -2.1 <= dead.until - world.began - 7 <= 2.1
    drift = by_name["ResmonDrift"]
    assert (drift.block, drift.pending, drift.until) == ("h.0", None, None)
    slow = by_name["ResmonSlow"]
    assert slow.pending is not None and slow.fired is None and slow.until is None
    once, again = (alert for alert in found.alerts if alert.name == "ResmonTwice")
    assert once.until is not None and again.fired is not None and once.until < again.fired and again.until is None
    assert by_name["ResmonAgentGone"].labels["instance"] == "host:9699"
    assert dead.silenced == ("pruned on purpose (me@here)",)
    assert not any(alert.silenced for alert in found.alerts if alert is not dead)
    assert [note for note in found.notes if not note.startswith("What goes on did so at")] == []


def test_of_a_long_run_what_came_and_went_between_two_steps_is_seen(world: World, case: Case) -> None:
    long = replace(case, info={**case.info, "started": world.began - 5 * 86400})
    found = told(world, long)
    assert {"ResmonBlip", "ResmonDeadBranch"} <= {alert.name for alert in found.alerts}
    assert any("steps of 1 min 4" in note for note in found.notes), found.notes


def test_what_is_after_the_run_is_no_alert_of_it(world: World, case: Case) -> None:
    long_ago = replace(case, info={**case.info, "started": world.began - 7200}, ends={})
    before = replace(long_ago, clock=long_ago.clock._replace(values=long_ago.clock.values - AFTER - 3600))
    found = told(world, before)
    assert found.alerts == () and "Prometheus has no alert of this run" in found.notes[0]


def test_without_alertmanager_what_was_silenced_is_not_known(world: World, case: Case) -> None:
    with Prometheus.of(world.url) as server:
        found = history(case, server)
        assert len(found.alerts) == 7 and "no Alertmanager is named" in found.notes[0]
    down = asked(world.url, [f"http://127.0.0.1:{free_port()}"])(case)
    assert len(down.alerts) == 7 and "silenced is not known: Alertmanager at http://127.0.0.1" in down.notes[0]


def test_a_server_that_is_down_or_another_makes_a_sentence(world: World, case: Case) -> None:
    for url, said in {f"http://127.0.0.1:{free_port()}": "cannot be reached", world.alertmanager.url: "status 404"}.items():
        found = asked(url, [])(case)
        assert found.alerts == () and len(found.notes) == 1
        assert found.notes[0].startswith("Which alerts fired is not known: ") and said in found.notes[0]
    unknown = replace(case, info={**case.info, "started": None})
    assert "is not known" in told(world, unknown).notes[0]


def test_names_and_queries_that_are_hostile(world: World) -> None:
    with Prometheus.of(world.url, attempts=1) as server:
        query = f"ALERTS{{run={quoted(HOSTILE)}}}"
        (course,) = server.courses(query, world.began, time.time(), 1.0)
        assert course.labels["run"] == HOSTILE and all(value == 1 for _, value in course.samples)
        with pytest.raises(ServerError, match=r"status 400: .*parse error"):
            server.courses("sum(", world.began, time.time(), 1.0)
        with pytest.raises(ValueError, match="more than the 11,000"):
            server.courses("up", 0, 1e9, 1.0)


def test_the_reports_show_them(world: World) -> None:
    report = make([world.folder], ask=asked(world.url, [world.alertmanager.url]))
    for text in (page.render(report), markdown.render(report)):
        assert "Alerts" in text and "ResmonDeadBranch" in text and "pruned on purpose" in text and "host:9699" in text
    plain = make([world.folder])
    assert plain.alerts is None
    assert "<h2>Alerts</h2>" not in page.render(plain) and "## Alerts" not in markdown.render(plain)


def test_labels_and_comments_become_no_part_of_the_page(world: World) -> None:
    script = "<script>alert(1)</script> | [link](http://evil)\n# heading"
    alert = Shown(script, script, script, {"run": script}, 1000.0, None, None, (script,))
    report = replace(make([world.folder]), alerts=Alerts((alert,), (script,)))
    html, text = page.render(report), markdown.render(report)
    assert "<script>alert(1)" not in html and html.count("&lt;script&gt;alert(1)") == 5
    assert "<script>" not in text and "[link](" not in text and "\n# heading" not in text
    assert "1970-01-01 00:16:40 UTC" in html and "goes on" in html


def test_the_command_asks_the_servers_that_are_named(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["resmon", "postmortem", str(world.folder), "--format", "json", *arguments])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().out
        return 0, capsys.readouterr().out

    assert json.loads(run()[1])["alerts"] is None
    status, text = run("--prometheus", world.url, "--alertmanager", world.alertmanager.url)
    alerts = {each["name"]: each for each in json.loads(text)["alerts"]["alerts"]}
    assert status == 0 and alerts["ResmonDeadBranch"]["silenced"] == ["pruned on purpose (me@here)"]
    monkeypatch.setenv("RESMON_PROMETHEUS", f"http://127.0.0.1:{free_port()}")
    status, text = run()
    assert status == 0 and "cannot be reached" in json.loads(text)["alerts"]["notes"][0]
    assert run("--prometheus", "nowhere")[0] == 2
