"""alerts/alertmanager.yml: what it says, by the tools that read such files; what it does, by a real Alertmanager."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from resmon.catalogue import BY_NAME
from resmon.servers.alertmanager import Alert, Alertmanager, Matcher
from tests.programs import program
from tests.servers.alertmanager.servers import Heard, receiver, running
from tests.waiting import wait_for

FOLDER = Path(__file__).parents[3] / "alerts"
FILE = FOLDER / "alertmanager.yml"
INTERVAL = 2.0  # seconds of group_interval in the copies that run here


def rule_files() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*.yaml") if "groups:" in path.read_text())


# -- what it says -------------------------------------------------------------------------------------------------------------


def test_alertmanager_reads_it() -> None:
    found = subprocess.run([program("amtool"), "check-config", FILE], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "SUCCESS" in found.stdout, found.stdout + found.stderr


def test_the_linter_finds_nothing_not_even_beside_the_rules() -> None:
    rules = [option for path in rule_files() for option in ("--rules", str(path))]
    command = [sys.executable, "-m", "amlint.cli", "check", "--strict", *rules, str(FILE)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env={"NO_COLOR": "1", "COLUMNS": "200"})
    assert found.returncode == 0 and "No issues found" in found.stdout, found.stdout + found.stderr


FINDING = ["run=a", "model=net", "block=h.0", "finding=drift"]


@pytest.mark.parametrize(
    ("receiver_", "labels"),
    [
        ("page", ["alertname=ResmonNonfinite", "severity=page", "finding=nonfinite", *FINDING[:3]]),
        ("ticket", ["alertname=ResmonDrift", "severity=ticket", *FINDING]),
        ("page", ["alertname=ResmonRunKilled", "severity=page", "run=a", "model=net", "outcome=killed"]),
        ("page", ["alertname=ResmonAgentGone", "severity=page", "instance=host:9699"]),
        ("ticket", ["alertname=ResmonSeriesBudget", "severity=ticket", "run=a"]),
        ("page", ["alertname=ResmonSloTrainingSuccess", "severity=page", "slo=training-success", "service=resmon", "tier=slo"]),
        ("ticket", ["alertname=ResmonSloTrainingSuccess", "severity=ticket", "slo=training-success", "service=resmon", "tier=slo"]),
        # A severity that nobody knows, or none, must not be lost; nor what other people alert on.
        ("ticket", ["alertname=ResmonDrift", "severity=critical", *FINDING]),
        ("ticket", ["alertname=ResmonDrift", *FINDING]),
        ("ticket", ["alertname=NodeDown", "severity=page"]),
    ],
)
def test_alerts_go_where_they_are_to_go(receiver_: str, labels: list[str]) -> None:
    command = [program("amtool"), "config", "routes", "test", f"--config.file={FILE}", f"--verify.receivers={receiver_}", *labels]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and found.stdout.split() == [receiver_], found.stdout + found.stderr


def routes(route: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield route
    for each in route.get("routes", ()):
        yield from routes(each)


def test_it_asks_for_labels_that_resmons_alerts_have() -> None:
    known = {"alertname", "severity", "instance", "slo", "service"}
    known |= {label for name in ("resmon_finding_active", "resmon_runs_total") for label in BY_NAME[name].labels}
    content = yaml.safe_load(FILE.read_text())
    asked = [matcher for route in routes(content["route"]) for matcher in route.get("matchers", ())]
    compared = [label for route in routes(content["route"]) for label in route.get("group_by", ())]
    for rule in content["inhibit_rules"]:
        asked += rule["source_matchers"] + rule["target_matchers"]
        compared += rule["equal"]
    assert {Matcher.parse(matcher).name for matcher in asked} | set(compared) <= known
    assert {m.value for m in map(Matcher.parse, asked) if m.name == "severity"} == {"page", "ticket"}


def test_no_window_mutes_anything_until_it_is_written() -> None:
    content = yaml.safe_load(FILE.read_text())
    (interval,) = content["time_intervals"]
    assert interval == {"name": "planned-retraining", "time_intervals": [{"years": ["2100"]}]}
    assert "mute_time_intervals" not in content["route"]
    muted = [route["matchers"] for route in routes(content["route"]) if "mute_time_intervals" in route]
    assert len(muted) == 4 and all('finding!=""' in matchers for matchers in muted)


# -- what it does -------------------------------------------------------------------------------------------------------------


def copy(url: str, **changes: Any) -> str:
    """The file as it is, but that it notifies `url` and is quick."""
    content = yaml.safe_load(FILE.read_text())
    for route in routes(content["route"]):
        # Waits keep their order; a flush that is due at once would tell alerts that came together apart.
        route |= {"group_wait": "300ms"} if "group_wait" in route else {}
        route |= {"group_interval": f"{1000 * INTERVAL:.0f}ms"} if "group_interval" in route else {}
    for each in content["receivers"]:
        for webhook in each["webhook_configs"]:
            webhook["url"] = f"{url}/{each['name']}"
    return yaml.safe_dump(content | changes)


@pytest.fixture(scope="module")
def heard() -> Iterator[Heard]:
    with receiver() as made:
        yield made


@pytest.fixture(scope="module")
def client(heard: Heard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alertmanager]:
    with running(tmp_path_factory.mktemp("routes"), copy(heard.url)) as server, Alertmanager.of([server.url]) as made:
        yield made


def finding(kind: str, run: str, model: str, block: str = "h.0", severity: str = "ticket", **labels: str) -> dict[str, str]:
    name = "Resmon" + "".join(word.capitalize() for word in kind.split("_"))
    made = {"alertname": name, "severity": severity, "run": run, "model": model, "block": block, "finding": kind, **labels}
    return {label: value for label, value in made.items() if value}


def outcome(kind: str, run: str, model: str) -> dict[str, str]:
    name = "ResmonRun" + "".join(word.capitalize() for word in kind.split("_"))
    return {"alertname": name, "severity": "page", "run": run, "model": model, "outcome": kind}


def told(heard: Heard, model: str) -> list[tuple[str, str, str, str]]:
    """Receiver, alert, run and block of all that was notified about a model."""
    return sorted(
        (path.removeprefix("/"), labels["alertname"], labels.get("run", ""), labels.get("block", ""))
        for path, content in list(heard.said)
        for labels in (alert["labels"] for alert in content["alerts"])
        if labels.get("model") == model
    )


def test_a_page_says_what_the_rule_says(client: Alertmanager, heard: Heard) -> None:
    annotations = {"summary": "h.3 is not finite", "runbook_url": "https://here/runbooks/nonfinite.md", "value": "1"}
    client.post([Alert(finding("nonfinite", "a", "said", "h.3", "page"), annotations)])
    (page,) = wait_for(lambda: [each for each in heard.of("/page") if each["commonLabels"].get("model") == "said"])
    assert page["status"] == "firing" and page["receiver"] == "page"
    assert page["commonLabels"]["block"] == "h.3"
    assert page["commonAnnotations"] == annotations
    client.post([Alert(finding("nonfinite", "a", "said", "h.3", "page"), annotations, ends=datetime.now(UTC))])
    resolved = wait_for(lambda: [each for each in heard.of("/page") if each["commonLabels"].get("model") == "said"][1:])
    assert [each["status"] for each in resolved] == ["resolved"]
    assert resolved[0]["groupKey"] == page["groupKey"]


def test_a_second_run_of_a_model_adds_no_second_page(client: Alertmanager, heard: Heard) -> None:
    def pages() -> list[dict[str, Any]]:
        return [each for each in heard.of("/page") if each["groupLabels"].get("model") in ("one", "two")]

    client.post([Alert(outcome("killed", "first", "one")), Alert(finding("dead_branch", "first", "one", severity="page"))])
    (page,) = wait_for(pages)
    began = time.monotonic()
    assert page["groupLabels"] == {"alertname": "ResmonRunKilled", "model": "one"}
    time.sleep(0.3)
    client.post([Alert(outcome("killed", "second", "one"))])
    # Nothing until the group's interval is over; then it is told of the same group, and once.
    time.sleep(max(0.0, INTERVAL - 1.0 - (time.monotonic() - began)))
    assert pages() == [page]
    later = wait_for(lambda: pages()[1:])
    time.sleep(INTERVAL * 1.5)
    assert pages()[1:] == later and len(later) == 1
    assert later[0]["groupKey"] == page["groupKey"]
    assert {alert["labels"]["run"] for alert in later[0]["alerts"]} == {"first", "second"}
    # Another model is another page.
    client.post([Alert(outcome("killed", "third", "two"))])
    assert wait_for(lambda: pages()[2:])[0]["groupKey"] != page["groupKey"]


def test_a_run_that_ends_of_nan_is_no_second_page(client: Alertmanager, heard: Heard) -> None:
    """The finding ends with the run, and with it what inhibits the page of the run's end."""

    def pages() -> list[dict[str, Any]]:
        return [each for each in heard.of("/page") if each["groupLabels"].get("model") == "ends"]

    first = finding("nonfinite", "ends", "ends", "h.2", "page")
    client.post([Alert(first), Alert(outcome("nonfinite", "ends", "ends"))])
    (page,) = wait_for(pages)
    assert [alert["labels"]["alertname"] for alert in page["alerts"]] == ["ResmonNonfinite"]
    client.post([Alert(first, ends=datetime.now(UTC))])
    later = wait_for(lambda: pages()[1:])[0]
    assert later["groupKey"] == page["groupKey"] and later["status"] == "firing"
    assert ("ResmonRunNonfinite", "firing") in {(alert["labels"]["alertname"], alert["status"]) for alert in later["alerts"]}


