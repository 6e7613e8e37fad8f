"""A real Prometheus scrapes an agent that asks for a certificate's authority and a password: found by file_sd, let in or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from resmon.agent import runtime
from tests.access.test_access import PASSWORD, hashed
from tests.agent.serving import agent
from tests.certificates import Authority
from tests.programs import program
from tests.prometheus import serving
from tests.waiting import wait_for

CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: right
    file_sd_configs: [{{files: ["{targets}"], refresh_interval: 1s}}]
    tls_config: {{ca_file: "{ca}"}}
    basic_auth: {{username: prometheus, password_file: "{password}"}}
  - job_name: wrong-password
    file_sd_configs: [{{files: ["{targets}"]}}]
    tls_config: {{ca_file: "{ca}"}}
    basic_auth: {{username: prometheus, password: guess}}
  - job_name: no-password
    file_sd_configs: [{{files: ["{targets}"]}}]
    tls_config: {{ca_file: "{ca}"}}
  - job_name: another-authority
    file_sd_configs: [{{files: ["{targets}"]}}]
    tls_config: {{ca_file: "{other}"}}
    basic_auth: {{username: prometheus, password_file: "{password}"}}
  - job_name: in-clear
    static_configs: [{{targets: ["{address}"]}}]
    basic_auth: {{username: prometheus, password_file: "{password}"}}
"""


@pytest.mark.slow
def test_who_has_the_password_scrapes_and_nobody_else(tmp_path: Path) -> None:
    program("prometheus")
    authority, other = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    certificate, key = authority.sign("server", "IP:127.0.0.1")
    (tmp_path / "web.yml").write_text(
        f"tls_server_config: {{cert_file: {certificate}, key_file: {key}, min_version: TLS13}}\n"
        f"basic_auth_users: {{prometheus: {hashed(PASSWORD)}}}\n"
    )
    (tmp_path / "password").write_text(PASSWORD)
    with agent(tmp_path, "--web-config", str(tmp_path / "web.yml"), tls=True) as made:
        configuration = CONFIGURATION.format(
            targets=made.runtime / runtime.TARGETS,
            ca=authority.certificate,
            other=other.certificate,
            password=tmp_path / "password",
            address=f"127.0.0.1:{made.port}",
        )
        with serving(tmp_path / "prometheus", configuration) as prometheus:

            def health() -> dict[str, tuple[str, str]]:
                found = prometheus.get("targets")["activeTargets"]
                return {each["labels"]["job"]: (each["health"], each["lastError"]) for each in found}

            wait_for(lambda: len(health()) == 5 and all(state != "unknown" for state, _ in health().values()))
            found = health()
            assert found["right"] == ("up", "")
            said = {job: error for job, (state, error) in found.items() if state == "down"}
            assert "401" in said["wrong-password"]
            assert "401" in said["no-password"]
            assert "unknown authority" in said["another-authority"]
            assert set(said) == {"wrong-password", "no-password", "another-authority", "in-clear"}

            def values(query: str) -> list[float]:
                return [value for _, value in prometheus.query(query)]

            wait_for(lambda: values('resmon_agent_info{job="right"}') == [1.0])
            assert values('up{job="wrong-password"}') == [0.0]
            assert values("count(resmon_agent_info)") == [1.0]
