"""One agent serves all ranks of its machine, launched by torchrun; what it renders is what one process would have measured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.agent.conftest import House, Scrape, scrape
from tests.capture import stack
from tests.ranks import environment
from tests.waiting import wait_for

GAUGES = ("skip_rms", "branch_rms", "output_rms", "branch_skip_ratio", "gradient_norm", "output_gradient_norm")


def torchrun(house: House, port: int, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.capture.member"]
    agent = {"RESMON_AGENT": "auto", "RESMON_LISTEN": f"127.0.0.1:{port}"}
    return house.start(*command, str(house.runs), "digits", "init-watch", "environment", environment=environment(**agent, **more))


def assert_blocks(now: Scrape) -> None:
    truth = stack.truth(stack.stack())[-1]
    for block in (f"h.{i}.{name}" for i in range(2) for name in stack.BRANCHES):
        for gauge in GAUGES:
            assert now.one(f"resmon_block_{gauge}", block=block) == pytest.approx(truth[f"{block} {gauge}"], rel=1e-5)
    assert now.one("resmon_gradient_norm") == pytest.approx(truth["total"], rel=1e-5)


def test_all_ranks_of_a_machine_are_merged(house: House, port: int) -> None:
    house.agent(port)
    url = house.ready(port)
    trainer = torchrun(house, port)
    assert trainer.wait(90) == 0, house.output(trainer)
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="finished") == 1)
    now = scrape(url)
    assert_blocks(now)
    elements = stack.BATCH * stack.LENGTH * stack.WIDTH  # few enough that the sample of each rank is all that it has
    for rank in "01":
        assert now.one("resmon_steps_total", rank=rank) == stack.STEPS
        assert now.one("resmon_monitor_errors_total", rank=rank) == 0
    assert set(now.all("resmon_block_activation_magnitude_count").values()) == {elements * stack.STEPS}
    assert set(now.all("resmon_block_nonfinite_steps_total").values()) == {0}
    assert len(now.all("resmon_run_info", world_size="2")) == 1


def test_one_rank_that_is_watched_speaks_for_replicas(house: House, port: int) -> None:
    house.agent(port)
    url = house.ready(port)
    trainer = torchrun(house, port, WATCHES="1")
    assert trainer.wait(90) == 0, house.output(trainer)
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="finished") == 1)
    now = scrape(url)
    truth = stack.truth(stack.stack())[-1]
    assert len(now.all("resmon_steps_total")) == 1
    for block in (f"h.{i}.{name}" for i in range(2) for name in stack.BRANCHES):
        assert now.one("resmon_block_gradient_norm", block=block) == pytest.approx(truth[f"{block} gradient_norm"], rel=1e-5)
        assert now.one("resmon_block_output_gradient_norm", block=block) is None
    assert now.one("resmon_gradient_norm") == pytest.approx(truth["total"], rel=1e-5)


def test_a_rank_that_is_killed_ends_the_attempt_as_killed(house: House, port: int) -> None:
    house.agent(port)
    url = house.ready(port)
    trainer = torchrun(house, port, DIES="1")
    assert trainer.wait(90) != 0
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="killed") == 1)
    now = scrape(url)
    assert now.one("resmon_steps_total", rank="1") == 2
    wait_for(lambda: sum(scrape(url).all("resmon_runs_total").values()) == 1)
