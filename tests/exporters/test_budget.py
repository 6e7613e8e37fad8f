"""What a run exports stays below max_series, and what is folded is true."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.catalogue import BLOCK, CATALOGUE, MAXIMUM_WINDOW
from resmon.exporters.budget import BLOCK_SERIES, Budget, own_series
from resmon.exporters.maxima import Maxima
from resmon.exporters.prometheus import Prometheus
from resmon.exporters.ranks import BlockSums, Ranks
from resmon.exporters.stages import depths
from resmon.exporters.view import AgentView, BlockTable, RankView, RunView, Stage
from resmon.records import BLOCK_COUNTS, BLOCK_VALUES, Columns, Finding, Floats, ResidualSite, StepRecord
from resmon.statistics import Column
from tests.exporters import views
from tests.synthetic import Training, info, sites

MODELS = {"": "Net"}


class Followed:
    """A run as the agent follows it: every step goes through the budget, a view may be taken at any time."""

    def __init__(
        self, blocks: Sequence[ResidualSite], max_series: int, models: Mapping[str, str] = MODELS, ranks: int = 1, **more: object
    ) -> None:
        self.training = Training(blocks, groups=("decay", "rest"), drops=True)
        self.columns = Columns(tuple(blocks), self.training.groups)
        self.budget = Budget(max_series)
        self.merge, self.maxima = Ranks(), Maxima(views.MAXIMA, MAXIMUM_WINDOW)
        self.models, self.ranks = models, ranks
        self.scores: dict[str, float] = {"loss": 1.0}
        self.findings: list[Finding] = []

    @property
    def found(self) -> set[tuple[str, str]]:
        return {(finding.model, finding.block) for finding in self.findings}

    def claim(self) -> None:
        numbers = {"ranks": self.ranks, "scores": len(self.scores), "groups": 2, "findings": len(self.findings)}
        self.budget.claim(self.models, **numbers)

    def step(self, **what: object) -> StepRecord:
        record = self.record = self.training.step(**what)  # type: ignore[arg-type]
        self.merged = self.merge.step([(self.columns, record)] * self.ranks, self.ranks)
        self.maxima.push(self.merged.time, self.columns.sites, self.merged.gauges)
        self.claim()
        self.budget.step(self.merged, self.columns.sites, self.found)
        return record

    def grow(self, blocks: Sequence[ResidualSite]) -> None:
        """More blocks, after those that are there or between them."""
        old, self.training = self.training, Training(blocks, groups=("decay", "rest"), start=self.training.now, drops=True)
        places = [self.training.sites.index(site) for site in old.sites]
        self.training.steps = old.steps
        self.training.nonfinite[places], self.training.buckets[places], self.training.sums[places] = (
            old.nonfinite,
            old.buckets,
            old.sums,
        )
        self.columns = Columns(tuple(blocks), self.columns.groups)

    def whole(self) -> BlockTable:
        gauges: dict[str, Column] = dict(self.merged.gauges)
        gauges |= {f"{name}_max": column for name, column in self.maxima.columns(self.columns.sites).items()}
        gauges["depth"] = depths(self.columns.sites)
        return BlockTable(self.columns.sites, gauges, *self.merge.counters([(self.columns, self.record)])[1:])

    def table(self) -> BlockTable | None:
        self.claim()
        return self.budget.fold(self.whole(), self.columns.sites, self.merged, self.found)

    def view(self) -> AgentView:
        table = self.table()
        run = RunView(
            run="digits",
            info=info(models=dict(self.models)),
            outcome=None,
            ranks=tuple(RankView(rank, self.record, self.columns.groups) for rank in range(self.ranks)),
            blocks=table,
            watched=Counter(site.model for site in self.columns.sites),
            folded=self.budget.folded(),
            max_series=self.budget.max_series,
            gradient_norm=1.0,
            group_gradient_norms={"decay": 1.0, "rest": 2.0},
            clip_factor=1.0,
            scores=self.scores,
            loss_max=1.0,
            findings=tuple((finding, True) for finding in self.findings),
        )
        return views.agent(run)


def names(table: BlockTable | None) -> set[str]:
    assert table is not None
    return {row.name for row in table.rows if isinstance(row, ResidualSite)}


def row(table: BlockTable | None, name: str) -> int:
    assert table is not None
    return [row.name for row in table.rows].index(name)


def gauge(table: BlockTable | None, gauge: str, name: str) -> float | None:
    assert table is not None
    values, present = table.gauges[gauge]
    i = row(table, name)
    return float(values[i]) if present[i] else None


def finding(block: str, kind: str = "nonfinite") -> Finding:
    return Finding(f"{kind} {block}", "opened", kind, "page", "", block, 1, 1.0, 1, 1.0, "s", "e", "s", 0.9, "nonfinite")


def lines(content: str) -> list[str]:
    return [line for line in content.splitlines() if 'run="digits"' in line]


@given(
    st.one_of(st.integers(0, 3000), st.integers(0, 40)),
    st.integers(1, 64),
    st.integers(0, 200),
    st.integers(0, 30),
    st.one_of(st.integers(1, 20_000), st.integers(1, 2000)),
    st.booleans(),
    st.sampled_from(["", "application/openmetrics-text"]),
)
@settings(max_examples=60, deadline=None)
def test_the_lines_of_a_run_never_exceed_max_series(
    count: int, ranks: int, scores: int, findings: int, max_series: int, two: bool, accept: str
) -> None:
    """But for the run's own series, which are there whatever the limit is."""
    blocks = [*sites(count), *sites(count // 3, "b")] if two else sites(count)
    run = Followed(blocks, max_series, {"": "Net", "b": "Other"} if two else MODELS, ranks)
    run.scores |= {f"score {i}": 1.0 for i in range(scores)}
    run.findings = [finding(f"h.{i}") for i in range(findings)]
    run.step()
    content, _ = Prometheus().render(run.view(), accept)
    found = lines(content.decode())
    of_blocks = [line for line in found if line.startswith("resmon_block_")]
    (said,) = [line for line in found if line.startswith("resmon_run_series{")]
    assert float(said.rsplit(" ", 1)[1]) == len(found)
    assert f'resmon_run_series_limit{{run="digits"}} {float(max_series)}' in found
    assert len(found) - len(of_blocks) <= own_series(len(run.models), ranks, scores + 1, 2, findings)
    if len(found) > max_series:
        assert not of_blocks
    folded = sum(float(line.rsplit(" ", 1)[1]) for line in found if line.startswith("resmon_run_folded_blocks{"))
    exported = {line.split("{")[1] for line in of_blocks if line.startswith("resmon_block_skip_rms") and ".." not in line}
    assert folded == len(blocks) - len(exported)


def test_the_rooms_own_count_is_what_is_exported() -> None:
    """Every block gauge present, every value of the run: then the bound is met exactly but for what has no value here."""
    run = Followed(sites(10), 10_000, ranks=3)
    run.step()
    found = lines(Prometheus().render(run.view(), "")[0].decode())
    of_blocks = [line for line in found if line.startswith("resmon_block_")]
    assert len(of_blocks) == 10 * BLOCK_SERIES
    scores = 1  # the loss is a score, but has a family of its own
    absent = 5 * 3 + 6  # what the agent sees of each rank's process; gap, epoch, two of checkpoints and two of the end
    assert len(found) - len(of_blocks) == own_series(1, 3, 1, 2, 0) - scores - absent


def test_a_label_that_the_budget_does_not_know_is_an_error_of_this_test() -> None:
    for metric in CATALOGUE:
        if (
            metric.name != "resmon_run_info"
            and "run" in metric.labels
            and metric.labels != BLOCK
            and "finding" not in metric.labels
        ):
            assert set(metric.labels) <= {"run", "model", "rank", "score", "group", "phase", "target", "kind", "outcome"}


def test_where_all_blocks_fit_nothing_is_folded() -> None:
    run = Followed(sites(200), 10_000)
    run.step()
    whole, table = run.whole(), run.table()
    assert table is not None
    assert table.rows is whole.rows
    assert run.budget.folded() == {}


def test_what_is_folded_stays_so_when_the_run_exports_less() -> None:
    """A run at the edge: with one series less of its own every block would fit, and not with the next."""
    run = Followed(sites(100), own_series(1, 1, 2, 2, 0) + 100 * BLOCK_SERIES - 1)
    run.scores["accuracy"] = 1.0
    run.step()
    folded = run.table()
    del run.scores["accuracy"]
    run.step()
    table = run.table()
    assert table is not None and folded is not None
    assert len(table.rows) == len(folded.rows) == 99
    assert run.budget.fit == "folded"


def test_where_nothing_fits_the_runs_own_series_stay() -> None:
    run = Followed(sites(10), 40)
    run.step()
    view = run.view()
    assert view.runs[0].blocks is None
    content = Prometheus().render(view, "")[0].decode()
    assert 'resmon_loss{run="digits"} 1.0' in content
    assert 'resmon_run_folded_blocks{model="Net",run="digits"} 10.0' in content
    assert 'resmon_run_blocks{model="Net",run="digits"} 10.0' in content
    assert run.budget.fit == "none"
    enough = Followed(sites(10), run.budget.needed)
    enough.step()
    assert len(names(enough.table())) == 10


def folded_run(count: int = 100, named: int = 6, stages: int = 2) -> Followed:
    own = own_series(1, 1, 1, 2, 0)
    run = Followed(sites(count), own + BLOCK_SERIES * (named + stages))
    run.step()
    return run


def test_a_stage_holds_what_all_of_its_blocks_come_to() -> None:
    """Against the definitions, over the elements of all blocks together."""
    run = folded_run()
    run.step()
    table, whole, record = run.table(), run.whole(), run.record
    assert table is not None
    values = dict(zip(BLOCK_VALUES, record.blocks, strict=True))
    counts = dict(zip(BLOCK_COUNTS, record.counts, strict=True))
    for stage, members in (("h.0..h.49", slice(0, 50)), ("h.50..h.99", slice(50, 100))):
        total = {name: value[members].sum() for name, value in values.items()}
        elements = counts["elements"][members].sum()
        expected = {
            "skip_rms": np.sqrt(total["skip_square"] / elements),
            "branch_rms": np.sqrt(total["branch_square"] / elements),
            "output_rms": np.sqrt(total["output_square"] / elements),
            "branch_skip_ratio": np.sqrt(total["branch_square"] / total["kept_square"]),
            "growth": np.sqrt(total["output_square"] / total["skip_square"]),
            "alignment": total["product"] / np.sqrt(total["skip_square"] * total["branch_square"]),
            "keep_ratio": counts["kept"][members].sum() / counts["samples"][members].sum(),
            "gradient_norm": np.sqrt(values["gradient_square"][members].max()),
            "output_gradient_norm": np.sqrt(values["output_gradient_square"][members].max()),
            "output_peak": values["peak"][members].max(),
            "headroom": -np.log2(values["fill"][members].max()),
            "branch_skip_ratio_median": values["position_ratio"][members].mean(),
            "dead_unit_ratio": values["dead"][members].mean(),
            "activation_bytes": values["activation_bytes"][members].sum(),
            "depth": members.start,
            "norm_gap": values["norm_gap"][members].mean(),
            "norm_variance": values["norm_variance"][members].max(),
            "norm_collapsed_ratio": values["norm_collapsed"][members].mean(),
            **{f"{name}_max": whole.gauges[f"{name}_max"].values[members].max() for name in views.MAXIMA},
        }
        assert {name: gauge(table, name, stage) for name in table.gauges} == pytest.approx(expected, rel=1e-12)
        i = row(table, stage)
        assert table.nonfinite_steps[i] == record.nonfinite_steps[members].sum()
        assert (table.magnitude_buckets[i] == record.magnitude_buckets[members].sum(axis=0)).all()
        assert table.magnitude_sum[i] == pytest.approx(record.magnitude_sum[members].sum())
    for name in names(table):
        i, j = row(table, name), int(name.removeprefix("h."))
        assert all(gauge(table, key, name) == column.values[j] for key, column in whole.gauges.items())
        assert (table.magnitude_buckets[i] == record.magnitude_buckets[j]).all()


def test_nan_in_a_stage_is_flagged_and_absence_is_left_out() -> None:
    run = folded_run()
    absent = [("branch_square", i) for i in range(50)] + [("gradient_square", i) for i in range(50, 99)]
    run.step(values={("gradient_square", 7): np.nan, ("gradient_square", 99): 25.0}, absent=absent)
    table = run.table()
    assert np.isnan(gauge(table, "gradient_norm", "h.0..h.49") or 0.0)
    assert gauge(table, "gradient_norm", "h.50..h.99") == 5.0
    assert gauge(table, "branch_rms", "h.0..h.49") is None
    assert gauge(table, "branch_skip_ratio", "h.0..h.49") is None
    assert gauge(table, "branch_rms", "h.50..h.99") is not None


sums = st.integers(1, 30).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, 2**32 - 1)))


