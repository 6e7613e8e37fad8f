"""The view of a run: what it keeps, what it marks, what it prints in which width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from resmon.exporters.ranks import Ranks
from resmon.records import BLOCK_VALUES, Columns, Finding, ResidualSite, RunEnd, ScalarRecord, StepRecord
from resmon.terminal.view import BARS, Trace, View, frame, sparkline
from tests.synthetic import Training, info, run_values, sites

SKIP, BRANCH = BLOCK_VALUES.index("skip_square"), BLOCK_VALUES.index("branch_square")


def with_ratios(record: StepRecord, ratios: list[float]) -> StepRecord:
    blocks = record.blocks.copy()
    blocks[SKIP] = 32.0
    blocks[BRANCH] = 32.0 * np.square(ratios)
    return replace(record, blocks=blocks)


def view_of(records: list[StepRecord], made: tuple[ResidualSite, ...], **changes: object) -> View:
    ranks, view = Ranks(), View("digits", info=info(started=1000.0))
    for record in records:
        view = view.stepped([(Columns(made), record)], ranks)
    return replace(view, **changes)  # type: ignore[arg-type]


def text(view: View, width: int = 100, height: int | None = None, now: float = 1042.0) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115, PTH123
    console.print(frame(view, width, height, now))
    return console.export_text()


def row(shown: str, block: str) -> str:
    return next(line for line in shown.splitlines() if f" {block} " in line)


def a_finding(block: str, state: str = "opened", summary: str = "it is not finite") -> Finding:
    return Finding("1", state, "nonfinite", "page", "", block, 7, 0.0, 7, 0.0, summary, "", "", 1.0, "nonfinite")  # type: ignore[arg-type]


def test_a_trace_keeps_the_whole_course_in_bounded_room() -> None:
    trace: Trace[int] = Trace(100)
    for number in range(100_000):
        trace = trace.add(number)
    assert 50 <= len(trace.kept) <= 100
    assert trace.kept[0] == 0 and trace.kept[-1] > 99_000 - trace.stride
    assert set(np.diff(trace.kept)) == {trace.stride}


def test_errors_of_the_monitors_own_are_told() -> None:
    made = sites(2)
    record = Training(made).step()
    assert "of its own" not in text(view_of([record], made))
    assert "resmon has met 1 error of its own; resmon takes 0.4 %" in text(view_of([replace(record, errors_total=1)], made))
    assert "resmon has met 3 errors of its own" in text(view_of([replace(record, errors_total=3)], made))


def test_a_frame_shows_what_the_record_says() -> None:
    made = sites(2)
    training = Training(made)
    view = view_of([with_ratios(training.step(), [0.5, 0.25])], made).logged(
        ScalarRecord(0, 0.0, {"loss": 0.6931, "accuracy": 0.9})
    )
    shown = text(view)
    assert "digits  attempt 1  Net" in shown and "● running  0:00:42" in shown
    assert "step 0   steps/s 4.00   learning rate 0.100   gradient 2.00   accuracy 0.900" in shown
    assert "loss 0.693" in shown
    assert "resmon takes 0.4 % of a step, 500 µs a block" in shown  # 1 ms of 250 ms, two blocks
    assert row(shown, "h.0").split()[2] == "0.500"
    assert row(shown, "h.1").split()[-4:-1] == [
        "1.00",
        "0.250",
        f"{np.sqrt(view.record.blocks[BLOCK_VALUES.index('gradient_square'), 1]):.2f}",
    ]  # type: ignore[union-attr]


def test_the_worst_is_furthest_from_its_own_median_not_largest() -> None:
    made = sites(3)
    training = Training(made)
    records = [with_ratios(training.step(), [5.0, 0.1, 1.0]) for _ in range(20)]
    shown = text(view_of([*records, with_ratios(training.step(), [5.0, 0.4, 1.0])], made))
    assert "◀ worst" in row(shown, "h.1")
    assert shown.count("◀ worst") == 1
    assert "by a factor of 4.00" in shown


def test_a_shrinking_block_is_as_far_as_a_growing_one() -> None:
    made = sites(2)
    training = Training(made)
    records = [with_ratios(training.step(), [1.0, 1.0]) for _ in range(20)]
    view = view_of([*records, with_ratios(training.step(), [0.5, 2.0])], made)
    np.testing.assert_allclose(view.deviation(), np.log(2.0))


def test_the_first_nonfinite_block_comes_before_any_ratio() -> None:
    made = sites(4)
    training = Training(made)
    records = [with_ratios(training.step(), [1.0] * 4) for _ in range(5)]
    bad = training.step(forward=[2, 3])
    shown = text(view_of([*records, with_ratios(bad, [900.0, 1.0, 1.0, 1.0])], made))
    assert "◀ worst" in row(shown, "h.2")
    assert "where to look first of 2 blocks with non-finite values" in shown


def test_of_nonfinite_blocks_the_one_that_a_finding_names_is_marked() -> None:
    made = sites(4)
    view = view_of([Training(made).step(forward=[0, 1, 2, 3])], made).found(replace(a_finding("h.2"), model=""))
    assert "◀ worst" in row(text(view), "h.2")


def test_where_not_all_have_room_the_block_that_is_marked_has() -> None:
    made = sites(9)
    view = view_of([Training(made).step(forward=range(9))], made).found(replace(a_finding("h.8"), model=""))
    shown = text(view, height=20)
    assert "blocks of 9" in shown
    assert "◀ worst" in row(shown, "h.8")


def test_absent_values_are_a_dash_and_nan_is_nan() -> None:
    made = sites(2)
    training = Training(made)
    absent = [("skip_square", 0), ("branch_square", 0), ("gradient_square", 0)]
    shown = text(view_of([training.step(absent=absent, values={("gradient_square", 1): np.nan})], made))
    assert row(shown, "h.0").count("–") == 4
    assert "nan" in row(shown, "h.1") and "–" not in row(shown, "h.1")


def test_zero_is_a_value() -> None:
    made = sites(1)
    view = view_of([with_ratios(Training(made).step(), [0.0])], made)
    assert row(text(view), "h.0").split()[2] == "0"
    assert view.deviation().tolist() == [0.0]


def test_sites_that_appear_start_the_medians_anew() -> None:
    few, more = sites(1), sites(2)
    ranks, view = Ranks(), View("digits")
    view = view.stepped([(Columns(few), with_ratios(Training(few).step(), [1.0]))], ranks)
    view = view.stepped([(Columns(more), with_ratios(Training(more).step(), [3.0, 1.0]))], ranks)
    assert view.deviation().tolist() == [0.0, 0.0]


def test_a_thousand_blocks_fold_to_the_worst() -> None:
    made = sites(1000)
    training = Training(made)
    records = [with_ratios(training.step(), [1.0] * 1000) for _ in range(5)]
    shown = text(view_of([*records, with_ratios(training.step(), [1.0] * 700 + [9.0] + [1.0] * 299)], made), 80, 24)
    assert len(shown.splitlines()) <= 24
    assert "◀ worst" in row(shown, "h.700")
    assert "12 blocks of 1,000" in shown


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("count", [0, 1, 9, 1000])
def test_no_line_is_wider_than_the_terminal(width: int, count: int) -> None:
    made = tuple(replace(site, name=site.name + ".long" * 40) for site in sites(count))
    view = view_of([Training(made).step()], made, goal=60.0).found(a_finding("h.0", summary="word " * 60))
    view = view.logged(ScalarRecord(0, 0.0, {"loss": 1.0} | {f"score {n}": n * 1e-9 for n in range(30)}))
    assert max(len(line) for line in text(view, width).splitlines()) <= width


@pytest.mark.parametrize("width", [60, 76, 80, 96, 120])
def test_each_block_is_told_from_its_neighbours_at_any_width(width: int) -> None:
    names = [f"bert.encoder.layer.{i}.{part}" for i in (0, 10) for part in ("attention", "output.dense")]
    made = tuple(replace(site, name=name) for site, name in zip(sites(4), names, strict=True))
    records = [with_ratios(Training(made).step(), [0.5] * 4) for _ in range(3)]
    lines = text(view_of([*records, with_ratios(Training(made).step(), [0.5, 0.5, 0.5, 5.0])], made), width).splitlines()
    shown = [line for line in lines if ".attention " in line or ".output.dense " in line]
    ends = ["0.attention", "0.output.dense", "10.attention", "10.output.dense"]
    assert [line.split()[1].removeprefix("bert.encoder.layer.").removeprefix("…") for line in shown] == ends
    assert [("◀" in line) for line in shown] == [False, False, False, True]
    assert "…" not in " ".join(word for line in shown for word in line.split()[2:])


def test_findings_stand_in_the_frame_newest_state_each() -> None:
    made = sites(2)
    view = view_of([Training(made).step()], made).found(a_finding("h.1")).found(a_finding("h.1", "updated", summary="worse now"))
    shown = text(view)
    assert "✖ nonfinite in block h.1 at step 7: worse now" in shown
    assert "it is not finite" not in shown


def test_of_several_models_a_finding_says_whose_block_it_is() -> None:
    made = (*sites(2, model="g"), *sites(2, model="d"))
    view = view_of([Training(made).step()], made).found(replace(a_finding("h.1"), model="d"))
    assert "nonfinite in block d:h.1 at step 7" in text(view)


def test_the_end_says_how() -> None:
    made = sites(1)
    shown = text(view_of([Training(made).step()], made, end=RunEnd("killed", 1100.0, 0), goal=60.0))
    assert "■ killed  0:01:40" in shown
    assert "of 60 s" not in shown


def test_before_the_first_step_and_without_blocks() -> None:
    assert "waiting for the first step" in text(View("digits"))
    assert "no residual block" in text(view_of([Training(()).step()], ()))


def test_progress_is_against_the_goal() -> None:
    made = sites(1)
    assert "42 of 60 s" in text(view_of([Training(made).step()], made, goal=60.0), now=1042.0)
    assert "60 of 60 s" in text(view_of([Training(made).step()], made, goal=60.0), now=2000.0)


def test_two_ranks_are_merged_from_their_sums() -> None:
    made = sites(1)
    records = [with_ratios(Training(made).step(), [ratio]) for ratio in (1.0, 7.0)]
    view = View("digits").stepped([(Columns(made), record) for record in records], Ranks())
    assert row(text(view), "h.0").split()[2] == "5.00"  # the root of (1 + 49) / (1 + 1)


def test_one_rank_that_is_watched_speaks_for_replicas() -> None:
    """Of shards it cannot, and the sum of what is there would be too small."""
    made = sites(1)
    for replicas in (2.0, 1.0):
        record = replace(Training(made).step(values={("gradient_square", 0): 32.0}), run=run_values(replicas=replicas))
        view = View("digits", info(world_size=2)).stepped([(Columns(made), record)], Ranks())
        assert row(text(view), "h.0").split()[6] == ("8.00" if replicas == 2 else "–"), text(view)


def test_names_from_a_file_cannot_steer_the_terminal() -> None:
    made = tuple(replace(site, name="a\x1b[2Jb\nc") for site in sites(1))
    view = view_of([Training(made).step()], made).found(a_finding("x\x1b]0;title\x07y"))
    shown = text(replace(view, run="run\r\x1b[31m[bold]x"))
    assert "\x1b" not in shown and "\r" not in shown and "\x07" not in shown
    assert "[bold]x" in shown  # nor rich


def test_sparkline() -> None:
    assert sparkline([1.0, 2.0, 3.0], 10) == BARS[0] + BARS[3] + BARS[7]
    assert sparkline([5.0] * 3, 10) == BARS[0] * 3
    assert sparkline([1.0, float("nan"), float("inf")], 10) == BARS[0] + "✖✖"
    assert sparkline([], 10) == "" == sparkline([1.0], 0)
    assert len(sparkline(list(range(1000)), 40)) == 40
    decades = sparkline([10.0**-n for n in range(8)], 8)
    assert decades == "".join(reversed(BARS))  # a loss that spans decades is drawn on a logarithmic scale


def test_of_many_findings_pages_stay_then_what_is_open_then_the_newest() -> None:
    training = Training(sites(2))
    view = view_of([training.step()], training.sites)
    for step in range(12):
        severity, state = ("page" if step == 1 else "ticket"), ("opened" if step in (1, 2) else "closed")
        made = replace(
            a_finding("h.0", state, f"number {step} of them"), id=str(step), kind="change", severity=severity, opened_step=step
        )
        view = view.found(made)
    shown = text(view)
    assert [step for step in range(12) if f"number {step} of them" in shown] == [1, 2, 8, 9, 10, 11]
    assert "6 findings more" in shown
