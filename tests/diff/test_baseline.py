from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from resmon.cli import application
from resmon.diff import baseline
from resmon.diff.baseline import BINS, Baseline, Block, compare, design_effect
from resmon.errors import ConfigurationError
from resmon.records import MAGNITUDE_EDGES, Floats, Ints
from tests.failing import Training, normed

MEAN = np.exp(-(((np.arange(BINS) - 18) / 2.5) ** 2)) + 1e-12


def parts(
    random: np.random.Generator, number: int = 32, size: int = 2000, spread: float | None = None, mean: Floats = MEAN
) -> Ints:
    """Histograms of parts; with `spread` the samples of a part go together."""
    share = mean / mean.sum()
    shares = random.dirichlet(share * spread, number) if spread else np.tile(share, (number, 1))
    return np.stack([random.multinomial(size, each) for each in shares])


def block(table: Ints, name: str = "h.0") -> Block:
    return Block(
        model="",
        name=name,
        histogram=table.sum(axis=0).tolist(),
        nonfinite=0,
        design_effect=design_effect(table),
        parts=len(table),
        medians={},
    )


def of(*blocks: Block, run: str = "run") -> Baseline:
    return Baseline(
        format="resmon-baseline",
        version=1,
        run=run,
        first_step=0,
        last_step=511,
        resmon="0",
        edges=MAGNITUDE_EDGES.tolist(),
        blocks=list(blocks),
    )


@pytest.mark.parametrize("spread", [None, 400.0])
def test_samples_that_go_together_count_less(spread: float | None) -> None:
    """1 where they are independent; size / (spread + 1) + 1 for Dirichlet-multinomial counts."""
    random = np.random.default_rng(1)
    found = np.mean([design_effect(parts(random, spread=spread)[:, 12:25]) for _ in range(50)])
    assert found == pytest.approx(1.0 if spread is None else 1 + 1999 / 401, rel=0.15)


@pytest.mark.parametrize("spread", [None, 400.0])
def test_probabilities_are_as_often_as_they_say(spread: float | None) -> None:
    """Both sides from one source: a p below 0.05 in one of twenty, whether samples go together or not."""
    random = np.random.default_rng(2)
    mean = np.where(np.abs(np.arange(BINS) - 18) < 5, MEAN, 0.0) + 1e-9
    found = compare(
        of(*(block(parts(random, spread=spread, mean=mean), f"h.{i}") for i in range(400))),
        of(*(block(parts(random, spread=spread, mean=mean), f"h.{i}") for i in range(400))),
    )
    p = np.array([row.p for row in found.rows])
    assert 0.01 <= np.mean(p < 0.05) <= 0.09
    assert np.mean(p < 0.001) <= 0.01
    assert not found.drifted


def test_what_has_drifted_is_told_from_what_is_only_significant() -> None:
    random = np.random.default_rng(3)
    same = [block(parts(random), f"h.{i}") for i in range(3)]
    little, much = 0.9 * MEAN + 0.1 * np.roll(MEAN, 1), np.roll(MEAN, 2)
    found = compare(
        of(block(parts(random), "h.0"), block(parts(random, mean=little), "h.1"), block(parts(random, mean=much), "h.2")),
        of(*same, run="base"),
    )
    assert [row.verdict for row in found.rows] == ["same", "shifted", "drifted"]
    assert found.rows[2].wasserstein == pytest.approx(2, abs=0.1)
    assert "1 of 3 blocks of run have drifted from the baseline of base: most h.2" in baseline.sentence(found)


def test_other_models_have_nothing_to_compare() -> None:
    table = parts(np.random.default_rng(0))
    with pytest.raises(ConfigurationError, match=r"no block in common \(h.0 beside layer.0\)"):
        compare(of(block(table)), of(block(table, "layer.0")))
    found = compare(of(block(table), block(table, "h.1")), of(block(table), block(table, "h.9")))
    assert found.missing == ["h.1", "h.9"] and [row.verdict for row in found.rows] == ["same"]


