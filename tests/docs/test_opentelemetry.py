"""docs/opentelemetry.md: its programs run, its command and settings are those that there are, its tables are the code's."""

from __future__ import annotations

import inspect
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import opentelemetry.metrics._internal as api
import pytest
from opentelemetry.sdk._logs import LogRecordLimits
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.util._once import Once
from torch import nn
from torch.optim import SGD

import resmon
from resmon import cli
from resmon.agent import push
from resmon.capture.host import spans
from resmon.exporters import events
from resmon.exporters.conventions import CONVENTIONS
from resmon.monitor import instruments
from resmon.settings import Settings
from tests.integrations.networks import batch, network

PAGE = (Path(__file__).parents[2] / "docs" / "opentelemetry.md").read_text()


@pytest.fixture(autouse=True)
def own_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's provider can be set once in a process; here it is set for this test only."""
    monkeypatch.setattr(api, "_METER_PROVIDER", None)
    monkeypatch.setattr(api, "_METER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(instruments, "_of_the_program", [])


def test_the_programs_hand_their_runs_to_the_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESMON_AGENT", "off")
    net = network()
    world: dict[str, Any] = {
        "resmon": resmon,
        "model": net,
        "optimizer": SGD(net.parameters(), 0.1),
        "loader": [batch(step) for step in range(3)],
        "loss_fn": nn.functional.mse_loss,
    }
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for snippet in (first, second):
        exec(compile(snippet, "docs/opentelemetry.md", "exec"), world)  # noqa: S102 - the page is ours
    reader = world["reader"]
    assert isinstance(reader, InMemoryMetricReader)
    data = reader.get_metrics_data()
    assert data is not None
    steps = {
        point.attributes["run"]: point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "resmon.steps"
        for point in metric.data.data_points
    }
    assert steps == {"own": 3, "global": 3}
    world["provider"].shutdown()


def test_the_command_and_the_settings_are_those_that_push(tmp_path: Path) -> None:
    """test_push.py and test_otlp.py show what they do."""
    (command,) = re.findall(r"```sh\n(.*?)\n```", PAGE, re.DOTALL)
    program, verb, *options = shlex.split(command)
    assert (program, verb) == ("resmon", "agent")
    given = dict(zip(options[::2], options[1::2], strict=True))
    (configuration,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    settings = tomllib.loads(configuration)
    assert {f"--{name.replace('_', '-')}": str(value) for name, value in settings.items()} == given
    chosen = Settings.of(**settings)
    signature = inspect.signature(cli.agent).parameters
    for name in settings:
        assert name in signature and getattr(chosen, name) == settings[name]
    assert chosen.otlp_interval == Settings.model_fields["otlp_interval"].default


def test_the_table_of_names_is_the_codes() -> None:
    rows = re.findall(r"^\| `(resmon\.[\w.]+)` \| (?:`([^`]+)`)? *\| `(resmon_\w+)` \|$", PAGE, re.MULTILINE)
    assert rows == [(each.name, each.unit, each.metric.name) for each in CONVENTIONS.values()]


def test_numbers_in_the_text_are_the_codes() -> None:
    assert f"at most {push.WAITING:,} of them" in PAGE
    assert f"up to {spans.MOST:,} times in a run" in PAGE
    assert instruments.LINGER == 120.0 and "for two minutes more" in PAGE
    later = ", ".join(map(str, push.LATER))
    assert f"may take later ({later}, no answer)" in PAGE
    assert LogRecordLimits().max_log_record_attributes == 128 and "OpenTelemetry's limits: 128" in PAGE


def test_the_table_of_events_names_attributes_that_there_are() -> None:
    table = PAGE.partition("## Events")[2]
    rows = re.findall(r"^\| `resmon\..*$", table, re.MULTILINE)
    named = {name.removesuffix(".*") for row in rows for name in re.findall("`([^`]+)`", row)}
    source = Path(events.__file__).read_text()
    assert len(named) > 20
    for name in named:
        kind = re.sub(r"\.(opened|updated|closed)$", ".{finding.state}", name)
        assert f'"{name}"' in source or f'"{kind}"' in source or f"{name}." in source, name
