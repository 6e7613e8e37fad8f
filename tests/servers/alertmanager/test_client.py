"""The client against the real Alertmanager, and against servers that are none or behave badly."""

from __future__ import annotations

import email.utils
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmon.errors import ConfigurationError, ServerError
from resmon.servers.alertmanager import (
    Alert,
    AlertGroup,
    Alertmanager,
    KnownAlert,
    Matcher,
    Silence,
    Status,
    default_author,
    skew_sentence,
)
from resmon.servers.connection import Connection
from tests.ports import free_port
from tests.servers.alertmanager.servers import SILENT, Server, answering, forward, reply, running
from tests.waiting import wait_for

# "secret", by bcrypt with cost 4.
AUTHENTICATED = "basic_auth_users:\n  resmon: $2b$04$iJ30xA5m0XFwUHJYWXcQwe7UFT7v4EWchb1IsGE2s9o1orYy7IC6K\n"


def named(run: str) -> list[Matcher]:
    return [Matcher("run", run)]


# -- the real one -------------------------------------------------------------------------------------------------------------


def test_the_life_of_a_silence(client: Alertmanager) -> None:
    before = datetime.now(UTC)
    made = client.create(named("life"), "2h", "  new learning rate ", author="me@here")
    assert made.state == "active"
    assert (made.author, made.comment, list(made.matchers)) == ("me@here", "new learning rate", named("life"))
    assert before - timedelta(seconds=1) < made.starts < datetime.now(UTC)
    assert timedelta(hours=2, seconds=-2) < made.ends - made.starts <= timedelta(hours=2)
    assert client.silence(made.id) == made
    assert client.silences(Matcher("run", "life")) == (made,)
    assert client.silences(Matcher("run", "other")) == ()

    longer = client.extend(made.id, "3h")
    assert longer.id == made.id and longer.starts == made.starts
    assert timedelta(hours=3, seconds=-2) < longer.ends - datetime.now(UTC) <= timedelta(hours=3)
    shorter = client.extend(made.id, 60)
    assert shorter.id == made.id and shorter.ends < longer.ends

    over = client.expire(made.id)
    assert over.state == "expired" and over.ends <= datetime.now(UTC)
    assert client.expire(made.id) == over
    with pytest.raises(ConfigurationError, match=r"was over at .* UTC\. Make a new one"):
        client.extend(made.id, "1h")


def test_a_silence_that_begins_later_is_pending(client: Alertmanager) -> None:
    starts = datetime.now(UTC) + timedelta(hours=5)
    made = client.create(named("later"), "1h", "night shift", starts=starts)
    assert made.state == "pending"
    assert abs(made.starts - starts) < timedelta(milliseconds=2)
    assert made.ends - made.starts == timedelta(hours=1)
    assert made.author == default_author() and "@" in made.author
    moved = client.extend(made.id, "2h")
    assert (moved.state, moved.ends - moved.starts) == ("pending", timedelta(hours=2))


def test_other_matchers_make_another_silence(client: Alertmanager) -> None:
    made = client.create([*named("matchers"), Matcher("block", "h[.]\\d+", True), Matcher("x", "y", is_equal=False)], 600, "why")
    assert {str(each) for each in made.matchers} == {'run="matchers"', 'block=~"h[.]\\\\d+"', 'x!="y"'}
    other = client.update(replace(made, matchers=tuple(named("matchers"))))
    assert other.id != made.id
    assert client.silence(made.id).state == "expired"