def test_it_comes_back_as_it_was_and_is_not_written_over(tmp_path: Path) -> None:
    made, path = of(block(parts(np.random.default_rng(0)))), tmp_path / "base.json"
    baseline.save(made, path)
    assert baseline.load(path) == made
    with pytest.raises(ConfigurationError, match="is there already"):
        baseline.save(made, path)
    baseline.save(made, path, force=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "its format is not"),
        ({"version": 2}, "version 2; this resmon reads 1"),
        ({"edges": [1.0, 2.0]}, "other edges"),
        ({"blocks": []}, "blocks: List should have at least 1 item"),
        ({"blocks": [{"model": "", "name": "h"}]}, "histogram: Field required"),
        ({"more": 1}, "more: Extra inputs"),
        ({"first_step": -1}, "first_step"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps(json.loads(of(block(parts(np.random.default_rng(0)))).model_dump_json()) | change))
    with pytest.raises(ConfigurationError, match=message):
        baseline.load(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff\x00"])
def test_a_file_that_is_no_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "base.json"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match="is no baseline"):
        baseline.load(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        baseline.load(tmp_path / "nothing.json")


def negative(histogram: list[int]) -> list[int]:
    return [-1, *histogram[1:]]


def test_counts_are_not_negative(tmp_path: Path) -> None:
    made = json.loads(of(block(parts(np.random.default_rng(0)))).model_dump_json())
    made["blocks"][0]["histogram"] = negative(made["blocks"][0]["histogram"])
    path = tmp_path / "base.json"
    path.write_text(json.dumps(made))
    with pytest.raises(ConfigurationError, match=r"blocks.0.histogram.0"):
        baseline.load(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is settled, the same model served on the same data, and on others that are four times as large."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    training = Training("trained", str(folder), normed(), agent="off")
    training.train(200)
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0
    training.train(400)
    training.monitor.close()
    for name, factor in (("served", 1.0), ("drifting", 4.0)):
        served = Training(name, str(folder), training.model, rate=0.0, agent="off")
        served.centres = training.centres
        for _ in range(400):
            x, labels = served.batch()
            served.step(factor * x, labels)
        served.monitor.close()
    return folder


def command(*words: str, width: int = 200) -> tuple[int, str]:
    result = CliRunner().invoke(application(), ["baseline", *words], env={"COLUMNS": str(width)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_model_that_is_served_beside_its_training(runs: Path, tmp_path: Path) -> None:
    name, where = str(tmp_path / "base"), ("--directory", str(runs))
    status, printed = command("save", name, "trained", "--steps", "208:", *where)
    assert status == 0 and "3 blocks of trained" in printed
    status, printed = command("compare", "served", name, *where)
    assert status == 0 and "No block of served has drifted from the baseline of trained (3 blocks compared)." in printed
    _, narrow = command("compare", "served", name, *where, width=60)
    numbers = {word for line in printed.splitlines()[1:4] for word in line.split()[2:]}
    assert len(numbers) > 8 and numbers <= set(narrow.split()), "no number is cut or broken"
    status, printed = command("compare", "drifting", name, "--json", *where)
    assert status == 1
    found = json.loads(printed)
    assert found["drifted"] >= 1 and found["rows"][0]["block"] == "1"
    assert found["rows"][0]["population_stability"] > 0.1 and found["rows"][0]["q"] < 1e-6
    with pytest.raises(ConfigurationError, match="is there already"):
        command("save", name, "trained", *where)


def test_a_stretch_without_steps(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has too little between steps 9,000 and 9,999"):
        command("save", str(tmp_path / "base"), "trained", "--steps", "9000:9999", "--directory", str(runs))


def test_what_is_kept_of_a_block(runs: Path) -> None:
    found = baseline.measure(runs / "trained" / "attempt-0001", 208)
    (first, *_) = found.blocks
    assert (found.first_step, found.last_step) == (208, 599)
    assert first.name == "1" and first.design_effect >= 1 and first.parts == 25
    assert sum(first.histogram) == 25 * 16 * 512 - 8 * 512, "every element of 16 rows of 32"
    assert first.medians["branch_skip_ratio"] == pytest.approx(first.medians["branch_rms"] / first.medians["skip_rms"], rel=0.1)
