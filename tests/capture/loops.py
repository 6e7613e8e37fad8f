"""Training loops for the tests of gradients: a watched model whose gradients a test reads for itself, in float64."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resmon.capture.loop.session import Session
from resmon.records import BLOCK_VALUES, Incident, ResidualSite, ScalarRecord, StepRecord, clip_factor
from tests.capture import models

GRADIENT, OUTPUT_GRADIENT = map(BLOCK_VALUES.index, ("gradient_square", "output_gradient_square"))

Norms = dict[str, float]  # squared norms of gradients by parameter

watching: list[Session] = []  # that conftest detaches when the test is over


class Memory:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.now: tuple[ResidualSite, ...] = ()
        self.steps: list[StepRecord] = []
        self.names: list[list[str]] = []  # of the sites at each of them
        self.logged: list[ScalarRecord] = []
        self.incidents: list[Incident] = []
        self.capsules: dict[str, bytes] = {}

    def sites(self, sites: Sequence[ResidualSite], groups: Sequence[str]) -> None:
        self.now = tuple(sites)

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)
        self.names.append([site.name for site in self.now])

    def scalars(self, record: ScalarRecord) -> None:
        self.logged.append(record)

    def incident(self, incident: Incident) -> None:
        self.incidents.append(incident)

    def stopped(self, error: OSError) -> None:
        """Nothing more comes."""

    def capsule(self, name: str, data: bytes) -> bool:
        self.capsules[name] = data
        return True

    @property
    def newest(self) -> StepRecord:
        return self.steps[-1]


def network(width: int = 16, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, width), models.TwoAdds(width), models.Alpha(width), nn.Linear(width, 4)).eval()


def watch(model: nn.Module | Mapping[str, nn.Module], optimizer: object, **settings: Any) -> tuple[Session, Memory]:
    sink = Memory()
    session = Session(model if isinstance(model, Mapping) else {"": model}, optimizer, **settings)  # type: ignore[arg-type]
    session.attach(sink)
    watching.append(session)
    return session, sink


def norms(model: nn.Module, scale: float = 1.0) -> Norms:
    """What the gradients are now, divided by `scale`."""
    return {
        name: float((p.grad.to_dense() if p.grad.is_sparse else p.grad).double().div(scale).square().sum())
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def assert_gradients(record: StepRecord, sites: Iterable[ResidualSite], expected: Norms, rel: float = 1e-5) -> None:
    """The record's norms are those of the expected squares, site by site and in all."""
    for i, site in enumerate(sites):
        squares = [expected[name] for name in site.parameters if name in expected]
        assert record.blocks_present[GRADIENT, i] == bool(squares), site.name
        if squares:
            np.testing.assert_allclose(record.blocks[GRADIENT, i], sum(squares), rtol=rel, err_msg=site.name)
    total = record.run_value("gradient_square")
    assert (total is None) == (not expected)
    if total is not None:
        np.testing.assert_allclose(total, sum(expected.values()), rtol=rel)


def factor(record: StepRecord) -> float | None:
    """By how much the gradients were clipped."""
    gradient, stepped = record.run_value("gradient_square"), record.run_value("stepped_square")
    return None if gradient is None or stepped is None else clip_factor(gradient, stepped)


def assert_same_training(train: Callable[[nn.Module, bool], list[object]], build: Callable[[], nn.Module] = network) -> None:
    """`train(model, watched)` ends in the same weights and random states, and says the same, to the last bit."""

    def run(watched: bool) -> tuple[list[object], dict[str, Tensor], list[object]]:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        model = copy.deepcopy(build()).train()
        said = train(model, watched)
        return said, model.state_dict(), [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]

    (said, weights, state), (bare_said, bare_weights, bare_state) = run(True), run(False)
    assert said == bare_said
    assert all(torch.equal(weights[name], bare_weights[name]) for name in weights)
    assert state == bare_state
