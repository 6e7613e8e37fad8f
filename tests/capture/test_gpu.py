"""On a real GPU: numbers against float64 of the very operands, and nothing that waits for the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from resmon.capture.probes.positions import EVERY
from resmon.records import BLOCK_VALUES
from tests.capture import models
from tests.capture.loop.test_session import assert_operands
from tests.capture.loops import Memory, assert_gradients, norms, watch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device is there", allow_module_level=True)

GPU = torch.device("cuda")


@pytest.fixture
def nothing_waits() -> Iterator[Callable[[bool], None]]:
    """While it is on, whatever waits for the device raises an error."""

    def guard(on: bool) -> None:
        torch.cuda.set_sync_debug_mode("error" if on else "default")

    yield guard
    guard(False)


def images(seed: int = 0) -> Tensor:
    return models.images(8, seed=seed).to(GPU)


def settled(session: object) -> None:
    torch.cuda.synchronize()
    session._outbox.look()  # type: ignore[attr-defined]


def run(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(images(seed)).square().mean().backward()
    optimizer.step()


def test_operands_and_gradients_equal_float64() -> None:
    model = models.mixed().to(GPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, sink = watch(model, optimizer)
    for i in range(4):
        run(model, optimizer, i)
        settled(session)
        assert_operands(sink.newest, models.kept(model))
        assert_gradients(sink.newest, sink.now, norms(model))
        assert sink.newest.magnitude_buckets.sum() > 0


def test_nothing_waits_for_the_device(nothing_waits: Callable[[bool], None]) -> None:
    model = models.mixed().to(GPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    session, sink = watch(model, optimizer)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    batches = [images(i) for i in range(8)]
    for i, batch in enumerate(batches):
        if i == 3:  # tracing and the first steps of scaler and optimizer are over
            nothing_waits(True)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = model(batch).square().mean()
        scaler.scale(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        session.log({"loss": loss})
    nothing_waits(False)
    settled(session)
    assert sink.newest.errors_total == 0 and sink.newest.steps_total == 8
    assert sink.newest.blocks_present[:5].all() and sink.newest.run_value("stepped_square") is not None
    assert sink.newest.run_value("loss_scale") == 4.0
    assert sink.logged[-1].values["loss"] == pytest.approx(float(loss))


def test_training_is_the_same_to_the_last_bit() -> None:
    def train(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = models.mixed().to(GPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if watched:
            watch(model, optimizer)
        torch.backends.cudnn.deterministic = True
        for i in range(20):
            run(model, optimizer, i)
        return [parameter.detach().clone() for parameter in model.parameters()]

    assert all(map(torch.equal, train(True), train(False)))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.relu(self.up(self.norm(x))))

    def watched(compiled: bool) -> Memory:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), *(Block() for _ in range(3)), nn.Linear(64, 8)).to(GPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        session, sink = watch(model, optimizer)
        called = torch.compile(model, mode=mode) if compiled else model
        for i in range(6):
            if mode == "reduce-overhead" and compiled:
                torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            called(torch.randn(32, 64, generator=torch.Generator().manual_seed(i)).to(GPU)).square().mean().backward()
            optimizer.step()
        settled(session)
        return sink

    eager, compiled = watched(False), watched(True)
    for expected, found in zip(eager.steps, compiled.steps, strict=True):
        assert found.blocks_present[:5].all() and found.errors_total == 0
        assert found.blocks[:5] == pytest.approx(expected.blocks[:5], rel=1e-3)
        assert found.magnitude_buckets.sum() == expected.magnitude_buckets.sum()


def test_a_model_that_moves_between_devices_is_observed_on() -> None:
    model = models.mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, sink = watch(model, optimizer)
    for i, device in enumerate(("cpu", GPU, "cpu")):
        model.to(device)
        optimizer.zero_grad()
        model(models.images(8, seed=i).to(device)).square().mean().backward()
        optimizer.step()
        settled(session)
        assert_operands(sink.newest, models.kept(model))


def test_a_captured_graph_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).to(GPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    twin = copy.deepcopy(model)
    watch(model, optimizer)
    static = torch.randn(4, 16, device=GPU)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.zero_grad()
            model(static).square().mean().backward()
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        model(static).square().mean().backward()
        optimizer.step()
    graph.replay()
    assert "CUDA graph" in caplog.text
    assert not torch.equal(model[0].weight, twin[0].weight)


def test_batch_norms_and_inputs_are_those_of_main_memory(nothing_waits: Callable[[bool], None]) -> None:
    values = [BLOCK_VALUES.index(name) for name in ("norm_gap", "norm_variance", "norm_collapsed")]
    start = models.mixed().train()
    found = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(start).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        session, sink = watch(model, optimizer)
        batches = [models.images(8, seed=i).to(device) for i in range(EVERY + 2)]
        for i, batch in enumerate(batches):
            nothing_waits(device == "cuda" and i >= 3)
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        nothing_waits(False)
        settled(session)
        found.append(sink.newest)
    here, there = found
    assert there.blocks_present[values].any() and (there.blocks_present[values] == here.blocks_present[values]).all()
    assert there.blocks[values] == pytest.approx(here.blocks[values], rel=1e-2)
    for name in ("input_elements", "input_sum", "input_square"):
        assert there.run_value(name) == pytest.approx(here.run_value(name), rel=1e-5)
