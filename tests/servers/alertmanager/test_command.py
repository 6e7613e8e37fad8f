"""`resmon silence` as a person types it, against the real Alertmanager."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resmon.cli import main
from resmon.servers.alertmanager import Alert, Alertmanager, Matcher
from tests.ports import free_port
from tests.servers.alertmanager.servers import Server


class Said:
    """What one command printed, and its exit status."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, " ".join(err.split())

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def silence(alertmanager: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RESMON_ALERTMANAGER", alertmanager.url)

    def run(*arguments: str) -> Said:
        monkeypatch.setattr("sys.argv", ["resmon", "silence", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Said(int(end.value.code or 0), *capsys.readouterr())

    return run


def test_from_the_first_to_the_last(silence: Any, client: Alertmanager) -> None:
    client.post([Alert({"alertname": "ResmonDrift", "model": "command", "run": run}) for run in ("a", "b")])
    said = silence("--model", "command", "--for", "2h", "--comment", "replanned learning rate")
    assert said.status == 0, said.err
    assert said.out.startswith('model="command" is silenced for ') and "Of alerts that are there now it covers 2." in said.out
    (made,) = client.silences(Matcher("model", "command"))
    assert f"resmon silence expire {made.id}" in said.out

    listed = silence("list", "--model", "command")
    assert (
        made.id in listed.out and "active" in listed.out and "replanned learning rate" in listed.out and made.author in listed.out
    )
    (row,) = silence("list", "-m", "command", "--json").json
    assert row["matchers"] == ['model="command"'] and row["state"] == "active"

    assert "is silenced until" in silence("extend", made.id, "--for", "1d12h").out
    assert timedelta(hours=36, seconds=-5) < client.silence(made.id).ends - datetime.now(UTC) <= timedelta(hours=36)
    assert "has not been silenced any more" in silence("expire", made.id).out
    assert silence("list", "--model", "command").out == "nothing is silenced\n"
    assert silence("list", "--model", "command", "--expired", "--json").json[0]["state"] == "expired"


def test_every_way_to_name_what_is_silenced(silence: Any) -> None:
    said = silence(
        *["add", "--run", "r", "-m", "m", "-b", "h.0", "-a", "ResmonDeadBranch", "--matcher", 'rank!~"[1-9]"', "--matcher", "x=y"],
        *["--for", "30m", "-c", "why", "--author", "me", "--json"],
    )
    assert set(said.json["matchers"]) == {
        'run="r"',
        'model="m"',
        'block="h.0"',
        'alertname="ResmonDeadBranch"',
        'rank!~"[1-9]"',
        'x="y"',
    }
    assert (said.json["author"], said.json["alerts"], said.json["state"]) == ("me", 0, "active")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--for", "2h", "--comment", "why"], "names nothing, so it would match every alert"),
        (["--matcher", 'run=~".+"', "--for", "2h", "--comment", "why"], "would match every alert"),
        (["--matcher", "severity=ticket", "--for", "2h", "--comment", "why"], "all of a severity"),
        (["--run", "a"], "add needs --for; add needs --comment"),
        (["--run", "a", "--for", "2 hours", "--comment", "why"], "must be a duration such as 30m, 2h or 1d12h (got '2 hours')"),
        (["--run", "a", "--for", "60d", "--comment", "why"], "more than 0s and at most 30d, not 60d"),
        (["--run", "a", "--for", "0s", "--comment", "why"], "more than 0s"),
        (["--matcher", "run", "--for", "2h", "--comment", "why"], "'run' is no matcher; write LABEL=VALUE"),
        (["extend", "--run", "a"], "extend needs an ID; extend needs --for; extend takes an ID and no matchers"),
        (["expire", "nonsense"], "'nonsense' is no silence's id"),
        (["expire", "00000000-0000-0000-0000-000000000000"], "there is no silence 0000"),
        (["list", "--for", "2h"], "list takes no --for"),
        (["list", "--alertmanager", "http://me:secret@host"], "they are set in the environment"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(
    silence: Any, arguments: list[str], told: str, client: Alertmanager
) -> None:
    before = client.silences()
    said = silence(*arguments)
    assert said.status == 2 and said.out == ""
    assert told in said.err and "secret" not in said.err
    assert client.silences() == before


def test_all_that_is_wrong_is_told_at_once(silence: Any) -> None:
    said = silence("--matcher", "run", "--matcher", "=x", "--for", "2 hours", "--alertmanager", "here")
    assert said.status == 2
    wanted = ["must be http://HOST:PORT", "'run' is no matcher", "'=x' is no matcher", "add needs --comment", "such as 30m, 2h"]
    assert [each for each in wanted if each not in said.err] == [], said.err
    assert "would match every alert" not in said.err  # what cannot be read may have named something
    said = silence("--matcher", "severity=page", "--for", "60d")
    assert said.err.count("resmon:") == 1
    assert "add needs --comment" in said.err and "all of a severity" in said.err and "at most 30d" in said.err
    assert "no comment" not in said.err  # that is told once


def test_one_that_is_down(silence: Any) -> None:
    said = silence("list", "--alertmanager", f"http://127.0.0.1:{free_port()}")
    assert said.status == 2 and "cannot be reached" in said.err and "Is it running?" in said.err


def test_clocks_that_differ_are_told(silence: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    real = time.time
    monkeypatch.setattr("resmon.servers.connection.time.time", lambda: real() - 7200)
    said = silence("--run", "skewed", "--for", "10m", "--comment", "why")
    assert said.status == 0 and "is silenced for 10m" in said.out.replace("9m59s", "10m")
    assert "Alertmanager's clock is at least" in said.out and "ahead of this machine's" in said.out
