"""A real Prometheus has the rules and scrapes made-up series; what is reported is what they say."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from resmon.cli import main
from resmon.errors import ServerError
from resmon.objectives.budgets import QUERIES, Standing, standings
from resmon.servers import connection as servers
from resmon.servers.prometheus import Prometheus, Sample
from tests.objectives.specs import service, slo, written
from tests.ports import free_port
from tests.programs import program
from tests.prometheus import Page, prometheus, quick_rules, scraped
from tests.servers.alertmanager.servers import answering, reply
from tests.waiting import wait_for

OUTCOMES = ("finished", "failed", "interrupted")
GROUPED = """\
events:
  error_query: sum by (zone) (rate(bad_total[{{.window}}]))
  total_query: sum by (zone) (rate(all_total[{{.window}}]))
"""


@pytest.fixture
def page() -> Iterator[Page]:
    with scraped() as made:
        yield made


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`resmon slo report` in a folder."""
    usual = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "120", "HOME": "/"}
    return subprocess.run(
        [sys.executable, "-m", "resmon", "slo", "report", *arguments],
        cwd=folder,
        env=usual | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def at(url: str, **options: Any) -> list[Standing]:
    with Prometheus.of(url, attempts=1, **options) as server:
        return standings(server)


def by_name(url: str) -> dict[str, Standing]:
    return {each.slo: each for each in at(url)}


def test_runs_that_fail_burn_the_budget_and_page(page: Page, tmp_path: Path) -> None:
    runs = [f'resmon_runs_total{{outcome="{outcome}"}}' for outcome in OUTCOMES]
    page.values |= dict.fromkeys(runs, 0.0)
    page.values["resmon_runs_active"] = 0
    with prometheus(tmp_path / "server", quick_rules(tmp_path), page) as url:
        wait_for(lambda: page.scrapes > 2)
        calm = wait_for(lambda: _there(url))
        assert calm["training-success"] == Standing("resmon", "training-success", {}, 0.95, 0.05, 30.0)
        assert set(calm) == {"training-success", "step-time", "finite-steps", "convergence", "telemetry-freshness"}
        # Nine of ten that came to an end by themselves fail; those that were interrupted do not count.
        page.values |= dict(zip(runs, (1.0, 9.0, 20.0), strict=True))
        firing = wait_for(lambda: (found := by_name(url)["training-success"]).firing and found.budget_left and found)
        assert firing.firing == ("page",)
        assert firing.current_burn_rate == pytest.approx(0.9 / 0.05)
        assert firing.period_burn_rate == pytest.approx(18) and firing.budget_left == pytest.approx(1 - 18)
        shown = command(tmp_path, "--prometheus", url)
        assert shown.returncode == 0 and not shown.stderr
        (line,) = [line for line in shown.stdout.splitlines() if "training-success" in line]
        assert line.split() == "resmon/training-success 95 % 30 d 18 18 -1700.0 % page".split()
        (line,) = [line for line in shown.stdout.splitlines() if "convergence" in line]
        assert line.split() == "resmon/convergence 80 % 30 d – – –".split()
        printed = json.loads(command(tmp_path, "--prometheus", url, "--json").stdout)
        assert [each["slo"] for each in printed] == sorted(calm)
        told = {each["slo"]: each for each in printed}["training-success"]
        assert told["objective"] == 0.95 and told["firing"] == ["page"] and told["labels"] == {}
        assert {each["slo"]: each for each in printed}["step-time"]["budget_left"] is None
        with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=10) as answer:
            loaded = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
        assert len(loaded) > 100 and {(rule["health"], rule.get("lastError", "")) for rule in loaded} == {("ok", "")}


def _there(url: str) -> dict[str, Standing]:
    try:
        found = by_name(url)
    except ServerError:  # it has not evaluated the rules yet
        return {}
    return found if len(found) == 5 else {}


