"""A real Prometheus has the rules and scrapes made-up series; what is reported is what they say."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from resmon.errors import PrometheusError
from resmon.objectives import generation, report
from resmon.objectives.report import Server, Standing, standings
from tests.objectives.conftest import Page, prometheus, wait_for
from tests.objectives.specs import service, slo, written
from tests.ports import free_port
from tests.programs import program

OUTCOMES = ("finished", "failed", "interrupted")
GROUPED = """\
events:
  error_query: sum by (zone) (rate(bad_total[{{.window}}]))
  total_query: sum by (zone) (rate(all_total[{{.window}}]))
"""


def rules(folder: Path, *specs: Path) -> Path:
    """A rule file whose groups are evaluated each second, as no test waits for minutes."""
    path = folder / "rules.yaml"
    path.write_text(generation.make(specs or None).files[generation.RULES].replace("interval: 1m", "interval: 1s"))
    return path


def command(*arguments: str, columns: int = 120) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": str(columns), "HOME": "/"}
    return subprocess.run(
        [sys.executable, "-m", "resmon", "slo", "report", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def by_name(url: str) -> dict[str, Standing]:
    return {each.slo: each for each in standings(Server(url))}


def test_runs_that_fail_burn_the_budget_and_page(page: Page, tmp_path: Path) -> None:
    runs = [f'resmon_runs_total{{outcome="{outcome}"}}' for outcome in OUTCOMES]
    page.values |= dict.fromkeys(runs, 0.0)
    page.values["resmon_runs_active"] = 0
    with prometheus(tmp_path / "server", rules(tmp_path), page) as url:
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
        shown = command("--prometheus", url)
        assert shown.returncode == 0 and not shown.stderr
        (line,) = [line for line in shown.stdout.splitlines() if "training-success" in line]
        assert line.split() == "resmon/training-success 95 % 30 d 18 18 -1700.0 % page".split()
        (line,) = [line for line in shown.stdout.splitlines() if "convergence" in line]
        assert line.split() == "resmon/convergence 80 % 30 d – – –".split()
        printed = json.loads(command("--prometheus", url, "--json").stdout)
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
    except PrometheusError:  # it has not evaluated the rules yet
        return {}
    return found if len(found) == 5 else {}


def test_what_an_objective_tells_apart_is_told_apart(page: Page, tmp_path: Path) -> None:
    spec = written(tmp_path, service(slo(sli=GROUPED), slo("whole", "99"), more="labels: {team: a}\n"))
    series = [f'{name}_total{{zone="{zone}"}}' for name in ("bad", "all") for zone in ("east", "west\\n")]
    page.values |= dict.fromkeys(series, 0.0)
    with prometheus(tmp_path / "server", rules(tmp_path, spec), page) as url:
        wait_for(lambda: page.scrapes > 2)
        page.values |= dict(zip(series, (50.0, 0.0, 100.0, 100.0), strict=True))

        def found() -> list[Standing] | None:
            try:
                made = standings(Server(url))
            except PrometheusError:
                return None
            return made if len(made) == 3 and made[0].firing else None

        east, west, whole = wait_for(found)
        assert (east.labels, east.firing, east.objective) == ({"zone": "east"}, ("page",), 0.999)
        assert (west.labels, west.firing, west.budget_left) == ({"zone": "west\n"}, (), 1.0)
        assert east.current_burn_rate == pytest.approx(500) and west.current_burn_rate == 0
        assert (whole.slo, whole.labels, whole.current_burn_rate) == ("whole", {}, None)
        shown = command("--prometheus", url).stdout
        assert "zone=east" in shown and "'shop/availability/zone=west\\n'" in shown  # no line of its own


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
    password, wrong = tmp_path / "password", tmp_path / "wrong"
    password.write_text("secret\n")
    wrong.write_text("guess")
    page.values["resmon_runs_active"] = 0
    with prometheus(tmp_path / "server", rules(tmp_path), page, web, "https") as url:
        there = ["--prometheus", url, "--ca", str(certificate)]
        known = [*there, "--user", "ann", "--password-file", str(password)]
        wait_for(lambda: command(*known).returncode == 0)
        assert "resmon/training-success" in command(*known).stdout
        for refused in (there, [*there, "--user", "ann", "--password-file", str(wrong)]):
            found = command(*refused)
            assert found.returncode == 2 and "refuses (status 401); --user and --password-file say who asks" in found.stderr
        found = command("--prometheus", url)
        assert found.returncode == 2 and "Its certificate is not trusted; --ca FILE names who signed it." in found.stderr
        found = command("--prometheus", url.replace("https://", "https://ann:secret@"), "--ca", str(password))
        assert found.returncode == 2 and "holds no certificates" in found.stderr
        inside = command("--prometheus", url.replace("https://", "https://ann:secret@"), "--ca", str(certificate))
        assert inside.returncode == 0
        inside = command("--prometheus", url.replace("https://", "https://ann:guess@"), "--ca", str(certificate))
        assert inside.returncode == 2 and "guess" not in inside.stderr


def test_a_server_without_the_rules_says_what_to_do(page: Page, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("groups: []\n")
    with prometheus(tmp_path / "server", tmp_path / "rules.yaml", page) as url, pytest.raises(PrometheusError) as caught:
        standings(Server(url))
    assert "has no objective. `resmon slo generate` writes the rules; name the file under rule_files" in str(caught.value)


class Answer:
    """A server that is none: it answers everything with one thing."""

    def __init__(self, status: int, body: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def answer(request: pytest.FixtureRequest) -> Iterator[Answer]:
    made = Answer(*request.param)
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((200, b"<html>"), "does not answer as Prometheus does"),
        ((200, b"[" * 100_000), "does not answer as Prometheus does"),
        ((404, b"no"), "does not answer as Prometheus does (status 404, 'no')"),
        ((200, b'{"status": "success", "data": {"result": [{"metric": {}}]}}'), "does not answer as Prometheus does"),
        ((200, b'{"status": "success", "data": {"result": []}}'), "has no objective"),
        ((400, b'{"status": "error", "error": "no such thing"}'), "cannot answer slo:objective:ratio ('no such thing')"),
        ((503, b"Service Unavailable"), "cannot answer now (status 503, 'Service Unavailable'). Is it still starting?"),
        ((403, b""), "refuses (status 403)"),
        ((200, b" " * (report.LARGEST + 1)), "gives more than"),
    ],
    indirect=["answer"],
)
def test_an_answer_that_is_none(answer: Answer, why: str) -> None:
    with pytest.raises(PrometheusError) as caught:
        standings(Server(answer.url))
    assert str(caught.value).startswith(answer.url) and why in str(caught.value)


def test_nobody_there() -> None:
    found = command("--prometheus", url := f"http://127.0.0.1:{free_port()}")
    assert found.returncode == 2
    assert f"{url} cannot be reached" in found.stderr and "--prometheus names another" in found.stderr


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", free_port())) as silent, pytest.raises(PrometheusError, match="does not answer within"):
        standings(Server(f"http://127.0.0.1:{silent.getsockname()[1]}"))


@pytest.mark.parametrize("url", ["", "here", "ftp://127.0.0.1", "http://", "http://[::1", "http://127.0.0.1:x"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(PrometheusError, match="is no address"):
        standings(Server(url))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--user", "ann"], "go together"), (["--user", "ann", "--password-file", "/missing"], "cannot be read")],
)
def test_half_a_password(arguments: list[str], why: str) -> None:
    found = command(*arguments)
    assert found.returncode == 2 and why in found.stderr