def test_alerts_groups_and_what_is_silenced(client: Alertmanager) -> None:
    client.create(named("quiet"), "10m", "why")
    ends = datetime.now(UTC) + timedelta(minutes=5)
    labels = {"alertname": "Loud", "model": "net"}
    client.post(
        [Alert(labels | {"run": "quiet"}, {"summary": "é"}, ends=ends, url="http://here"), Alert(labels | {"run": "heard"})]
    )
    loud = Matcher("alertname", "Loud")
    by_run = {alert.labels["run"]: alert for alert in client.alerts(loud)}
    assert by_run["quiet"].annotations == {"summary": "é"}
    assert abs(by_run["quiet"].ends - ends) < timedelta(milliseconds=2)
    assert by_run["heard"].receivers == ("nobody",)
    assert len(by_run["heard"].fingerprint) == 16
    assert by_run["heard"].inhibited == by_run["heard"].silenced == ()
    (group,) = client.groups(loud)
    assert (group.labels, group.receiver, len(group.alerts)) == ({"alertname": "Loud"}, "nobody", 2)
    # An alert is marked as silenced when its group is looked at, some time after it came.
    until = time.monotonic() + 40
    while not (found := client.alerts(Matcher("run", "quiet"))[0]).silenced:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert found.state == "suppressed"
    assert [alert.labels["run"] for alert in client.alerts(loud, silenced=False)] == ["heard"]
    assert client.alerts(loud, receiver="some.*") == ()
    assert client.groups(loud, receiver="some.*") == ()
    client.post([Alert(labels | {"run": "heard"}, ends=datetime.now(UTC) - timedelta(seconds=1))])
    assert "heard" not in {alert.labels["run"] for alert in client.alerts(loud)}


def test_the_server_itself(client: Alertmanager) -> None:
    status = client.status()
    assert status.version.startswith("0.") and (status.cluster, status.peers) == ("disabled", 0)
    assert status.started < datetime.now(UTC) and "receiver: nobody" in status.configuration
    assert client.receivers() == ("nobody",)
    assert client.skew == 0


def test_what_is_wrong_with_some_alerts_is_said_and_the_others_are_taken(client: Alertmanager) -> None:
    wrong = [Alert({}), Alert({"a b": "c"}), Alert({"alertname": "Right", "run": "part"})]
    with pytest.raises(ServerError, match=r"at least one label pair required.*a b.* 3 alerts .* the others it has taken") as error:
        client.post(wrong)
    assert error.value.status == 400 and "invalid name" in error.value.said and not error.value.passing
    assert [alert.labels["run"] for alert in client.alerts(Matcher("alertname", "Right"))] == ["part"]


def test_what_the_server_refuses_is_told_in_its_words(client: Alertmanager) -> None:
    # An expression that Python takes and the server's language has not.
    with pytest.raises(ServerError, match=r"status 400: .*invalid regular expression.*invalid or unsupported Perl syntax"):
        client.create([Matcher("run", "(?=a)ab", True)], "1h", "why")
    made = client.create(named("backwards"), "1h", "why")
    with pytest.raises(ServerError, match="start time must be before end time") as error:
        client.update(replace(made, ends=made.starts - timedelta(hours=1)))
    assert (error.value.status, error.value.uncertain, error.value.passing) == (400, False, False)


def test_what_can_be_refused_here_is_not_sent() -> None:
    with Alertmanager.of([f"http://127.0.0.1:{free_port()}"]) as nobody:
        with pytest.raises(ConfigurationError, match="every alert"):
            nobody.create([Matcher("run", ".+", True)], "1h", "why")
        with pytest.raises(ConfigurationError, match="at most 30d"):
            nobody.create(named("a"), "31d", "why")
        with pytest.raises(ConfigurationError, match="no silence's id"):
            nobody.expire("../../-/reload")
        with pytest.raises(ConfigurationError, match="no time zone"):
            nobody.post([Alert({"a": "b"}, starts=datetime(2026, 1, 1))])


def test_an_id_that_there_is_not(client: Alertmanager) -> None:
    with pytest.raises(ServerError, match=r"there is no silence 0000.*resmon silence list"):
        client.expire("00000000-0000-0000-0000-000000000000")


def test_a_prefix_in_the_address(tmp_path: Path) -> None:
    with running(tmp_path, SILENT, prefix="/watch") as server:
        with Alertmanager.of([server.url + "/"]) as client:
            assert client.create(named("a"), "1h", "why").state == "active"
        with (
            Alertmanager.of([server.url.removesuffix("/watch")]) as client,
            pytest.raises(ServerError, match=r"has no /api/v2/status \(status 404"),
        ):
            client.status()


def test_a_member_that_is_down_is_passed_by(alertmanager: Server) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with Alertmanager.of([nobody, alertmanager.url], attempts=1) as client:
        assert client.create(named("member"), "1h", "why").state == "active"
        assert client.receivers() == ("nobody",)
        client.post([Alert({"alertname": "Member"})])
    with Alertmanager.of([nobody, nobody], attempts=1) as client, pytest.raises(ServerError, match="cannot be reached"):
        client.post([Alert({"alertname": "Member"})])