def test_what_an_objective_tells_apart_is_told_apart(page: Page, tmp_path: Path) -> None:
    spec = written(tmp_path, service(slo(sli=GROUPED), slo("whole", "99"), more="labels: {team: a}\n"))
    series = [f'{name}_total{{zone="{zone}"}}' for name in ("bad", "all") for zone in ("east", "west\\n")]
    page.values |= dict.fromkeys(series, 0.0)
    with prometheus(tmp_path / "server", quick_rules(tmp_path, spec), page) as url:
        wait_for(lambda: page.scrapes > 2)
        page.values |= dict(zip(series, (50.0, 0.0, 100.0, 100.0), strict=True))

        def found() -> list[Standing] | None:
            try:
                made = at(url)
            except ServerError:
                return None
            return made if len(made) == 3 and made[0].firing else None

        east, west, whole = wait_for(found)
        assert (east.labels, east.firing, east.objective) == ({"zone": "east"}, ("page",), 0.999)
        assert (west.labels, west.firing, west.budget_left) == ({"zone": "west\n"}, (), 1.0)
        assert east.current_burn_rate == pytest.approx(500) and west.current_burn_rate == 0
        assert (whole.slo, whole.labels, whole.current_burn_rate) == ("whole", {}, None)
        shown = command(tmp_path, "--prometheus", url).stdout
        assert "zone=east" in shown and "shop/availability/zone=west\\n" in shown  # no line of its own


USERS = "basic_auth_users:\n  ann: $2b$04$4PLyE5QflMTCl2GIPxQyteFPo8DyaEztlvV9C9iHLYCOFKLoj48iO\n"  # her password is secret


