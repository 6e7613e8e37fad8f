"""The runbooks' form, and the pages that are made of them for a run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmon.errors import ConfigurationError
from resmon.flight.frames import load
from resmon.flight.incidents import append
from resmon.handbook import diagnosis as runbook
from resmon.handbook import pages as handbook
from resmon.records import Incident, RunEnd, incident_id
from tests import synthetic
from tests.flight.flights import begin, write

SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
NAMES = handbook.names()
# In capitals, and no values.
WORDS = {"SIGKILL", "SIGSEGV", "SIGTERM", "SIGINT", "PID", "GPU", "RMS", "GELU", "PACKAGE", "MODULE", "NAME", "POD", "OTLP"}


def resmon(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "resmon", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "120"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def broken(directory: Path, name: str, run: str = "digits", **more: object) -> Path:
    """A run with an incident that has this runbook."""
    folder, writer = begin(directory, run=run)
    write(writer, synthetic.Training(synthetic.sites(3)), 30)
    incident = Incident(incident_id("failed", 29), "failed", 5.0, 29, "the summary of it", runbook=name, advice="the advice")
    writer.incident(replace(incident, checkpoint="last.pt", **more))  # type: ignore[arg-type]
    writer.end(RunEnd("failed", 9.0, 29))
    return folder.parent.parent


def test_there_are_those_that_the_failures_need() -> None:
    assert set(NAMES) >= {"nonfinite", "out-of-memory", "shape-mismatch", "killed", "stalled", "failed", "interrupted"}


@pytest.mark.parametrize("name", NAMES)
def test_the_form(name: str) -> None:
    whole = handbook.runbook(name).text
    text = re.sub(r"^```text$.*?^```$", "", whole, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert re.match(r"# .+\n\n## Meaning\n", text)
    parts = re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]
    assert all(len(part.strip()) > 40 for part in parts)
    assert handbook.runbook(name).commands, "nothing to diagnose with"
    for command, prints in handbook.runbook(name).commands.items():
        assert shlex.split(command)[0] == "resmon", f"{command} is not tested"
        assert "\n" not in command, "one command a block"
        assert prints, f"nobody knows what {command} prints"
    assert text.count("```sh") == len(handbook.runbook(name).commands)
    unknown = set(re.findall(r"\b[A-Z]{3,}\b", text)) - set(runbook.VALUES) - WORDS
    assert not unknown, "a value that nobody fills in"


def test_no_page_names_one_that_is_not_there() -> None:
    for name in NAMES:
        for other in re.findall(r"the runbook ([a-z-]+)", handbook.runbook(name).text):
            assert other in NAMES, f"{name} sends to {other}"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_a_run_has_its_values(name: str, tmp_path: Path) -> None:
    folder = broken(tmp_path, name)
    trouble = runbook.Trouble.of(load(folder))
    book = handbook.runbook(name)
    text = "".join(runbook.page(replace(book, text=handbook.COMMAND.sub("", book.text)), trouble))
    assert "the summary of it" in text
    assert "the advice" in text
    assert "CHECKPOINT" not in text
    if "CHECKPOINT" in book.text:
        assert r"last.pt" in text
    assert trouble.runbook == name


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ("it fell over", "rank 0 at step 29: it fell over"),
        ("Step 29: sqrt made NaN of it.", "rank 0: Step 29: sqrt made NaN of it."),
    ],
)
def test_the_step_of_an_incident_is_told_once(summary: str, said: str, tmp_path: Path) -> None:
    trouble = runbook.Trouble.of(load(broken(tmp_path, "failed", summary=summary)))
    book = replace(handbook.runbook("failed"), text="# Failed\n")
    assert f"Run digits, {said}\n" in "".join(runbook.page(book, trouble))


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match="nonfinite"):
        handbook.runbook("../../etc/passwd")


def test_only_commands_of_resmon_are_run() -> None:
    with pytest.raises(ConfigurationError, match="no command of resmon's"):
        runbook.run("rm -rf RUN", {"RUN": "x"})


def test_commands_print_as_wide_as_the_page_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = broken(tmp_path, "failed")
    for width in (70, 110):
        _, printed, status = runbook.run("resmon incidents RUN", {"RUN": str(folder)}, width)
        assert status == 0
        assert {len(line) for line in printed.splitlines() if line[0] in "╭│╰"} == {width}


HOSTILE = "a'; touch owned #\n</code> `x` **b** $(touch owned) --help"


def test_names_from_a_run_neither_run_nor_mark_up(tmp_path: Path) -> None:
    folder = broken(tmp_path, "failed", run=HOSTILE, summary=f"{HOSTILE}\n# A heading\n```sh\nresmon ls\n```")
    text = "".join(runbook.page(handbook.runbook("failed"), runbook.Trouble.of(load(folder))))
    assert not list(tmp_path.rglob("owned")) and not Path("owned").exists()
    assert "\n# A heading" not in text
    assert "<" not in re.sub(r"\\<", "", text.split("## Meaning")[0])


@given(st.text(max_size=60))
def test_what_is_escaped_stays_one_line_of_plain_text(text: str) -> None:
    from markdown_it import MarkdownIt

    for before in ("x ", ""):
        tokens = MarkdownIt().parse(before + runbook.escaped(text))
        assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
        inline = [child for token in tokens for child in token.children or []]
        assert {child.type for child in inline} <= {"text", "text_special"}
        plain = "".join(c if c.isprintable() else " " for c in before + text)
        assert "".join(child.content for child in inline) == " ".join(plain.split())


@given(st.text(alphabet="`a\n", max_size=40))
def test_no_output_ends_its_block(text: str) -> None:
    from markdown_it import MarkdownIt

    tokens = MarkdownIt().parse(runbook._fenced(text))
    assert [token.type for token in tokens] == ["fence"]


def test_the_command_lists_and_prints_and_fills_in(tmp_path: Path) -> None:
    assert resmon("runbook", cwd=tmp_path).stdout.split() == NAMES
    plain = resmon("runbook", "killed", cwd=tmp_path)
    assert plain.stdout.strip() == handbook.runbook("killed").text.strip()
    assert "there is no runbook 'kiled'" in resmon("runbook", "kiled", cwd=tmp_path).stderr
    broken(tmp_path / "runs", "failed")
    page = resmon("runbook", "--run", "digits", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    assert "the summary of it" in page.stdout
    assert "Failed run" in page.stdout
    assert "╭" in page.stdout, "the output of resmon incidents"
    assert "-00007.pt" not in page.stdout, "the example stands where the run's own output should"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"], "a runbook leaves nothing behind"


def test_a_run_without_trouble_has_no_runbook(tmp_path: Path) -> None:
    _, writer = begin(tmp_path / "runs")
    write(writer, synthetic.Training(synthetic.sites(1)), 3)
    writer.end(RunEnd("finished", 9.0, 2))
    assert "nothing is wrong with digits" in resmon("runbook", "--run", "digits", cwd=tmp_path).stdout
    assert "has no incident that this page is about" in resmon("runbook", "killed", "--run", "digits", cwd=tmp_path).stdout


def test_an_incident_whose_page_is_not_there_has_its_kinds(tmp_path: Path) -> None:
    """A newer resmon's, say; a name that leads elsewhere is none."""
    for i, page in enumerate(("../../etc/passwd", "of-tomorrow", "")):
        trouble = runbook.Trouble.of(load(broken(tmp_path / str(i), page)))
        assert trouble.runbook == "failed"
        assert "the summary of it" in next(runbook.page(handbook.runbook("failed"), trouble))


