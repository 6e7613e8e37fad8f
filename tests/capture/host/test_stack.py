"""Threads that wait at places of every kind, looked at from outside."""

from __future__ import annotations

import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from resmon.capture.host import stack
from resmon.capture.host.stack import Whereabouts, is_the_users, running
from resmon.records import Doing, ResidualSite
from tests.ports import free_port

HERE = Path(__file__)


class Gate(threading.Event):
    """Whoever passes waits until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()

    def passed(self) -> None:
        self.reached.set()
        assert self.wait(60)  # here they wait


class Block(nn.Module):
    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            self.gate.passed()
        return x + self.linear(x)


class Waits(torch.optim.SGD):
    gate: Gate

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.gate.passed()


@contextmanager
def waiting(act: Callable[[], object], gate: Gate) -> Iterator[threading.Thread]:
    """A thread that runs `act` and stands at the gate."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    assert gate.reached.wait(60)
    while stack.running(thread.ident or 0, {}, ())[2][-1].split()[-1] != "wait":  # it is on its way to the lock
        time.sleep(0.01)
    try:
        yield thread
    finally:
        gate.set()
        thread.join(60)


def look(
    act: Callable[[], object], gate: Gate, models: Mapping[str, nn.Module] | None = None, sites: Sequence[ResidualSite] = ()
) -> tuple[Whereabouts, Doing, list[str]]:
    with waiting(act, gate) as thread:
        return running(thread.ident or 0, models or {}, sites)


def in_data(gate: Gate) -> Callable[[], object]:
    class Data(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Tensor:
            gate.passed()
            return torch.zeros(4)

    return lambda: next(iter(torch.utils.data.DataLoader(Data(), batch_size=2)))


def in_forward(gate: Gate) -> Callable[[], object]:
    return lambda: nn.Sequential(Block(), Block(gate))(torch.zeros(2, 4))


def in_backward(gate: Gate) -> Callable[[], object]:
    model = Block()
    model.linear.weight.register_hook(lambda gradient: gate.passed())  # type: ignore[no-untyped-call]
    return lambda: model(torch.zeros(2, 4)).sum().backward()


def in_optimizer(gate: Gate) -> Callable[[], object]:
    optimizer = Waits(Block().parameters(), lr=0.1)
    optimizer.gate = gate
    return optimizer.step


def in_compiler(gate: Gate) -> Callable[[], object]:
    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        gate.passed()
        return graph.forward

    return lambda: torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2))


def elsewhere(gate: Gate) -> Callable[[], object]:
    return gate.passed


@pytest.mark.parametrize(
    ("begin", "doing"),
    [
        (in_data, "data"),
        (in_forward, "forward"),
        (in_backward, "backward"),
        (in_optimizer, "optimizer"),
        (in_compiler, "compile"),
        (elsewhere, ""),
    ],
)
def test_what_a_thread_is_doing(begin: Callable[[Gate], Callable[[], object]], doing: Doing) -> None:
    gate = Gate()
    where, found, calls = look(begin(gate), gate)
    assert found == doing
    # The line is the user's though Python's own code waits for it.
    assert where.line.startswith(f"{HERE}:") and where.line.endswith(": assert self.wait(60)  # here they wait")
    assert calls[-1].startswith(sysconfig.get_path("stdlib")) and calls[-1].endswith(" in wait")
    assert any(call.startswith(f"{HERE}:") and call.endswith(" in passed") for call in calls)


def test_who_waits_for_other_ranks() -> None:
    def join() -> None:
        store = dist.TCPStore("127.0.0.1", free_port(), 2, True, timeout=timedelta(seconds=3), wait_for_workers=False)
        reached.set()
        with pytest.raises(dist.DistError):
            dist.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=timedelta(seconds=3))

    reached = threading.Event()
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    assert reached.wait(60)
    doing: Doing = ""
    while thread.is_alive() and doing != "collective":
        doing = running(thread.ident or 0, {}, ())[1]
    thread.join(60)
    assert doing == "collective"


def test_the_module_and_the_block() -> None:
    gate = Gate()
    model = nn.Sequential(Block(), Block(gate))
    site = ResidualSite("1", "1", "identity", ("1.linear",), (), (2, 4), ("1.linear.weight",), "gpt")
    where, doing, _ = look(lambda: model(torch.zeros(2, 4)), gate, {"gpt": model}, [site])
    assert (where.model, where.module, where.block, doing) == ("gpt", "1", "1", "forward")


def test_looking_keeps_nothing_of_the_users_alive() -> None:
    """A frame that was asked for its variables would hold those that it had then."""
    gate, then = Gate(), Gate()
    held: list[weakref.ref[Tensor]] = []

    def train() -> None:
        activations = torch.zeros(4)
        held.append(weakref.ref(activations))
        gate.passed()
        activations = torch.ones(4)
        then.passed()
        assert activations.sum() == 4

    with waiting(train, gate) as thread:
        running(thread.ident or 0, {}, ())
        gate.set()
        assert then.reached.wait(60)
        assert held[0]() is None
        then.set()


def test_a_thread_that_is_gone() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert running(thread.ident or 0, {}, ()) == (Whereabouts(), "", [])


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (f"{sysconfig.get_path('stdlib')}/threading.py", False),
        (f"{sysconfig.get_path('stdlib')}/site-packages/transformers/trainer.py", True),  # as where Python is not a virtual one
        (torch.nn.modules.linear.__file__, False),
        (stack.__file__, False),
        ("<frozen runpy>", False),
        ("<stdin>", True),
        ("/home/me/train.py", True),
    ],
)
def test_whose_code_it_is(file: str, expected: bool) -> None:
    assert is_the_users(file) is expected