def test_what_has_no_model_is_grouped_by_its_run(client: Alertmanager, heard: Heard) -> None:
    client.post(
        Alert({"alertname": name, "severity": "page", "run": run, **more})
        for run in ("x", "y")
        for name, more in {"ResmonStale": {}, "ResmonLossDivergence": {"finding": "loss_divergence"}}.items()
    )
    gone = {"alertname": "ResmonAgentGone", "severity": "page"}
    client.post(Alert(gone | {"instance": "m:9699", "run": run, "model": f"model-{run}"}) for run in "xyz")
    wait_for(lambda: [e for e in heard.of("/page") if e["groupLabels"] == {"alertname": "ResmonAgentGone", "instance": "m:9699"}])
    assert len([e for e in heard.of("/page") if e["groupLabels"].get("instance") == "m:9699"]) == 1
    burn = {"alertname": "ResmonSloFinite", "severity": "page", "slo": "finite"}
    client.post(Alert(burn | {"service": service}) for service in ("vision", "language"))
    wait_for(lambda: {e["groupLabels"].get("service") for e in heard.of("/page")} >= {"vision", "language"})
    kinds = {"ResmonStale", "ResmonLossDivergence"}

    def groups() -> set[tuple[str, str]]:
        labels = [each["groupLabels"] for each in heard.of("/page") if each["groupLabels"].get("alertname") in kinds]
        return {(each["alertname"], each["run"]) for each in labels}

    wait_for(lambda: groups() == {(kind, run) for kind in kinds for run in ("x", "y")})


