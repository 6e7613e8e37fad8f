"""What is said of an exception that ends a run."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from resmon.capture.forensics.diagnoses import diagnose
from resmon.capture.forensics.failures import LONGEST, Scene, said
from resmon.capture.host.stack import whereabouts
from resmon.records import Incident, ResidualSite


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such\n   token")


class Block(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(self.norm(x))
        return y


SITES = tuple(ResidualSite(name, name, "identity", (f"{name}.norm", f"{name}.branch"), (), (2, 4)) for name in ("0", "1"))


def caught(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011, whichever it is
        call()
    return caught.value


def incident(model: nn.Module, error: BaseException) -> Incident:
    return diagnose(error, Scene({"": model}, SITES, 12))


def test_the_module_and_the_block_and_the_line_are_named() -> None:
    model = nn.Sequential(Block(nn.Linear(4, 4)), Block(Fails()))
    found = incident(model, caught(lambda: model(torch.ones(2, 4))))
    assert (found.kind, found.module, found.block, found.step, found.id) == ("failed", "1.branch", "1", 12, "failed-12")
    assert found.line.startswith(__file__)
    assert found.line.endswith('raise ValueError("no such\\n   token")')
    assert found.summary == "ValueError: no such token, in module 1.branch (block 1)"


def test_what_torch_raises_is_laid_to_the_users_line() -> None:
    model = nn.Sequential(Block(nn.Linear(4, 4)), Block(nn.Linear(5, 4)))
    error = caught(lambda: model(torch.ones(2, 4)))
    where = whereabouts(error, {"": model}, SITES)
    assert (where.module, where.block) == ("1.branch", "1")
    assert where.line.endswith("y: Tensor = x + self.branch(self.norm(x))")


def test_outside_of_the_models_only_the_line_is_known() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    found = incident(model, caught(lambda: {}["key"]))  # type: ignore[index]
    assert (found.module, found.block) == ("", "")
    assert "test_failures.py" in found.line
    assert found.summary.startswith("KeyError: 'key', at ")


def test_of_two_blocks_in_one_module_that_is_named_whose_part_failed() -> None:
    """An activation has no parameters, so that it is on no block's list."""
    model = nn.ModuleDict({"attn": nn.Linear(4, 4), "mlp": nn.Sequential(nn.Linear(4, 4), Fails(), nn.Linear(4, 4))})
    sites = [
        ResidualSite("h.attn", "h", "identity", ("h.attn",), (), (2, 4)),
        ResidualSite("h.mlp", "h", "identity", ("h.mlp.0", "h.mlp.2"), (), (2, 4)),
    ]
    error = caught(lambda: model["mlp"](torch.ones(2, 4)))
    where = whereabouts(error, {"": nn.ModuleDict({"h": model})}, sites)
    assert (where.module, where.block) == ("h.mlp.1", "h.mlp")


def test_a_worker_that_is_gone_is_not_laid_to_the_module_that_was_running() -> None:
    """Torch hears of it by a signal, which may come anywhere."""

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            os.kill(worker, signal.SIGKILL)
            os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
            return x

    class Gone(torch.utils.data.Dataset[Tensor]):
        def __getitem__(self, i: int) -> Tensor:
            return torch.zeros(2)

        def __len__(self) -> int:
            return 4

    model = nn.Sequential(Block(Waits()))
    loader = iter(torch.utils.data.DataLoader(Gone(), num_workers=1))
    worker = loader._workers[0].pid  # type: ignore[attr-defined]
    found = incident(model, caught(lambda: model(torch.ones(2, 4))))
    assert found.kind == "failed" and "killed by signal" in found.summary
    assert (found.module, found.block, found.line) == ("", "", "")
    assert "data loader" in found.advice


class Samples(torch.utils.data.Dataset[Tensor]):
    def __getitem__(self, i: int) -> Tensor:
        if i == 5:
            raise ValueError("sample 5\nis damaged")
        return torch.zeros(2)

    def __len__(self) -> int:
        return 8


def test_what_a_worker_of_a_data_loader_raised_is_told_without_its_traceback() -> None:
    found = said(caught(lambda: list(torch.utils.data.DataLoader(Samples(), num_workers=1))))
    line = inspect.getsourcelines(Samples.__getitem__)[1] + 2
    assert found == f"ValueError: sample 5 is damaged, in DataLoader worker process 0 at {__file__}:{line}"


def test_an_interrupt_is_no_failure() -> None:
    found = incident(nn.Sequential(), KeyboardInterrupt())
    assert (found.kind, found.summary) == ("interrupted", "SIGINT ended the run")


def test_a_long_message_is_cut() -> None:
    found = incident(nn.Sequential(), caught(lambda: [][int("1" * 5)] if False else int("x" * 100_000)))
    assert len(found.evidence["exception"]) <= LONGEST


@pytest.mark.parametrize("error", [ValueError(), RuntimeError("")])
def test_a_message_may_be_empty(error: Exception) -> None:
    assert incident(nn.Sequential(), error).summary == type(error).__name__


def test_a_block_that_was_not_met_yet_is_known_by_its_like() -> None:
    model = nn.Sequential(Block(nn.Linear(4, 4)), Block(nn.Linear(4, 4)), nn.Sequential(Block(Fails())))
    found = incident(model, caught(lambda: model(torch.ones(2, 4))))
    assert (found.module, found.block) == ("2.0.branch", "2.0")
    alone = nn.Sequential(Block(nn.Linear(4, 4)), nn.Sequential(), Fails())
    assert incident(alone, caught(lambda: alone(torch.ones(2, 4)))).block == ""