@given(sums)
@settings(deadline=None)
def test_folding_of_folded_is_folding_of_all(drawn: tuple[int, int]) -> None:
    """Where every value is there, a stage of stages is the stage of their blocks, but for means of means."""
    count, seed = drawn
    random = np.random.default_rng(seed)
    present = np.ones((len(BLOCK_VALUES), 2 * count), bool)
    values: Floats = random.uniform(0, 9, present.shape)
    numbers = random.integers(1, 9, (len(BLOCK_VALUES), 2 * count))
    all_of_them = BlockSums(values, present, numbers, random.integers(1, 9, (len(BLOCK_COUNTS), 2 * count)))
    halves = all_of_them.folded(np.array([0, count])).folded(np.array([0])).statistics()
    for name, (value, there) in all_of_them.folded(np.array([0])).statistics().items():
        assert (halves[name].values == pytest.approx(value, nan_ok=True)) and (halves[name].present == there).all()


def test_no_counter_goes_back_whatever_is_named_or_appears() -> None:
    """Blocks come and go by name, blocks appear, scores appear, stages are cut anew: each series only grows."""
    random = np.random.default_rng(0)
    everything = sites(160)
    run = folded_run(100, named=9, stages=3)
    run.grow(everything[:100])
    seen: dict[str, tuple[int, np.ndarray, float]] = {}
    stages = set()
    for step in range(400):
        if step == 100:
            run.grow(everything[:130])
        if step == 200:  # in the middle
            more = [replace(site, name=f"{site.name}.again") for site in everything[:20]]
            run.grow([site for pair in zip(everything[:20], more, strict=True) for site in pair] + list(everything[20:130]))
        if step == 300:
            run.scores["accuracy"] = 1.0
        forward = random.integers(0, len(run.columns.sites), int(random.integers(0, 3)))
        run.step(forward=forward.tolist(), time=run.training.now + 60.0)
        if random.random() < 0.5:
            continue  # nobody looks
        table = run.table()
        assert table is not None
        stages |= {row.name for row in table.rows if isinstance(row, Stage)}
        for i, label in enumerate(row.name for row in table.rows):
            now = int(table.nonfinite_steps[i]), table.magnitude_buckets[i], float(table.magnitude_sum[i])
            before = seen.get(label, (0, np.zeros_like(now[1]), 0.0))
            assert now[0] >= before[0] and (now[1] >= before[1]).all() and now[2] >= before[2], label
            seen[label] = now
    assert len([name for name in seen if ".." not in name]) > 20  # many were named, for a while
    assert len(stages) > 2