def test_the_members_of_a_cluster_are_one(tmp_path: Path) -> None:
    """A silence made at one is prolonged and ended at the other when the first is gone."""
    ports = free_port(), free_port()
    clusters = [
        (f"--cluster.listen-address=127.0.0.1:{mine}", f"--cluster.peer=127.0.0.1:{other}", "--cluster.gossip-interval=50ms")
        for mine, other in (ports, ports[::-1])
    ]
    with (
        running(tmp_path / "a", cluster=clusters[0]) as first,
        running(tmp_path / "b", cluster=clusters[1]) as second,
        Alertmanager.of([first.url, second.url], attempts=1) as client,
        Alertmanager.of([second.url]) as at_second,
    ):
        wait_for(lambda: at_second.status().peers == 2 and client.status().peers == 2)
        client.post([Alert({"alertname": "Cluster"})])
        assert len(at_second.alerts()) == 1  # handed to both
        made = client.create(named("cluster"), "1h", "why")
        wait_for(lambda: at_second.silences())
        first.stop()
        longer = client.extend(made.id, "2h")
        assert longer.id == made.id and longer.ends - made.ends > timedelta(minutes=59)
        assert client.expire(made.id).state == "expired"


def test_it_comes_back_while_one_asks(tmp_path: Path) -> None:
    with running(tmp_path) as server, Alertmanager.of([server.url]) as client:
        made = client.create(named("back"), "1h", "why")
        server.stop()
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                server.start()

        with Alertmanager.of([server.url], sleep=sleep) as patient:
            # It keeps silences for those who ask it to write them down every so often; here it was killed.
            again = patient.create(named("back"), "1h", "why")
        assert again.state == "active" and again.id != made.id
        assert len(pauses) == 2 and 0.1 < pauses[0] < pauses[1] < 0.6


# -- who asks, and through what -----------------------------------------------------------------------------------------------


def test_basic_authentication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = tmp_path / "web.yml"
    web.write_text(AUTHENTICATED)
    with running(tmp_path, SILENT, f"--web.config.file={web}") as server:
        with (
            Alertmanager.of([server.url]) as client,
            pytest.raises(ServerError, match=r"refused a request without a name .*401") as no,
        ):
            client.status()
        assert "RESMON_ALERTMANAGER_USER and RESMON_ALERTMANAGER_PASSWORD" in str(no.value)
        monkeypatch.setenv("RESMON_ALERTMANAGER_USER", "resmon")
        monkeypatch.setenv("RESMON_ALERTMANAGER_PASSWORD", "wr0ng")
        with Alertmanager.of([server.url]) as client, pytest.raises(ServerError, match="refused the name and password") as no:
            client.status()
        assert "wr0ng" not in str(no.value)
        monkeypatch.setenv("RESMON_ALERTMANAGER_PASSWORD", "secret")
        with Alertmanager.of([server.url]) as client:
            assert client.create(named("a"), "1h", "why").state == "active"


def test_a_bearer_token_is_sent(alertmanager: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler, _: int) -> None:
        seen.append(handler.headers.get("Authorization"))
        reply(handler, *forward(handler, alertmanager.url))

    monkeypatch.setenv("RESMON_ALERTMANAGER_TOKEN", "t0ken")
    with answering(answer) as (url, _), Alertmanager.of([url]) as client:
        client.status()
    assert seen == ["Bearer t0ken"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"TOKEN": "a", "USER": "b", "PASSWORD": "c"}, "TOKEN and RESMON_ALERTMANAGER_USER are two ways"),
        (
            {"PASSWORD": "c", "KEY": "/none"},
            "PASSWORD has no RESMON_ALERTMANAGER_USER beside it; .*KEY has no .*there is no file /none",
        ),
        ({"CA": "/none"}, "CA: there is no file /none"),
        ({"TOKEN": "a\n"}, "TOKEN holds what cannot be sent"),
    ],
)
def test_credentials_that_cannot_be(given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"RESMON_ALERTMANAGER_{name}", value)
    with pytest.raises(ConfigurationError, match=said):
        Alertmanager.of(["http://127.0.0.1:1"])