def test_behind_a_password_and_a_certificate(page: Page, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(program("openssl"), *"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext".split()),
            *("subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    web = f"{USERS}tls_server_config:\n  cert_file: {certificate}\n  key_file: {key}\n"
    page.values["resmon_runs_active"] = 0
    with prometheus(tmp_path / "server", quick_rules(tmp_path), page, web, "https") as url:
        trusted = {"RESMON_PROMETHEUS": url, "RESMON_PROMETHEUS_CA": str(certificate)}
        ann = {"RESMON_PROMETHEUS_USER": "ann", "RESMON_PROMETHEUS_PASSWORD": "secret"}
        wait_for(lambda: command(tmp_path, **trusted, **ann).returncode == 0)
        assert "resmon/training-success" in command(tmp_path, **trusted, **ann).stdout
        found = command(tmp_path, **trusted)
        assert found.returncode == 2 and "refused a request without a name (status 401" in found.stderr
        assert "Set RESMON_PROMETHEUS_USER and RESMON_PROMETHEUS_PASSWORD" in found.stderr
        found = command(tmp_path, **trusted, **ann | {"RESMON_PROMETHEUS_PASSWORD": "guess"})
        assert found.returncode == 2 and "refused the name and password (status 401" in found.stderr
        assert "guess" not in found.stderr + found.stdout
        found = command(tmp_path, RESMON_PROMETHEUS=url, **ann)
        assert (
            found.returncode == 2
            and "certificate that cannot be trusted" in found.stderr
            and "RESMON_PROMETHEUS_CA" in found.stderr
        )
        found = command(tmp_path, **trusted | {"RESMON_PROMETHEUS_CA": str(key)}, **ann)
        assert found.returncode == 2 and "holds no certificates in PEM form" in found.stderr
        inside = command(
            tmp_path, "--prometheus", url.replace("https://", "https://ann:secret@"), RESMON_PROMETHEUS_CA=str(certificate)
        )
        assert inside.returncode == 2 and "an address holds no name and password" in inside.stderr and "secret" not in inside.stderr


def test_half_a_password(tmp_path: Path) -> None:
    found = command(tmp_path, "--prometheus", "http://127.0.0.1:1", RESMON_PROMETHEUS_PASSWORD="secret")  # noqa: S106, no server has it
    assert found.returncode == 2
    assert "RESMON_PROMETHEUS_PASSWORD has no RESMON_PROMETHEUS_USER beside it" in found.stderr and "secret" not in found.stderr


def test_which_server_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is named, else the setting, else the one that Prometheus has unless told otherwise."""
    asked: list[str] = []

    def standing(server: Prometheus) -> list[Standing]:
        asked.append(server.url)
        return []

    def report(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["resmon", "slo", "report", "--json", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code

    monkeypatch.setattr("resmon.objectives.budgets.standings", standing)
    monkeypatch.delenv("RESMON_PROMETHEUS", raising=False)
    monkeypatch.chdir(tmp_path)
    report()
    (tmp_path / "resmon.toml").write_text('prometheus = "http://of-the-file:1/prefix/"\n')
    report()
    monkeypatch.setenv("RESMON_PROMETHEUS", "http://of-the-environment:2")
    report()
    report("--prometheus", "http://of-the-command:3/")
    assert asked == [
        "http://127.0.0.1:9090",
        "http://of-the-file:1/prefix",
        "http://of-the-environment:2",
        "http://of-the-command:3",
    ]


def test_a_server_without_the_rules_says_what_to_do(page: Page, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("groups: []\n")
    with prometheus(tmp_path / "server", tmp_path / "rules.yaml", page) as url:
        with pytest.raises(ServerError) as caught:
            at(url)
        assert str(caught.value).startswith(f"Prometheus at {url} has no objective. `resmon slo generate` writes the rules;")
        assert "name the file under rule_files" in str(caught.value)
        with Prometheus.of(url) as server:
            assert server.vector("vector(0.5)") == (Sample({}, 0.5),)
            assert server.vector("vector(1) / 0")[0].value == float("inf")
            assert server.vector("absent_over_time(up[1m]) == 2") == ()
            assert abs(server.skew) < 5
            for query, said in (("sum(", "parse error"), ("1", "does not speak as Prometheus' API does (ValueError('no vector'))")):
                with pytest.raises(ServerError) as caught:
                    server.vector(query)
                assert said in str(caught.value)


VECTOR = '{"status": "success", "data": {"resultType": "vector", "result": [%s]}}'


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"<html>", "that is no JSON"),
        (200, b"[" * 100_000, "that is no JSON"),
        (200, b"", "does not speak as Prometheus' API does"),
        (200, b"[]", "does not speak as Prometheus' API does"),
        (200, b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', "does not speak as Prometheus' API does"),
        (200, (VECTOR % '{"metric": {}}').encode(), "does not speak as Prometheus' API does"),
        (200, (VECTOR % '{"metric": [], "value": [0, "1"]}').encode(), "does not speak as Prometheus' API does"),
        (200, (VECTOR % '{"metric": {}, "value": [0]}').encode(), "does not speak as Prometheus' API does"),
        (200, (VECTOR % f'{{"metric": {{}}, "value": [0, {"9" * 400}]}}').encode(), "does not speak as Prometheus' API does"),
        (200, (VECTOR % "").encode(), "has no objective"),
        (400, b'{"status": "error", "error": "no such thing"}', "answered with status 400: no such thing"),
        (404, b"no", "has no /api/v1/query (status 404: no)"),
        (503, b"Service Unavailable", "answered with status 503: Service Unavailable"),
        (403, b"", "refused a request without a name (status 403)"),
        (200, b" " * ((1 << 20) + 1), "answered with more than 1 MiB"),
    ],
)
def test_an_answer_that_is_none(status: int, body: bytes, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LARGEST", 1 << 20)

    def answer(handler: BaseHTTPRequestHandler, _: int) -> None:
        try:
            reply(handler, status, body)
        except OSError:  # nobody reads all of it
            pass

    with answering(answer) as (url, _), pytest.raises(ServerError) as caught:
        at(url)
    assert url in str(caught.value) and why in str(caught.value)


def test_what_is_asked_and_what_nobody_knows() -> None:
    """A value that is no number, as the share of nothing is, is None; so is what the server does not have."""

    def answer(handler: BaseHTTPRequestHandler, count: int) -> None:
        value = {0: "0.99", 3: "NaN", 5: "-Inf"}.get(count)
        labels = {"__name__": "any", "service": "a", "slo": "b"}
        result = [] if value is None else [{"metric": labels, "value": [1.0, value]}, {"metric": {}, "value": [1.0, "7"]}]
        reply(handler, 200, {"status": "success", "data": {"resultType": "vector", "result": result}})

    with answering(answer) as (url, asked):
        assert at(url) == [Standing("a", "b", {}, 0.99)]
    assert len(asked) == len(QUERIES) + 1 and all(each.startswith("GET /api/v1/query?query=") for each in asked)


def test_nobody_there(tmp_path: Path) -> None:
    found = command(tmp_path, "--prometheus", url := f"http://127.0.0.1:{free_port()}")
    assert found.returncode == 2
    assert f"Prometheus at {url} cannot be reached" in found.stderr
    assert "--prometheus, by RESMON_PROMETHEUS or by prometheus in resmon.toml" in found.stderr


def test_a_server_that_never_answers() -> None:
    said = r"did not answer within 0\.2 s"
    with socket.create_server(("127.0.0.1", free_port())) as silent, pytest.raises(ServerError, match=said):
        at(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)


@pytest.mark.parametrize("url", ["", "here", "ftp://127.0.0.1", "http://", "http://[::1", "http://127.0.0.1:x"])
def test_an_address_that_is_none(url: str, tmp_path: Path) -> None:
    found = command(tmp_path, "--prometheus", url)
    assert found.returncode == 2 and "settings that cannot be used:\n  argument prometheus: " in found.stderr