def test_the_names_stay_and_the_stages_are_the_same_at_any_time() -> None:
    """A thousand blocks of noise within the default limit, for an hour and a half of steps."""
    run = Followed(sites(1000), 10_000)
    labels: set[str] = set()
    for _ in range(300):
        run.step(time=run.training.now + 18.0)
        table = run.table()
        assert table is not None
        labels |= {row.name for row in table.rows}
    assert len(table.rows) == run.budget.room
    assert len(labels) <= 1.05 * run.budget.room


def test_looking_changes_nothing() -> None:
    """What is named comes from the records: scrapes, or an agent that reads the flight again, make no difference."""
    often, seldom = folded_run(), folded_run()
    often.table()
    for step in range(200):
        for run in (often, seldom):
            run.step(values={("gradient_square", step % 7): 1e9} if step % 50 == 20 else {})
        often.table()
        often.table()
    assert names(often.table()) == names(seldom.table())


def test_a_block_that_goes_wrong_is_named_and_stays_in_its_stage() -> None:
    run = folded_run()
    before = run.table()
    victim = next(i for i in range(100) if f"h.{i}" not in names(before))
    run.step(forward=[victim])
    after = run.table()
    assert f"h.{victim}" in names(after)
    stage = "h.0..h.49" if victim < 50 else "h.50..h.99"
    assert after is not None
    assert after.nonfinite_steps[row(after, stage)] == after.nonfinite_steps[row(after, f"h.{victim}")] == 1
    assert len(after.rows) == run.budget.room