# Of each scene: the alerts, each with whether it is heard.
SCENES: dict[str, list[tuple[dict[str, str], bool]]] = {
    "a killed run has no drift": [
        (outcome("killed", "dead", "killed"), True),
        (finding("drift", "dead", "killed"), False),
        (finding("change", "dead", "killed", "h.1"), False),
        (finding("loss_divergence", "dead", "killed", "", "page"), False),
        (finding("nonfinite", "dead", "killed", "h.2", "page"), True),  # it may be why
        (finding("drift", "alive", "killed"), True),
        ({"alertname": "ResmonSlowSteps", "run": "dead", "model": "killed", "severity": "ticket"}, False),
        ({"alertname": "ResmonSlowSteps", "run": "alive", "model": "killed", "severity": "ticket"}, True),
        ({"alertname": "ResmonSeriesBudget", "model": "killed", "severity": "ticket"}, True),
    ],
    "of a run whose agent is gone nothing is known": [
        ({"alertname": "ResmonAgentGone", "run": "unheard", "model": "gone", "severity": "page", "instance": "a:9699"}, True),
        ({"alertname": "ResmonRunStale", "run": "unheard", "model": "gone", "severity": "ticket"}, False),
        ({"alertname": "ResmonRunStale", "run": "heard", "model": "gone", "severity": "ticket"}, True),
        (finding("loss_divergence", "unheard", "gone", "", "page"), True),
    ],
    "a block that is not finite has neighbours": [
        (finding("nonfinite", "nan", "nan", "h.2", "page"), True),
        (finding("exploding_gradients", "nan", "nan", "h.3", "page"), False),
        (finding("dead_branch", "nan", "nan", "h.2"), False),
        (finding("nonfinite_loss", "nan", "nan", "", "page"), False),
        (finding("nonfinite", "ended", "nan", "h.2", "page"), True),
        (outcome("nonfinite", "ended", "nan"), False),
        (finding("exploding_gradients", "other", "nan", "h.3", "page"), True),
        (outcome("nonfinite", "short", "nan"), True),  # no scrape saw its finding
    ],
    "a page silences the ticket beside it": [
        (finding("dead_branch", "beside-a", "beside", "h.0", "page"), True),
        (finding("change", "beside-a", "beside", "h.0"), False),
        (finding("change", "beside-a", "beside", "h.1"), True),
        (finding("change", "beside-b", "beside", "h.0"), True),
        (finding("loss_divergence", "beside-a", "beside", "", "page"), True),
        (finding("overfitting", "beside-a", "beside", ""), False),
        (finding("overfitting", "beside-b", "beside", ""), True),
    ],
    "tickets silence nothing": [
        (finding("drift", "tickets-a", "tickets"), True),
        (finding("nonfinite", "tickets-a", "tickets", severity="ticket"), True),
        (finding("change", "tickets-a", "tickets"), True),
    ],
    "a budget that burns fast": [
        ({"alertname": "ResmonSloA", "model": "slo", "slo": "a", "service": "s", "severity": "page"}, True),
        ({"alertname": "ResmonSloA", "model": "slo", "slo": "a", "service": "s", "severity": "ticket"}, False),
        ({"alertname": "ResmonSloB", "model": "slo", "slo": "b", "service": "s", "severity": "ticket"}, True),
    ],
}