def openssl(folder: Path, *arguments: str) -> None:
    from tests.programs import program

    subprocess.run([program("openssl"), *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and of a client that it signed."""
    folder = tmp_path_factory.mktemp("certificates")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    openssl(folder, "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name in ("server", "client"):
        signed = [
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=CA:FALSE",
        ]
        openssl(folder, "req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *signed)
    return folder


def test_tls_and_a_client_certificate(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = tmp_path / "web.yml"
    web.write_text(
        f"tls_server_config:\n  cert_file: {certificates}/server.pem\n  key_file: {certificates}/server.key\n"
        f"  client_ca_file: {certificates}/ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n"
    )
    with running(tmp_path, SILENT, f"--web.config.file={web}", scheme="https") as server:

        def status() -> str:
            with Alertmanager.of([server.url], attempts=1) as client:
                return client.status().version

        with pytest.raises(ServerError, match=r"certificate that cannot be trusted.*RESMON_ALERTMANAGER_CA"):
            status()
        monkeypatch.setenv("RESMON_ALERTMANAGER_CA", str(certificates / "ca.pem"))
        with pytest.raises(
            ServerError, match=r"cannot agree .* asks for a client's certificate, name its files in RESMON_ALERTMANAGER_CERT"
        ):
            status()
        monkeypatch.setenv("RESMON_ALERTMANAGER_CERTIFICATE", str(certificates / "client.pem"))
        monkeypatch.setenv("RESMON_ALERTMANAGER_KEY", str(certificates / "server.key"))
        with pytest.raises(ConfigurationError, match="do not fit together"):
            status()
        monkeypatch.setenv("RESMON_ALERTMANAGER_KEY", str(certificates / "client.key"))
        assert status().startswith("0.")
        monkeypatch.setenv("RESMON_ALERTMANAGER_CA", str(certificates / "client.key"))
        with pytest.raises(ConfigurationError, match="holds no certificates"):
            status()
        with (
            Alertmanager.of([server.url.replace("https", "http")], attempts=1) as client,
            pytest.raises((ServerError, ConfigurationError), match=r"https://|no certificates"),
        ):
            client.status()


def test_tls_where_there_is_none(alertmanager: Server) -> None:
    with (
        Alertmanager.of([alertmanager.url.replace("http", "https")], attempts=1) as client,
        pytest.raises(ServerError, match=r"does not speak TLS\. Write http://"),
    ):
        client.status()


# -- servers that are down, slow, strange or of another time ------------------------------------------------------------------


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    pauses: list[float] = []
    with Alertmanager.of([url], sleep=pauses.append) as client, pytest.raises(ServerError) as error:
        client.create(named("a"), "1h", "why")
    assert f"Alertmanager at {url} cannot be reached" in str(error.value)
    assert "--alertmanager" in str(error.value) and "RESMON_ALERTMANAGER" in str(error.value)
    assert (error.value.status, error.value.uncertain, error.value.passing) == (None, False, True)
    assert len(pauses) == 3 and sum(pauses) < 2


def test_one_that_hangs() -> None:
    """It takes the connection and never says a word."""
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        began = time.monotonic()
        with (
            Alertmanager.of([url], timeout=0.3, attempts=2) as client,
            pytest.raises(ServerError, match=r"did not answer within 0.3 s") as error,
        ):
            client.silences()
        assert time.monotonic() - began < 3
        assert error.value.passing and not error.value.uncertain


def test_one_that_never_comes_to_an_end() -> None:
    def drop(handler: BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    began = time.monotonic()
    with (
        answering(drop) as (url, _),
        Alertmanager.of([url], timeout=0.3, attempts=1) as client,
        pytest.raises(ServerError, match=r"had not said all within 0.6 s"),
    ):
        client.silences()
    assert time.monotonic() - began < 8


@contextmanager
def lossy(alertmanager: Server, *, lost: int, answer: int | None) -> Iterator[tuple[str, list[str]]]:
    """Before the real server, and loses the answers to the first `lost` silences: none comes, or the status `answer`."""
    posts = [0]

    def handle(handler: BaseHTTPRequestHandler, _: int) -> None:
        status, body = forward(handler, alertmanager.url)
        if handler.command == "POST":
            posts[0] += 1
            if posts[0] <= lost:
                if answer is None:
                    time.sleep(1.0)
                    handler.close_connection = True
                else:
                    reply(handler, answer, b"<html>gateway")
                return
        reply(handler, status, body)

    with answering(handle) as (url, asked):
        yield url, asked


@pytest.mark.parametrize("answer", [502, None])
def test_a_silence_is_made_once_though_its_answer_was_lost(alertmanager: Server, client: Alertmanager, answer: int | None) -> None:
    run = f"lost-{answer}"
    with lossy(alertmanager, lost=1, answer=answer) as (url, asked), Alertmanager.of([url], timeout=0.5) as careful:
        made = careful.create(named(run), "1h", "why")
    assert [each.id for each in client.silences(Matcher("run", run))] == [made.id]
    assert sum(each.startswith("POST") for each in asked) == 1


def test_a_silence_that_was_not_made_is_tried_again(alertmanager: Server, client: Alertmanager) -> None:
    def handle(handler: BaseHTTPRequestHandler, _: int) -> None:
        if handler.command == "POST" and sum(each.startswith("POST") for each in asked) == 1:
            handler.rfile.read(int(handler.headers["Content-Length"]))
            reply(handler, 503)
        else:
            reply(handler, *forward(handler, alertmanager.url))

    with answering(handle) as (url, asked), Alertmanager.of([url]) as careful:
        made = careful.create(named("again"), "1h", "why")
    assert [each.id for each in client.silences(Matcher("run", "again"))] == [made.id]
    assert sum(each.startswith("POST") for each in asked) == 2


def test_where_nobody_knows_whether_it_was_made_that_is_said(alertmanager: Server, client: Alertmanager) -> None:
    """It neither answered nor has the silence yet: one more could become a second."""

    def handle(handler: BaseHTTPRequestHandler, _: int) -> None:
        if handler.command == "POST":
            time.sleep(1.0)
            handler.close_connection = True
        else:
            reply(handler, *forward(handler, alertmanager.url))

    with (
        answering(handle) as (url, asked),
        Alertmanager.of([url], timeout=0.3) as careful,
        pytest.raises(ServerError, match=r"did not answer .* is not known: look with `resmon silence list` first") as error,
    ):
        careful.create(named("doubt"), "1h", "why")
    assert error.value.uncertain
    assert sum(each.startswith("POST") for each in asked) == 1
    assert client.silences(Matcher("run", "doubt")) == ()


@pytest.mark.parametrize("hours", [-3, 0, 3])
def test_clocks_that_differ(alertmanager: Server, client: Alertmanager, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is `hours` wrong: the silence begins at once and lasts as long as it was to, by the server's."""
    import resmon.servers.connection

    real = time.time

    class Wrong:
        monotonic = staticmethod(time.monotonic)
        time = staticmethod(lambda: real() + 3600 * hours)

    monkeypatch.setattr(resmon.servers.connection, "time", Wrong)
    run = f"clock-{hours}"
    with Alertmanager.of([alertmanager.url]) as wrong:
        made = wrong.create(named(run), "10m", "why")
        assert made.state == "active"
        assert timedelta(minutes=10, seconds=-2) < made.ends - made.starts <= timedelta(minutes=10)
        assert abs(wrong.skew + 3600 * hours) < 3
        later = wrong.extend(made.id, "20m")
    assert later.id == made.id
    assert abs(later.ends - datetime.now(UTC) - timedelta(minutes=20)) < timedelta(seconds=3)
    said = skew_sentence(wrong.skew)
    assert ("behind" in said, "ahead of" in said) == (hours > 0, hours < 0), said
    assert not hours or "2h59m5" in said or "3h" in said


def test_one_without_a_date_is_taken_to_have_our_time(alertmanager: Server) -> None:
    def handle(handler: BaseHTTPRequestHandler, _: int) -> None:
        status, body = forward(handler, alertmanager.url)
        handler.log_request = lambda *_: None  # type: ignore[method-assign]
        handler.send_response_only(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with answering(handle) as (url, _), Alertmanager.of([url]) as client:
        assert client.create(named("dateless"), "10m", "why").state == "active"
        assert client.skew == 0


PROMETHEUS = {"status": "success", "data": []}


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (200, b"<html>hello", "is no Alertmanager: it sent text/x that is no JSON"),
        (200, PROMETHEUS, "does not speak as Alertmanager's API v2 does: that is no list. Is the address right"),
        (200, [{"id": 3}], "does not speak as Alertmanager's API v2 does: there is no matchers"),
        (200, b"[" * 100_000, "is no Alertmanager"),
        (302, None, r"sends on to https://login/\?x \(status 302\)"),
        (404, b"404 page not found", r"has no /api/v2/silences \(status 404: 404 page not found\)"),
        (403, b"<html>", r"refused a request without a name \(status 403\)"),
        (400, b"Client sent an HTTP request to an HTTPS server.\n", "speaks TLS. Write https://"),
        (418, {"message": "\x1b[31mI am a teapot"}, r"answered with status 418: \\x1b\[31mI am a teapot"),
        (500, "x" * 10_000, r"answered with status 500: x{499}…\."),
    ],
)
def test_what_is_no_alertmanager(status: int, content: Any, said: str) -> None:
    def handle(handler: BaseHTTPRequestHandler, _: int) -> None:
        reply(handler, status, content, Content_Type="text/x", Location="https://login/?x")

    with (
        answering(handle) as (url, _),
        Alertmanager.of([url], attempts=1) as client,
        pytest.raises(ServerError, match=said) as error,
    ):
        client.silences()
    assert url in str(error.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.sampled_from(["", "a", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "active"]),
    lambda each: (
        st.lists(each, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "id matchers status startsAt endsAt updatedAt createdBy comment state labels annotations fingerprint receivers "
                "name silencedBy inhibitedBy alerts receiver cluster config versionInfo original version uptime peers value "
                "isRegex".split()
            ),
            each,
            max_size=8,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_whatever_a_server_sends_is_a_value_or_a_sentence(content: Any) -> None:
    for make in (Silence.of, KnownAlert.of, AlertGroup.of, Status.of):
        with suppress(ValueError):
            make(content)


def test_a_server_that_asks_to_wait_is_waited_for_but_not_for_ever() -> None:
    def handle(handler: BaseHTTPRequestHandler, before: int) -> None:
        reply(handler, *((503, None) if before < 2 else (200, [])), Retry_After="2" if before == 0 else "900")

    pauses: list[float] = []
    with answering(handle) as (url, asked), Alertmanager.of([url], sleep=pauses.append) as client:
        assert client.silences() == ()
    assert len(asked) == 3 and pauses == [2.0, 5.0]


def test_an_answer_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resmon.servers.connection.LARGEST", 1 << 20)

    def handle(handler: BaseHTTPRequestHandler, _: int) -> None:
        try:
            reply(handler, 200, b"[" + b" " * (4 << 20) + b"]")
        except OSError:
            pass

    with answering(handle) as (url, _), Alertmanager.of([url]) as client, pytest.raises(ServerError, match="more than 1 MiB"):
        client.silences()


def test_no_server_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no Alertmanager is named.*--alertmanager.*resmon.toml"):
        Alertmanager.of([])


def test_a_date_says_how_wrong_a_clock_is_at_the_least() -> None:
    from resmon.servers.connection import _clock

    class Response:
        headers = {"Date": email.utils.formatdate(time.time() + 100, usegmt=True)}  # noqa: RUF012

    clock = _clock(Response(), time.time(), time.monotonic())  # type: ignore[arg-type]
    assert 98 < clock.ahead <= 100
    assert abs((clock.now() - datetime.now(UTC)).total_seconds() - 100) < 1.5
    Response.headers = {"Date": "Fri, 31 Dec 9999 23:59:59 GMT"}
    assert _clock(Response(), time.time(), time.monotonic()).ahead == 0  # type: ignore[arg-type]
    Response.headers = {"Date": "yesterday"}
    assert _clock(Response(), time.time(), time.monotonic()).ahead == 0  # type: ignore[arg-type]


def test_a_password_is_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESMON_ALERTMANAGER_USER", "me")
    monkeypatch.setenv("RESMON_ALERTMANAGER_PASSWORD", "s3cret")
    from resmon.servers.connection import Access

    access = Access.of("alertmanager", ["http://127.0.0.1:1"])
    assert "s3cret" not in repr(access) and json.dumps({"user": access.user})
    Connection(access).close()
