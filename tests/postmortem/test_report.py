"""What a post-mortem says of runs that broke in a known way, and of flights that are damaged, empty, thinned or under way."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resmon.errors import FlightError, FlightVersionError
from resmon.flight import journal, layout
from resmon.flight.layout import INFO
from resmon.postmortem.case import DENSE, read
from resmon.postmortem.curves import POINTS
from resmon.postmortem.report import Report, as_json, make
from resmon.records import MAGNITUDE_COLUMNS, Finding
from tests.postmortem.runs import Story, calm, explosion, finding, incident, record


def top(report: Report) -> str:
    return report.suspects[0].key


def test_an_explosion_is_told_from_its_beginning(tmp_path: Path) -> None:
    report = make(
        [record(tmp_path, story=explosion(at=180), incidents=(incident("nonfinite", 180, block="h.2"),), outcome="nonfinite")]
    )
    assert report.case.trouble == 180
    assert top(report) == "explosion"
    assert report.suspects[0].verdict in ("likely", "very likely")
    first = report.signs[0]
    assert (first.statistic, first.step) == ("learning_rate", 160)
    block = next(sign for sign in report.signs if sign.block)
    assert (block.block, block.step) in (("h.2", 164), ("h.2", 165))
    assert report.checkpoint == "ckpt-150.pt"
    assert "went non-finite at step 180 in block h.2" in report.summary[0]
    assert "step 160, 20 steps before" in report.summary[1]
    assert "explosion" in report.summary[2] and "ckpt-150.pt" in report.summary[2]
    assert report.runbook == "nonfinite"


def test_a_checkpoint_from_after_the_first_sign_is_named_as_such(tmp_path: Path) -> None:
    report = make([record(tmp_path, story=explosion(at=180), checkpoints=165, outcome="failed")])
    assert report.checkpoint == ""
    assert "the last checkpoint before it, ckpt-165.pt, is from after the first sign" in report.summary[2]


def test_what_came_from_one_step_to_the_next_is_laid_to_the_data(tmp_path: Path) -> None:
    def story(step: int) -> dict[Any, float]:
        return {("output_square", block): math.inf for block in range(4)} if step == 180 else {}

    suspects = make([record(tmp_path, story=story, steps=181, outcome="nonfinite")]).suspects
    scores = {suspect.key: suspect.score or 0 for suspect in suspects}
    assert scores["data"] > scores["explosion"]
    replayed = incident("nonfinite", 180, origin="data", summary="row 3 of the batch held NaN")
    report = make([record(tmp_path, "other", story=story, steps=181, outcome="nonfinite", incidents=(replayed,))])
    assert top(report) == "data"
    assert report.suspects[0].verdict == "very likely"


def _slow(step: int) -> dict[Any, float]:
    return {"duration": 0.3, "data_seconds": 0.21} if step >= 150 else {}


def _dead(step: int) -> dict[Any, float]:
    return {("branch_square", 1): 0.0} if step >= 150 else {}


def _vanishing(_: int) -> dict[Any, float]:
    return {("output_gradient_square", i): 10.0 ** (4 * i) * 1e-12 for i in range(4)} | {
        ("gradient_square", i): 1e-20 for i in range(3)
    }


def _overfit(step: int) -> dict[Any, float]:
    return {"val_loss": 1.0 + abs(step - 60) / 100} if step % 20 == 19 else {}


def _half(step: int) -> dict[Any, float]:
    return {("fill", i): 0.4 if i == 2 else 0.01 for i in range(4)} | {"loss_scale": 65536.0 if step < 190 else 1024.0}


def _full(step: int) -> dict[Any, float]:
    return {"memory": 2e9 + 3.9e7 * step, "memory_free": 8e9 - 3.9e7 * step}


@pytest.mark.parametrize(
    ("cause", "story", "outcome", "said"),
    [
        ("latency", _slow, "finished", "waiting for data"),
        ("vanishing", _dead, "finished", "branch of h.1 adds nothing any more from step 150"),
        ("vanishing", _vanishing, "finished", "fades on its way"),
        ("overfitting", _overfit, "finished", "best at step 59"),
        ("precision", _half, "nonfinite", "in h.2"),
        ("out_of_memory", _full, None, "of the machine's memory could still be had"),
        ("killed", calm, None, "left no end mark"),
        ("exception", calm, "failed", "ValueError: no"),
    ],
)
def test_each_cause_is_found_where_it_is_one(cause: str, story: Story, outcome: Any, said: str, tmp_path: Path) -> None:
    report = make([record(tmp_path, story=story, outcome=outcome)])
    assert top(report) == cause, [(each.key, each.score) for each in report.suspects]
    assert report.suspects[0].verdict in ("likely", "very likely")
    assert any(said in each.text for each in report.suspects[0].evidence), report.suspects[0].evidence


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("out_of_memory", "out_of_memory"), ("shape_mismatch", "shape_mismatch"), ("stalled", "stalled"), ("failed", "exception")],
)
def test_an_incident_that_says_what_it_is_is_believed(kind: Any, cause: str, tmp_path: Path) -> None:
    told = incident(kind, 199, advice="do this", runbook=kind, evidence={"ended": "the process was killed"})
    report = make([record(tmp_path, outcome=kind, incidents=(told,))])
    assert (top(report), report.suspects[0].verdict) == (cause, "very likely")
    assert report.runbook == kind
    assert report.actions[0].what == "do this"


def test_a_healthy_run_needs_no_cause(tmp_path: Path) -> None:
    for seed in range(3):

        def story(step: int, seed: int = seed) -> dict[Any, float]:
            return {"loss": calm(step + 1000 * seed)["loss"]}

        report = make([record(tmp_path, f"healthy-{seed}", story=story)])
        assert report.case.healthy
        assert not [suspect.key for suspect in report.suspects if suspect.is_indicated]
        assert "No cause is needed" in report.summary[2]
        assert not report.signs


def _hard_batches(step: int) -> dict[Any, float]:
    """One batch in eight has twelve times the loss and the gradient of the others, from the first step to the last."""
    factor = 12.0 if step % 8 == 5 else 1.0
    return {"loss": factor * calm(step)["loss"], "gradient_square": factor**2 * calm(step)["gradient_square"]}


def _coming_alive(step: int) -> dict[Any, float]:
    """Branches and gradients grow out of an initialisation with zeros, late and at once, and the loss falls."""
    growth = 30.0 ** min(1.0, max(0.0, (step - 150) / 10))
    blocks = {("branch_square", i): 0.25 * growth for i in range(4)} | {("output_square", i): growth for i in range(4)}
    return {"gradient_square": growth * calm(step)["gradient_square"], **blocks}


def _below_zero(step: int) -> dict[Any, float]:
    """A likelihood of densities: a loss below 0."""
    return {"loss": -1.0 + np.random.default_rng(step).normal(0, 0.05)}


def _interrupted_often(step: int) -> dict[Any, float]:
    """What else runs on the machine takes a third of a second from each of the last steps, from now one part and now another."""
    if step < 150:
        return {}
    part = ("data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds")[step // 8 % 4]
    return {"duration": 0.4, part: 0.3 + calm(step)[part]}


@pytest.mark.parametrize("story", [_hard_batches, _coming_alive, _below_zero, _interrupted_often])
def test_what_happens_to_healthy_runs_too_is_no_cause(story: Story, tmp_path: Path) -> None:
    report = make([record(tmp_path, story=story)])
    assert report.case.healthy
    assert not [(suspect.key, suspect.evidence) for suspect in report.suspects if suspect.is_indicated]
    assert "No cause is needed" in report.summary[2]
    explosion = next(suspect for suspect in report.suspects if suspect.key == "explosion")
    assert not explosion.supporting


def test_what_grows_and_takes_back_what_was_learnt_is_an_explosion_though_finite(tmp_path: Path) -> None:
    """Of so few steps that no detector has seen a level yet."""

    def story(step: int) -> dict[Any, float]:
        growth = 2.0 ** max(0, step - 25)
        return {"loss": growth * calm(step)["loss"], "gradient_square": growth**2 * calm(step)["gradient_square"]}

    report = make([record(tmp_path, story=story, steps=32)])
    assert not report.case.findings
    assert top(report) == "explosion"
    assert [each.text.partition(" reached ")[0] for each in report.suspects[0].supporting] == [
        "The gradient norm",
        "The loss",
    ]
    assert report.summary[2].startswith("What deserves a look: explosion (likely), because the gradient norm reached")


def test_steps_that_are_slow_for_a_minute_are_latency_wherever_it_goes(tmp_path: Path) -> None:
    report = make([record(tmp_path, story=lambda step: {"duration": 2.5} if step >= 150 else {})])
    assert top(report) == "latency"


def test_without_an_incident_findings_say_when_it_broke(tmp_path: Path) -> None:
    """The agent was off: the detectors say here what they would have said then."""
    report = make([record(tmp_path, story=explosion(at=120))])
    assert report.case.outcome == "finished"
    assert report.case.trouble == 120
    assert not report.case.healthy
    assert "finished, but went non-finite at step 120 in block h.2" in report.summary[0]
    assert any("no agent" in note for note in report.notes)


def test_the_order_of_the_timeline(tmp_path: Path) -> None:
    report = make([record(tmp_path, story=explosion(at=180), incidents=(incident("nonfinite", 180),), outcome="nonfinite")])
    kinds = [event.kind for event in report.timeline]
    assert kinds[0] == "run" and kinds[-1] == "run"
    steps = [event.step for event in report.timeline if event.step is not None]
    assert steps == sorted(steps)
    assert kinds.index("sign") < kinds.index("incident")


def test_the_broken_run_is_compared_with_the_healthy_ones(tmp_path: Path) -> None:
    healthy = [record(tmp_path, f"ok-{seed}", story=_of_seed(seed), seed=seed) for seed in (1, 2)]
    broken = record(tmp_path, "broken", story=explosion(at=180), outcome="nonfinite", git_commit="abc")
    report = make([healthy[0], broken, healthy[1]])
    assert report.case.name == "broken"
    assert [other.name for other in report.others] == ["ok-1", "ok-2"]
    assert report.comparison is not None
    assert [run.name for run in report.comparison.a] == ["ok-1", "ok-2"]
    assert report.comparison.worse


def _of_seed(seed: int) -> Story:
    return lambda step: {"loss": calm(step + 10_000 * seed)["loss"] * math.exp(step / 200) * math.exp(-step / 200)}


def test_runs_without_a_common_step_are_not_compared_and_it_is_said(tmp_path: Path) -> None:
    report = make([record(tmp_path, "a", outcome="failed", steps=3), record(tmp_path, "b", steps=0)])
    assert report.comparison is None
    assert any("could not be compared" in note for note in report.notes)


# -- bad input ------------------------------------------------------------------------------------------------------------


def test_a_flight_without_a_step(tmp_path: Path) -> None:
    report = make([record(tmp_path, steps=0, outcome="shape_mismatch", incidents=(incident("shape_mismatch", None),))])
    assert top(report) == "shape_mismatch"
    assert "before its first step" in report.summary[0]
    assert any("not a single whole step" in note for note in report.notes)


def test_a_run_without_blocks(tmp_path: Path) -> None:
    report = make([record(tmp_path, blocks=0, outcome="failed")])
    assert report.case.blocks == ()
    assert "no residual block" in report.summary[0]


def test_a_damaged_flight_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = record(tmp_path, story=explosion(at=180), outcome="nonfinite")
    (segment,) = (folder / "rank-00000").glob("steps-*.arrow")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = bytes(5000)
    segment.write_bytes(data)
    report = make([folder])
    assert any("damaged" in note for note in report.notes)
    assert report.case.trouble == 180
    (folder / "rank-00000" / INFO).write_text("{")
    assert make([folder]).case.last_step == 199


def test_a_flight_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    folder = record(tmp_path)
    path = folder / "rank-00000" / INFO
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(FlightVersionError):
        make([folder])


def test_what_cannot_be_read_is_left_out_as_long_as_something_can(tmp_path: Path) -> None:
    good = record(tmp_path)
    report = make([tmp_path / "nothing" / "attempt-0001", good])
    assert report.case.name == "digits"
    assert any("left out" in note for note in report.notes)
    with pytest.raises(FlightError):
        make([tmp_path / "nothing"])


def test_a_run_under_way(tmp_path: Path) -> None:
    import resmon.flight.writer as writing
    from tests import synthetic
    from tests.flight.flights import begin, write

    _, writer = begin(tmp_path, boot_id="x")
    assert isinstance(writer, writing.FlightWriter)
    write(writer, synthetic.Training(synthetic.sites(2), start=time.time() - 5), 20)
    report = make([tmp_path / "digits" / "attempt-0001"])
    assert report.case.outcome == "running"
    assert report.case.healthy
    assert "is under way" in report.summary[0]


def test_a_thinned_flight_is_whole_and_bounded(tmp_path: Path) -> None:
    """Bins stand for what was thinned: no column of the heat map is empty, and what is read does not grow with the run."""
    folder = record(
        tmp_path, story=explosion(at=3980, block=1), steps=4000, blocks=2, budget=3 << 20, outcome="nonfinite", checkpoints=0
    )
    case = read(folder)
    assert case.run.gaps > 1000
    assert len(case.window.steps) <= DENSE
    for whole, _ in (case.ratio, case.gradient):
        assert whole.first[0] == 0 and whole.last[-1] == 3999
        assert not np.isnan(whole.values).any()
    # In calm columns the mean is what was written: the root of 0.25.
    calm_columns = whole_values(case)[:, 5:100]
    assert np.allclose(calm_columns, 0.5, rtol=0.1)
    assert all(len(curve.step) <= POINTS for curve in case.curves.values())
    loss = case.curves["loss"]
    assert np.all(np.diff(loss.step) >= 0) and loss.step[0] < 64


def test_ten_million_steps_are_told_like_a_thousand(tmp_path: Path) -> None:
    """A flight is as large as its budget, so what such a run leaves is a thousand rows here and there over its steps."""
    folder = record(tmp_path, steps=1200, stride=10_000, blocks=2, outcome="failed", checkpoints=0)
    report = make([folder])
    assert report.case.last_step == 11_990_000
    assert "at step 11,990,000" in report.summary[0]
    assert report.case.ratio[0].width <= 180


MEASURED = """
import re, sys
from pathlib import Path
from resmon.postmortem import page
from resmon.postmortem.report import make
said = []
page.render(make([Path(sys.argv[1])], said.append))
assert any("step" in each for each in said), said
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """A flight that is four times as long, of the same budget, takes no more; progress tells the steps."""
    peaks = []
    for steps in (6_000, 24_000):
        folder = record(
            tmp_path, f"run-{steps}", story=explosion(at=steps - 20, block=1), steps=steps, blocks=2, budget=3 << 20, checkpoints=0
        )
        command = [sys.executable, "-c", MEASURED, str(folder)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
    assert peaks[1] < peaks[0] + 16
    assert peaks[1] < 400, "pandas, scipy and plotly are 150 of them"


def whole_values(case: Any) -> Any:
    return case.ratio[0].values


def test_histograms_before_and_after(tmp_path: Path) -> None:
    case = read(record(tmp_path, story=explosion(at=180), outcome="nonfinite"))
    assert case.magnitudes
    assert "h.2" in [each.block for each in case.magnitudes]
    for each in case.magnitudes:
        assert each.before.shape == (MAGNITUDE_COLUMNS,)
        assert each.before.sum() == pytest.approx(1)
        assert each.before_steps[1] < each.after_steps[0] <= 180


def test_the_json_is_json(tmp_path: Path) -> None:
    report = make([record(tmp_path, story=explosion(at=180), outcome="nonfinite", incidents=(incident("nonfinite", 180),))])
    made = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert made["causes"][0]["cause"] == "explosion"
    assert made["trouble_step"] == 180
    assert made["first_signs"][0]["statistic"] == "learning_rate"


@pytest.mark.parametrize("one", [finding("nonfinite", 30, "h.1"), finding("overfitting", 30, severity="ticket")])
def test_a_ticket_does_not_break_a_run(one: Finding, tmp_path: Path) -> None:
    folder = record(tmp_path)
    journal.append(folder / layout.FINDINGS, asdict(one))
    case = read(folder)
    assert case.findings == (one,)
    assert case.trouble == (30 if one.severity == "page" else None)
