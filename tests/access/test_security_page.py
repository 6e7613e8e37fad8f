"""docs/security.md: its commands and files do what the page says, and its figures are those of the code."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import bcrypt
import httpx
import pytest

from resmon.access import connection, door, listener, pace, passwords, web_config
from resmon.agent import scrapes, server
from tests.agent.conftest import ROOT
from tests.agent.serving import agent, trusting
from tests.programs import program

PAGE = (ROOT / "docs" / "security.md").read_text()


def block(language: str, begins: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if text.startswith(begins)]
    assert len(found) == 1
    return found[0]


def typed(command: list[str], answer: str) -> str:
    """What a command prints that asks for a password on its terminal."""
    leader, follower = pty.openpty()
    # In a session of its own, which has no other terminal.
    process = subprocess.Popen(command, stdin=follower, stdout=subprocess.PIPE, stderr=follower, start_new_session=True)
    os.close(follower)
    shown = b""
    while b"assword" not in shown:  # what is typed before it asks is thrown away
        shown += os.read(leader, 1024)
    os.write(leader, f"{answer}\n".encode())
    output, _ = process.communicate(timeout=30)
    os.close(leader)
    return output.decode()


def test_the_commands_make_what_an_agent_serves_under(tmp_path: Path) -> None:
    program("openssl")
    subprocess.run(shlex.split(block("sh", "openssl")), cwd=tmp_path, check=True, capture_output=True)
    python, *arguments = shlex.split(block("sh", "python -c"))
    assert python == "python"
    made = re.search(r"\$2b\$10\$[./A-Za-z0-9]{53}", typed([sys.executable, *arguments], "a password"))
    assert made is not None
    assert bcrypt.checkpw(b"a password", made[0].encode())
    configuration = block("yaml", "# web.yml")
    (tmp_path / "web.yml").write_text(re.sub(r"\$2b\$\S+", made[0], configuration))
    with agent(tmp_path, "--web-config", str(tmp_path / "web.yml"), tls=True) as served:
        trust = trusting(tmp_path / "agent.crt")

        def status(password: str) -> int:
            return httpx.get(served.url + "/metrics", auth=("prometheus", password), verify=trust).status_code

        assert (status("a password"), status("another")) == (200, 401)


def test_the_files_that_it_shows_are_right(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text(block("yaml", "# web.yml"))
    with pytest.raises(Exception, match=r"agent\.crt cannot be read"):  # and nothing else
        web_config.load(tmp_path / "web.yml")
    (tmp_path / "prometheus.yml").write_text(block("yaml", "scrape_configs"))
    for name in ("agent.crt", "password.txt"):
        (tmp_path / name).touch()
    check = [program("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    result = subprocess.run(check, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_its_figures_are_those_of_the_code() -> None:
    table = dict(
        re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.partition("## What is bounded")[2].partition("##")[0], re.MULTILINE)
    )
    assert table["connections"] == f"{door.CONNECTIONS} are answered, {listener.MOST} are taken"
    head = f"{door.LONGEST_PATH >> 10} KiB; {door.LARGEST_HEAD >> 10} KiB in {door.MOST_HEADERS} lines"
    assert table["a request's path with its query, and its headers"] == head
    assert connection.REQUEST == server.HANDSHAKE
    assert table["time to send a request, to shake hands by TLS"] == f"{connection.REQUEST:.0f} s"
    assert table["time to take an answer"] == f"{connection.ANSWER:.0f} s"
    kept = f"{scrapes.MOST_BYTES >> 20} MiB of expositions, {door.PIECE >> 10} KiB a connection"
    assert table["what is kept of answers that nobody takes"] == kept
    taken = (
        f"{pace.SHARE:.1%}".replace("%", " %")
        + f", and {pace.BURST:g} s of a core after a pause; an answer waits {pace.LONGEST:g} s for it at most"
        + f", and {pace.CROWDED:g} s where {pace.CROWD} or more wait together"
    )
    assert table["what answering takes of a machine that has none to spare"] == taken
    assert (pace.SHARE, pace.RESERVE) == (0.005, 0.1)  # "half a percent", "a tenth"
    assert table["methods"] == f"{' and '.join(door.METHODS)}, without a body"
    assert f"a bcrypt cost above {web_config.DEAREST}" in PAGE
    assert passwords.REST == 4  # "for four times as long", "a fifth of one core"
    assert all(f"`{path}`" in PAGE for path in door.PROBES)