def test_a_block_with_a_finding_is_named_without_another_step() -> None:
    """A run may end with the very step that a finding is of."""
    run = folded_run()
    victim = next(f"h.{i}" for i in range(100) if f"h.{i}" not in names(run.table()))
    run.claim()
    table = run.budget.fold(run.whole(), run.columns.sites, run.merged, {("", victim)})
    assert victim in names(table)


def test_no_stage_has_the_name_of_a_block_and_no_label_is_there_twice() -> None:
    blocks = [
        replace(site, name=name) for site, name in zip(sites(60), ["h.0..h.29", *map(str, range(58)), "h.0..h.29#2"], strict=True)
    ]
    blocks[0], blocks[29] = replace(blocks[0], name="h.0"), replace(blocks[29], name="h.29")
    blocks[5] = replace(blocks[5], name="h.0..h.29")
    run = Followed(blocks, own_series(1, 1, 1, 2, 0) + 8 * BLOCK_SERIES)
    run.step()
    table = run.table()
    assert table is not None
    stages = {row.name for row in table.rows if isinstance(row, Stage)}
    assert len(stages) == 2 and not stages & {site.name for site in blocks}
    assert "h.0..h.29#3" in stages


def test_a_label_stands_for_one_block_whoever_else_is_named() -> None:
    """Two models under one label value: a block's series must not become another's when the other is no longer named."""
    run = Followed([*sites(50, "a"), *sites(50, "b")], own_series(2, 1, 1, 2, 0) + 6 * BLOCK_SERIES, {"a": "Net", "b": "Net"})
    run.step()
    run.step(forward=[50 + 33])
    table = run.table()
    labels = {(row.model, row.name) for row in table.rows} if table else set()
    assert ("b", "h.33#2") in labels and ("b", "h.33") not in labels
    content = Prometheus().render(run.view(), "")[0].decode()
    sets = [line.rsplit(" ", 1)[0] for line in content.splitlines() if not line.startswith("#")]
    assert len(sets) == len(set(sets))


def test_the_stages_hold_every_block_once() -> None:
    blocks = [replace(site, kind="identity" if i % 10 else "projection") for i, site in enumerate(sites(100))]
    run = Followed(blocks, own_series(1, 1, 1, 2, 0) + 80 * BLOCK_SERIES)
    for _ in range(3):
        run.step(forward=range(100))
    table, whole = run.table(), run.whole()
    assert table is not None
    stages = [i for i, row in enumerate(table.rows) if isinstance(row, Stage)]
    assert "h.0..h.0" in {table.rows[i].name for i in stages}
    assert table.nonfinite_steps[stages].sum() == whole.nonfinite_steps.sum() == 300
    assert (table.magnitude_buckets[stages].sum(axis=0) == whole.magnitude_buckets.sum(axis=0)).all()


def test_the_formula_that_leaves_stages_out_is_the_one_of_the_documentation() -> None:
    from resmon.exporters import budget

    run = folded_run()
    table = run.table()
    pattern = re.compile(r".*[.][.].*")
    assert pattern.pattern in (budget.__doc__ or "")
    assert table is not None
    assert all(bool(pattern.fullmatch(row.name)) == isinstance(row, Stage) for row in table.rows)
