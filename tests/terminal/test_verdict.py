"""What `resmon check` prints and writes: on the command line, as JSON and as JUnit XML."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from resmon.capture.fitting.check import KINDS, Fault, Report
from resmon.capture.fitting.requisites import Requisites, Share
from resmon.records import ResidualSite
from resmon.terminal.verdict import as_json, as_junit, is_good, render
from tests.test_cli import here, resmon

MODELS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    def forward(self, x):
        return x + torch.relu(self.conv(x))

def good(): return nn.Sequential(Block(4, 4), Block(4, 4)), torch.randn(2, 4, 8, 8)
def bad(): return nn.Sequential(Block(4, 4), Block(4, 6), nn.Conv2d(6, 2, 1)), torch.randn(2, 4, 8, 8)
def plain(): return nn.Linear(4, 4), torch.randn(2, 4)
def raises(): raise RuntimeError("no such weights")
"""

EVIL = "a<b>&\"'\x1b[31m\x00]]>‮"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A folder with models; imports of it are forgotten afterwards, for other tests call theirs the same."""
    (tmp_path / "mymodels.py").write_text(MODELS)
    yield tmp_path
    sys.modules.pop("mymodels", None)


def report(*faults: Fault, skipped: tuple[Any, ...] = (), blocks: int = 2, name: str = "h") -> Report:
    sites = tuple(ResidualSite(f"{name}.{i}", f"{name}.{i}", "identity", (), (), (2, 4)) for i in range(blocks))
    shares = tuple(Share(site.name, 400, 400, 800, 1000 * (i + 1)) for i, site in enumerate(sites))
    requisites = Requisites(2, (*shares, Share("", 10, 10, 20, 0)))
    return Report(f"{name}:make", name, "on fakes", (2, 1), (f"float32 {name}",), sites, requisites, faults, skipped)


def test_a_good_model_passes(project: Path) -> None:
    result = resmon("check", "mymodels:good", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "2 residual additions; batches of 2, 1, 3" in result.stdout
    assert "passed: shapes, batch sizes, residual additions, broadcasts, gradients, initialisation" in result.stdout


def test_a_bad_model_fails_and_the_layer_to_add_is_printed(project: Path) -> None:
    result = resmon("check", "mymodels:bad", "--junit", "report.xml", cwd=project)
    assert result.returncode == 1
    assert "nn.Conv2d(4, 6, 1, bias=False)" in result.stdout
    assert "mymodels.py:10: return x + torch.relu(self.conv(x))" in " ".join(result.stdout.split())
    root = ElementTree.parse(project / "report.xml").getroot()  # noqa: S314, our own
    (failure,) = root.iter("failure")
    assert "nn.Conv2d(4, 6, 1, bias=False)" in (failure.text or "")


def test_json_is_the_whole_report(project: Path) -> None:
    result = resmon("check", "mymodels:bad", "--json", cwd=project)
    assert result.returncode == 1
    made = json.loads(result.stdout)
    assert made["passed"] is False
    assert [fault["block"] for fault in made["faults"]] == ["1"]
    assert made["faults"][0]["fixes"][0] == "nn.Conv2d(4, 6, 1, bias=False)"
    assert [block["name"] for block in made["blocks"]] == ["0", "1"]
    assert made["blocks"][0]["memory"]["parameters"] == (4 * 4 * 9 + 4) * 4


def test_a_model_without_additions_says_so(project: Path) -> None:
    result = resmon("check", "mymodels:plain", cwd=project)
    assert result.returncode == 0
    assert "no residual addition" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mymodels"], "names no model"),
        (["nowhere:make"], "cannot be imported"),
        (["mymodels:gone"], "has no 'gone'"),
        (["mymodels:Block"], "cannot be called without arguments"),
        (["mymodels:good", "-i", "2,x"], "the input '2,x' cannot be read"),
        (["mymodels:good", "-b", "0"], "a batch of 0 cannot be"),
        (["mymodels:good", "--junit", "nowhere/report.xml"], "cannot be written"),
    ],
)
def test_what_cannot_be_checked_is_one_message(
    project: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    assert here(monkeypatch, "check", *arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_warning_fails_only_where_it_is_strict() -> None:
    warned = report(Fault("broadcasts", "warning", "h.0", "h.0", "spread"))
    assert is_good(warned, strict=False) and not is_good(warned, strict=True)
    assert as_json(warned, strict=True)["passed"] is False


def test_junit_has_the_structure_that_servers_read() -> None:
    faults = (
        Fault("shapes", "error", "h.0", "h.0", "does not fit", "add one", ("nn.Linear(2, 3)",), "a.py:1: x + y"),
        Fault("shapes", "error", "", "head", "does not fit either"),
        Fault("gradients", "warning", "h.1", "h.1", "unused"),
    )
    made = report(*faults, skipped=(("initialisation", "no memory"),))
    root = ElementTree.fromstring(as_junit(made, KINDS, strict=False))  # noqa: S314, our own
    assert root.tag == "testsuites"
    (suite,) = root
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == [
        "shapes: h.0",
        "shapes: head",
        "batch sizes",
        "residual additions",
        "broadcasts",
        "gradients",
        "initialisation",
    ]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "7",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }
    assert all(case.tag == "testcase" and case.get("classname") == "h:make" for case in suite)
    failure = cases["shapes: h.0"].find("failure")
    assert (
        failure is not None and failure.get("message") == "does not fit" and failure.text == "does not fit\nadd one\na.py:1: x + y"
    )
    skipped = cases["initialisation"].find("skipped")
    assert skipped is not None and skipped.get("message") == "no memory"
    assert "unused" in (cases["gradients"].findtext("system-out") or "")
    strict = ElementTree.fromstring(as_junit(made, KINDS, strict=True))  # noqa: S314, our own
    assert strict[0].get("failures") == "3"


def test_names_may_hold_anything() -> None:
    evil = report(Fault("shapes", "error", EVIL, EVIL, EVIL, EVIL, (EVIL,), EVIL), name=EVIL)
    root = ElementTree.fromstring(as_junit(evil, KINDS, strict=False))  # noqa: S314, our own
    (failure,) = root.iter("failure")
    assert failure.get("message") == EVIL.replace("\x1b", "�").replace("\x00", "�")
    assert json.loads(json.dumps(as_json(evil, strict=False)))["faults"][0]["block"] == EVIL
    out = io.StringIO()
    Console(file=out, width=100, no_color=True).print(render(evil, KINDS))
    assert "\x1b" not in out.getvalue() and "\x00" not in out.getvalue() and "‮" not in out.getvalue()
    assert "a<b>&" in out.getvalue()


def test_of_many_blocks_those_that_take_most_are_shown() -> None:
    out = io.StringIO()
    Console(file=out, width=100, no_color=True).print(render(report(blocks=100), KINDS))
    assert "h.99" in out.getvalue() and "h.1 " not in out.getvalue()
    assert "76 more blocks" in out.getvalue()