def test_incidents_are_shown_with_all_that_is_known(tmp_path: Path) -> None:
    folder = broken(tmp_path / "runs", "failed", block="stages.1.0", line="model.py:3: x + y", evidence={"\x1b[31mred": "\x1b[31m"})
    shown = resmon("incidents", "digits", cwd=tmp_path).stdout
    for text in ("the summary of it", "stages.1.0", "model.py:3: x + y", "last.pt"):
        assert text in shown
    assert shown.splitlines()[-1] == "resmon runbook failed --run runs/digits/attempt-0001"
    assert "\x1b" not in shown
    append(next(folder.glob("attempt-*/rank-*")), Incident("killed", "killed", 10.0, None, "gone"))
    import json

    assert [row["kind"] for row in json.loads(resmon("incidents", "digits", "--json", cwd=tmp_path).stdout)] == ["failed", "killed"]


ODD = {
    "asked_bytes": 131072000.0,
    "blocks": [{"block": f"h.{i}", "activation_bytes": 2048 * i, "checkpoint_saves_bytes": None} for i in range(12)],
    "batch": {"samples": 16, "fits": 0, "tried": True, "added": False, "by": ""},
    "shape": [2, 16, 4, 4],
    "parameters": ["a.weight", "b.bias"],
    "growth": None,
    "loss": float("nan"),
    "memory": [[0, 2e9, 5e9], [1, 2e9, 5e9], [2, 3e9, None], [3, 3e9, 4e9], "x", [4], [5, None, 1.0]],
    "n" * 500: "m" * 5000,
}


def test_evidence_is_put_into_words(tmp_path: Path) -> None:
    broken(tmp_path / "runs", "failed", evidence=ODD)
    shown = resmon("incidents", "digits", cwd=tmp_path).stdout
    rows = [re.sub(r"\s+", " ", line.strip("│ ")) for line in shown.splitlines()]
    for expected in (
        "asked 125 MiB",
        "blocks 0 B h.0",
        "██ 2 KiB h.1",
        "and 4 more",
        "batch samples 16, fits 0, tried",
        "shape 2×16×4×4",
        "parameters a.weight, b.bias",
        "loss nan",
        "memory step 0: 1.86 GiB in use, 4.66 GiB free",
        "step 2: 2.79 GiB in use",
        "step 3: 2.79 GiB in use, 3.73 GiB free",
    ):
        assert expected in rows, shown
    assert "growth" not in shown and "step 1:" not in shown and "n" * 60 not in shown
    assert shown.count("m") < 500


def test_evidence_of_any_kind_is_shown(tmp_path: Path) -> None:
    """What somebody's file holds there: no exception, and nothing that steers the terminal."""
    bad = "\x1b[31m<b>[x](y)"
    odd = {"memory": 5, "blocks": "x", "a_bytes": bad, "b_bytes": True, "c": [[], [None, {"d": [{}]}]], bad: {bad: [bad]}}
    broken(tmp_path / "runs", "failed", evidence=odd)
    shown = resmon("incidents", "digits", cwd=tmp_path)
    assert shown.returncode == 0 and "<b>[x](y)" in shown.stdout and "\x1b" not in shown.stdout
    page = resmon("runbook", "--run", "digits", cwd=tmp_path).stdout
    assert "\x1b" not in page and "<b>" not in re.sub(r"```text.*?```", "", page, flags=re.DOTALL)