def test_what_follows_is_inhibited_and_nothing_else(client: Alertmanager, heard: Heard) -> None:
    alerts = [alert for scene in SCENES.values() for alert, _ in scene]
    client.post(map(Alert, alerts))
    models = {scene: alerts[0][0]["model"] for scene, alerts in SCENES.items()}

    def wanted(scene: str) -> list[tuple[str, str, str, str]]:
        return sorted(
            (labels["severity"], labels["alertname"], labels.get("run", ""), labels.get("block", ""))
            for labels, is_heard in SCENES[scene]
            if is_heard
        )

    wait_for(lambda: all(set(told(heard, model)) >= set(wanted(scene)) for scene, model in models.items()))
    time.sleep(INTERVAL + 0.7)  # what is inhibited is looked at once more
    for scene, model in models.items():
        assert told(heard, model) == wanted(scene), scene
    inhibited = {frozenset(alert.labels.items()) for alert in client.alerts() if alert.inhibited}
    for scene in SCENES.values():
        for labels, is_heard in scene:
            assert (frozenset(labels.items()) in inhibited) == (not is_heard), labels


def test_what_is_silenced_is_not_heard(client: Alertmanager, heard: Heard) -> None:
    client.create([Matcher("run", "planned")], "10m", "why")
    client.post([Alert(outcome("killed", run, "silenced")) for run in ("planned", "unplanned")])
    wait_for(lambda: told(heard, "silenced"))
    time.sleep(1.0)
    assert told(heard, "silenced") == [("page", "ResmonRunKilled", "unplanned", "")]


def test_a_planned_window_mutes_findings_and_no_dying_run(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    window = {"years": [f"{now.year}:{(now + timedelta(days=1)).year}"]}
    with receiver() as heard:
        muting = copy(heard.url, time_intervals=[{"name": "planned-retraining", "time_intervals": [window]}])
        with running(tmp_path, muting) as server, Alertmanager.of([server.url]) as client:
            client.post(
                map(
                    Alert,
                    [
                        finding("drift", "a", "muted"),
                        finding("loss_divergence", "a", "muted", "", "page"),
                        finding("change", "c", ""),
                        finding("nonfinite", "b", "muted", "h.1", "page"),
                        outcome("killed", "d", "muted"),
                    ],
                )
            )
            wait_for(lambda: len(heard.said) == 2)
            time.sleep(INTERVAL)
            assert told(heard, "muted") == [("page", "ResmonNonfinite", "b", "h.1"), ("page", "ResmonRunKilled", "d", "")]
            assert len(heard.said) == 2
