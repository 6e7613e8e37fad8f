"""The benchmark of readers in small form: two trainings, an agent and fifty readers, and what comes of it."""

from __future__ import annotations

import pytest

from benchmarks import report
from benchmarks.readers import __main__ as readers
from benchmarks.readers.crowd import _first


@pytest.mark.slow
def test_fifty_readers_beside_two_trainings_are_all_answered(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with an error where one is not."""
    before = readers.PAGE.read_text()
    readers.main(["--quick"])
    said = capsys.readouterr().out
    rows = dict(line.strip("| ").split(" | ")[:2] for line in said.splitlines() if line.startswith("| "))
    for way in readers.EACH.values():
        answers = rows[f"answers, beside two trainings, {way}"]
        assert answers.endswith("; 0 failed")
        assert int(answers.split(" of ")[0].replace(",", "")) >= readers.READERS // 2  # each was answered
    memory = next(value for name, value in rows.items() if name.startswith("the agent's memory"))
    assert 50 < float(memory.split()[0]) < readers.MEMORY
    assert readers.PAGE.read_text() == before  # a part is not published


def test_the_page_can_take_the_table() -> None:
    report.around(readers.PAGE, readers.MARKS)


def test_a_run_is_found_wherever_it_is_named() -> None:
    assert _first({"runs": [{"n": 1, "about": {"id": "a"}}, {"id": "b"}]}, "id") == "a"
    assert _first([{"id": 3}, None], "id") is None
