from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from resmon.detectors.options import Tuned
from resmon.detectors.overfitting import LEAST, WORSE, Overfitting, OverfittingOptions
from resmon.records import Finding, Floats
from tests.detectors import digits
from tests.detectors.scores import feed, noise, replay

EVERY = 10  # steps between validations


def logged(training: Floats, validation: Floats, score: str = "loss") -> Iterator[tuple[int, dict[str, float]]]:
    """Ten training values before each validation, of which they are the mean."""
    for k, (train, valid) in enumerate(zip(training, validation, strict=True)):
        for i in range(EVERY):
            yield k * EVERY + i, {score: float(train) * (0.9 + 0.2 * (i % 2))}
        yield k * EVERY + EVERY - 1, {f"val_{score}": float(valid)}


def said(training: Floats, validation: Floats, score: str = "loss") -> list[Finding]:
    return feed(Overfitting(), logged(training, validation, score))


def curves(count: int = 60, best: int = 20, worse: float = 0.02, level: float = 0.01, seed: int = 0) -> tuple[Floats, Floats]:
    """Both fall; validation turns at `best` and rises by `worse` with each validation."""
    k, random = np.arange(count), np.random.default_rng(seed)
    training = 0.02 + 2.0 * np.exp(-k / 10)
    validation = 0.3 + 2.0 * np.exp(-k / 6) + worse * np.maximum(0, k - best) + level * random.normal(0, 1, count)
    return training, validation


def test_validation_that_worsens_while_training_improves() -> None:
    training, validation = curves()
    (finding,) = said(training, validation)
    assert (finding.kind, finding.severity, finding.block, finding.runbook) == ("overfitting", "ticket", "", "overfitting")
    evidence = finding.evidence
    assert evidence["score"] == "loss"
    assert abs(evidence["best_step"] // EVERY - np.argmin(validation)) <= 2
    assert evidence["best"] == pytest.approx(validation.min(), abs=0.05)
    assert evidence["validation"] > evidence["best"] + 0.15
    assert evidence["training"] < evidence["training_at_best"]
    turned = finding.opened_step // EVERY
    assert 20 + WORSE <= turned <= 45
    assert "learns what it has seen by heart" in finding.summary


def test_an_accuracy_is_better_when_higher() -> None:
    training, validation = curves(worse=0.04)
    (finding,) = said(1 - training / 3, 1 - validation / 3, "accuracy")
    assert finding.evidence["best"] == pytest.approx(1 - validation.min() / 3, abs=0.02)
    assert finding.evidence["validation"] < finding.evidence["best"]


def test_training_that_worsens_too_is_no_overfitting() -> None:
    training, validation = curves()
    training[20:] = training[20] + 0.02 * np.arange(40)
    assert said(training, validation) == []


def test_a_plateau_is_none() -> None:
    training, validation = curves(worse=0.0, level=0.05)
    assert said(training, validation) == []


def test_a_rise_that_is_small_against_what_was_gained_is_none() -> None:
    training, validation = curves(worse=0.003, level=0.001)
    assert said(training, validation) == []


def test_nothing_is_said_of_few_validations() -> None:
    training, validation = curves(count=LEAST - 1, best=2, worse=1.0)
    assert said(training, validation) == []


def test_it_is_tuned() -> None:
    """Half the patience tells sooner; a larger part of what was gained is asked for, and nothing is said."""
    (usual,) = said(*curves())
    quick, slow = Tuned(OverfittingOptions(part=0.05, noises=3.0)), Tuned(OverfittingOptions(part=0.9))
    (sooner,) = feed(Overfitting(quick), logged(*curves()))
    assert sooner.opened_step < usual.opened_step
    assert feed(Overfitting(slow), logged(*curves())) == []


def test_one_that_comes_back_is_closed_and_the_end_closes() -> None:
    training, validation = curves(count=80)
    validation[50:] = validation[18:22].mean()
    opened, closed = said(training, validation)
    assert (opened.state, closed.state, opened.id) == ("opened", "closed", closed.id)
    assert "validation came back" in closed.summary
    detector = Overfitting()
    feed(detector, logged(*curves()))
    (ended,) = detector.end(599, 7.0)
    assert (ended.state, ended.step) == ("closed", 599)
    assert list(detector.end(599, 7.0)) == []


def test_the_batches_of_one_validation_are_one() -> None:
    """Their mean counts, not their number."""
    training, validation = curves()

    def batches() -> Iterator[tuple[int, dict[str, float]]]:
        for step, values in logged(training, validation):
            if "val_loss" in values:
                for part in (0.5, 1.0, 1.5):
                    yield step, {"val_loss": values["val_loss"] * part}
            else:
                yield step, values

    whole, split = said(training, validation), feed(Overfitting(), batches())
    assert [event.opened_step for event in split] == [event.opened_step for event in whole]
    assert split[0].evidence["best"] == pytest.approx(whole[0].evidence["best"])


@pytest.mark.parametrize("score", ["learning_rate", "something", "loss_scale"])
def test_what_has_no_better_direction_says_nothing(score: str) -> None:
    assert said(*curves(), score) == []


def test_several_scores_are_told_apart() -> None:
    training, validation = curves()
    both = [
        (step, values | {name.replace("loss", "error"): v for name, v in values.items()})
        for step, values in logged(training, validation)
    ]
    events = feed(Overfitting(), both)
    assert sorted(event.evidence["score"] for event in events) == ["error", "loss"]
    assert len({event.id for event in events}) == 2


def test_what_is_no_number_is_passed_over() -> None:
    training, validation = curves()
    validation[::5] = np.nan
    training[::7] = np.inf
    assert len(said(training, validation)) == 1
    assert said(training, np.full(60, np.nan)) == []


def healthy(seed: int, kind: str, count: int = 100) -> tuple[Floats, Floats]:
    """Falls to a plateau and wanders there, while training goes on."""
    random = np.random.default_rng(seed)
    k = np.arange(count)
    training = 0.02 + 2.0 * np.exp(-k / random.uniform(3, 30)) + 0.01 * np.abs(noise(random, count, "white"))
    plateau, gained = random.uniform(0.1, 2.0), random.uniform(0.5, 3.0)
    level = random.uniform(0.002, 0.03) * gained
    return training, plateau + gained * np.exp(-k / random.uniform(2, 20)) + level * noise(random, count, kind)


@pytest.mark.parametrize("runs", [80, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "most"), [("white", 0), ("heavy", 0), ("correlated", 1)])
def test_false_alarms_on_plateaus(kind: str, most: int, runs: int) -> None:
    assert sum(bool(said(*healthy(seed, kind))) for seed in range(runs)) <= most


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_real_overfit_is_found(seed: int, tmp_path: Path) -> None:
    """Forty digits learnt by heart."""
    folder = digits.train(tmp_path, seed=seed, optimizer="adam", rate=3e-3, steps=600, examples=40, validate_every=10)
    events = replay(folder, Overfitting())
    assert [event.kind for event in events] == ["overfitting"]
    assert events[0].evidence["best_step"] < 200


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adam", 1e-3)])
def test_a_real_healthy_training_is_silent(optimizer: str, rate: float, seed: int, tmp_path: Path) -> None:
    folder = digits.train(tmp_path, seed=seed, optimizer=optimizer, rate=rate, steps=300, validate_every=10)
    assert replay(folder, Overfitting()) == []
