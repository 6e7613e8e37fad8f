"""Who may read: passwords, certificates, and what happens when they change, on an agent that serves."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import httpx
import pytest

from resmon.agent import find_or_start, runtime
from resmon.settings import Settings
from tests.agent.conftest import House, Scrape, wait_for
from tests.agent.serving import Agent, agent, trusting
from tests.certificates import Authority

PASSWORD = "correct horse: staple é"  # noqa: S105, it guards nothing
PROMETHEUS = ("prometheus", PASSWORD)


def hashed(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def replace(file: Path, text: str) -> None:
    """At once, so that an agent that looks in between finds the one before: a half-written one would be a fault of its own."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    authority.sign("server", "IP:127.0.0.1", "DNS:localhost")
    authority.sign("friend", "DNS:prometheus.example", "IP:10.0.0.1")
    authority.sign("stranger", "DNS:somebody.example")
    return authority


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """With a password, and without TLS."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "web.yml").write_text(f"basic_auth_users:\n  prometheus: {hashed(PASSWORD)}\n  dear: {hashed('dear', 10)}\n")
    with agent(folder, "--web-config", str(folder / "web.yml")) as made:
        yield made


def status(made: Agent, path: str = "/metrics", auth: tuple[str, str] | None = None, **headers: str) -> int:
    return httpx.get(made.url + path, auth=auth, headers=headers, timeout=30).status_code


def test_nothing_is_told_without_the_password(locked: Agent) -> None:
    for path in ("/", "/metrics", "/nothing", "/-/nothing"):
        answer = httpx.get(locked.url + path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="resmon", charset="UTF-8"'
        assert answer.text == "a name and a password are needed\n"
    assert status(locked, auth=PROMETHEUS) == 200
    assert httpx.head(locked.url + "/metrics").status_code == 401
    # Whoever restarts what does not answer has no password, and learns nothing of runs.
    assert [httpx.get(locked.url + path).text for path in ("/-/healthy", "/-/ready")] == [
        "resmon agent is healthy\n",
        "resmon agent is ready\n",
    ]


@pytest.mark.parametrize(
    "credentials",
    [
        b"Basic " + base64.b64encode(b"prometheus:" + PASSWORD.encode() + b"x"),
        b"Basic " + base64.b64encode(b"Prometheus:" + PASSWORD.encode()),
        b"Basic " + base64.b64encode(b":" + PASSWORD.encode()),
        b"Basic " + base64.b64encode(b"nobody:" + b"." * 5000),
        b"Basic " + base64.b64encode(b"prometheus:a\0b"),
        b"Basic " + base64.b64encode(b"prometheus"),
        b"Basic " + base64.b64encode(b"\xff\xfe:x"),
        b"Basic %%%",
        b"Basic",
        b"Bearer " + base64.b64encode(b"prometheus:" + PASSWORD.encode()),
        b"",
    ],
    ids=range(11),
)
def test_other_credentials_are_wrong(credentials: bytes, locked: Agent) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: " + credentials + b"\r\n\r\n"
    assert locked.status(request) == 401


@pytest.mark.slow
def test_who_has_been_let_in_does_not_wait_for_those_who_guess(locked: Agent) -> None:
    """And those who guess make the machine work for a fifth of a core at the most."""
    assert status(locked, auth=PROMETHEUS) == 200

    def work() -> float:
        tasks = Path(f"/proc/{locked.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    started, before = time.monotonic(), work()
    with ThreadPoolExecutor(32) as guessers:
        guesses = [guessers.submit(status, locked, auth=("dear", f"guess {i}")) for i in range(40)]
        times = []
        while not all(guess.done() for guess in guesses):
            begun = time.monotonic()
            assert status(locked, auth=PROMETHEUS) == 200
            times.append(time.monotonic() - begun)
            time.sleep(0.2)
        answers = [guess.result() for guess in guesses]
    seconds = time.monotonic() - started
    assert set(answers) == {401, 429}  # the latter where too many waited
    assert sorted(times)[len(times) // 2] < 0.25, times
    # What answering takes is in it, too.
    assert (work() - before) / seconds < 0.45
    assert locked.said.count("a wrong name or password") <= 2  # no line for each
    # The same wrong password costs nothing any more: a scraper that has it does no harm.
    begun = time.monotonic()
    assert status(locked, auth=("dear", "guess 0")) == 401
    assert time.monotonic() - begun < 1


@pytest.mark.slow
def test_a_name_that_is_not_there_takes_as_long_as_one_that_is(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{dear: {hashed('dear', 11)}}}\n")
    with agent(tmp_path, "--web-config", str(tmp_path / "web.yml")) as made:

        def seconds(name: str, i: int) -> float:
            started = time.monotonic()
            assert status(made, auth=(name, f"guess {i}")) == 401
            return time.monotonic() - started

        there = sorted(seconds("dear", i) for i in range(3))[1]
        not_there = sorted(seconds("nobody", i) for i in range(3))[1]
    assert 0.4 < there / not_there < 2.5


def test_tls_and_a_password(authority: Authority, tmp_path: Path) -> None:
    """And both as they are changed while the agent serves, also for the worse."""
    for name in ("server.pem", "server.key"):
        shutil.copy(authority.folder / name, tmp_path)
    users = f"basic_auth_users:\n  prometheus: {hashed(PASSWORD)}\n"
    tls = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
    web = tmp_path / "web.yml"
    web.write_text(tls + users)
    with agent(tmp_path, "--web-config", str(web), tls=True) as made:
        trust = trusting(authority.certificate)

        def ask(auth: tuple[str, str] | None = PROMETHEUS, path: str = "/metrics") -> int:
            return httpx.get(made.url + path, auth=auth, verify=trust, timeout=10).status_code

        assert (ask(), ask(None), ask(("prometheus", "x"))) == (200, 401, 401)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(made.url)
        with pytest.raises(httpx.HTTPError):
            httpx.get(made.url.replace("https", "http"))
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(authority.certificate)
        with warnings.catch_warnings(action="ignore"):  # that it is old
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(made.url, verify=old)
        # Where it is found: by Prometheus, by training processes and by whoever starts another.
        assert json.loads((made.runtime / runtime.TARGETS).read_text()) == [
            {"targets": [f"127.0.0.1:{made.port}"], "labels": {"__scheme__": "https"}}
        ]
        now = runtime.serving(made.runtime)
        assert now is not None
        assert (now.url, now.web_config) == (made.url, str(web))

        def shown() -> bytes | None:
            with (
                socket.create_connection(("127.0.0.1", made.port)) as plain,
                trust.wrap_socket(plain, server_hostname="localhost") as end,
            ):
                return end.getpeercert(binary_form=True)

        before = shown()
        renewed = authority.sign("renewed", "IP:127.0.0.1", "DNS:localhost")
        replace(tmp_path / "server.pem", renewed[0].read_text())  # a moment in which they do not fit together
        assert shown() == before
        wait_for(lambda: "the web configuration of before stays in use" in made.said)
        replace(tmp_path / "server.key", renewed[1].read_text())
        assert shown() != before
        # A user who is taken off the list is out at once, a file that is broken changes nothing.
        replace(web, tls + f"basic_auth_users:\n  other: {hashed('other')}\n")
        assert (ask(), ask(("other", "other"))) == (401, 200)
        replace(web, tls + "basic_auth_users:\n  prometheus: secret\n")
        assert (ask(), ask(("other", "other"))) == (401, 200)
        wait_for(lambda: "line 5, basic_auth_users.prometheus: must be a bcrypt hash" in made.said)
        replace(web, users)  # without TLS: that cannot be had any more
        assert (ask(), ask(("other", "other"))) == (401, 200)
        wait_for(lambda: "was started with tls_server_config" in made.said)
        replace(web, tls + users)
        assert (ask(), ask(("other", "other"))) == (200, 401)
        text = httpx.get(made.url + "/metrics", auth=PROMETHEUS, verify=trust).text
        assert Scrape(text).one("resmon_agent_errors_total") == 3, made.said
        assert PASSWORD not in made.said
        assert "secret" not in made.said


def test_a_clients_certificate(authority: Authority, tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    server = f"tls_server_config:\n  cert_file: {authority.folder}/server.pem\n  key_file: {authority.folder}/server.key\n"
    required = f"{server}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {authority.certificate}\n"
    replace(web, required)
    other = Authority(tmp_path / "other")
    other.sign("friend", "DNS:prometheus.example")
    with agent(tmp_path, "--web-config", str(web), tls=True) as made:

        def lets_in(name: str, folder: Path = authority.folder) -> bool:
            trust = trusting(authority.certificate)
            if name:
                trust.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
            try:
                return httpx.get(made.url + "/-/ready", verify=trust).status_code == 200
            except httpx.HTTPError:
                return False

        assert [lets_in("friend"), lets_in("stranger"), lets_in(""), lets_in("friend", other.folder)] == [True, True, False, False]
        replace(web, f"{required}  client_allowed_sans: [prometheus.example]\n")
        assert [lets_in("friend"), lets_in("stranger"), lets_in("")] == [True, False, False]
        replace(web, f"{required}  client_allowed_sans: ['10.0.0.1']\n")
        assert [lets_in("friend"), lets_in("stranger")] == [True, False]
        # An authority that is trusted no more: a context that is only added to would still know it.
        replace(web, required.replace(str(authority.certificate), str(other.certificate)))
        assert [lets_in("friend"), lets_in("friend", other.folder)] == [False, True]
        replace(web, server)
        assert lets_in("")


def test_headers_and_the_rate_are_as_the_file_says(tmp_path: Path) -> None:
    policy = "default-src 'self'"
    (tmp_path / "web.yml").write_text(
        "rate_limit: {interval: 30s, burst: 3}\n"
        f'http_server_config: {{headers: {{Content-Security-Policy: "{policy}", X-Frame-Options: sameorigin}}}}\n'
    )
    with agent(tmp_path, "--web-config", str(tmp_path / "web.yml")) as made:
        answers = [httpx.get(made.url + "/metrics") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        for answer in answers:
            assert answer.headers.get_list("content-security-policy") == [policy]
            assert answer.headers.get_list("x-frame-options") == ["sameorigin"]
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert status(made, "/-/healthy") == 200


def test_a_configuration_that_cannot_be_used_starts_nothing(house: House, port: int, tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text("basic_auth_user: {a: b}\n")
    started = house.agent(port, 60.0, "--web-config", str(tmp_path / "web.yml"))
    assert started.wait(20) == 2
    assert "basic_auth_user: there is no such key; the nearest is basic_auth_users" in " ".join(house.output(started).split())
    assert runtime.serving(house.runtime) is None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_an_agent_that_a_training_starts_serves_under_the_setting(
    house: House, port: int, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(authority.folder, tmp_path / "tls")
    tls = "tls_server_config: {cert_file: tls/server.pem, key_file: tls/server.key}\n"
    (tmp_path / "web.yml").write_text(f"# the team's\n{tls}basic_auth_users: {{prometheus: {hashed(PASSWORD)}}}\n")
    (tmp_path / "resmon.toml").write_text(f'listen = "127.0.0.1:{port}"\nweb_config = "web.yml"\nserved_names = ["box.example"]\n')
    expected = f"https://127.0.0.1:{port}"
    assert find_or_start(Settings.of()) == expected  # before the agent has told it
    trust = trusting(authority.certificate)
    wait_for(lambda: _connects(port))
    answer = httpx.get(f"{expected}/metrics", auth=PROMETHEUS, verify=trust, headers={"Host": "box.example"})
    assert answer.status_code == 200
    assert httpx.get(f"{expected}/metrics", verify=trust).status_code == 401
    assert find_or_start(Settings.of()) == expected
    assert not caplog.text
    # Whoever wants it otherwise is told that it is not.
    (tmp_path / "stricter.yml").write_text(tls)
    assert find_or_start(Settings.of(web_config="stricter.yml")) == expected
    assert "under the web configuration" in caplog.text
    assert f"not under {tmp_path / 'stricter.yml'}" in caplog.text


def test_a_training_with_a_configuration_that_is_not_there_starts_no_open_agent(
    house: House, port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from resmon.errors import AgentError

    with pytest.raises(AgentError, match=r"none\.yml cannot be read .*Correct the setting web_config"):
        find_or_start(Settings.of(listen=f"127.0.0.1:{port}", web_config=tmp_path / "none.yml"))
    assert runtime.serving(house.runtime) is None


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ("", "asks for no password: whoever reaches it can read"),
        ("basic_auth_users: {a: HASH}", "its passwords are sent in clear. Name a certificate"),
    ],
)
def test_an_agent_that_listens_beyond_this_machine_says_how_open_it_is(configuration: str, said: str, tmp_path: Path) -> None:
    options = []
    if configuration:
        (tmp_path / "web.yml").write_text(configuration.replace("HASH", hashed("x")))
        options = ["--web-config", str(tmp_path / "web.yml")]
    with agent(tmp_path, *options, listen="0.0.0.0") as made:  # noqa: S104, for a moment
        assert f"the agent listens on 0.0.0.0, port {made.port}, beyond this machine" in made.said
        assert said in made.said
        # By whatever name it is asked: it has as many as there are in the network.
        auth = ("a", "x") if configuration else None
        assert status(made, auth=auth, Host="box.example:9699") == 200
