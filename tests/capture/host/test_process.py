"""Ranks find each other's attempt, and no other launch's, however they are launched, whenever they come and however they end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import resmon
from resmon.capture.host import process
from resmon.flight import layout
from tests import forkserver
from tests.capture import stack
from tests.ports import free_port
from tests.ranks import environment, run_all, run_ranks

MEMBER = "tests.capture.member"


def attempts(folder: Path, run: str = "r") -> dict[int, list[int]]:
    """Each attempt's ranks."""
    return {number: list(layout.ranks(path)) for number, path in layout.attempts(folder / run).items()}


def torchrun(folder: Path, order: str, *options: str, **more: str) -> str:
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", *options, "-m", MEMBER]
    return run_all([[*command, str(folder), "r", order, "environment"]], [environment(**more)])[0]


@pytest.mark.parametrize(
    ("launcher", "order"),
    [
        ("torchrun", "init-watch"),
        ("spawn", "watch-init"),
        pytest.param("torchrun", "watch-init", marks=pytest.mark.slow),
        pytest.param("spawn", "init-watch", marks=pytest.mark.slow),
    ],
)
def test_the_ranks_of_a_launch_share_an_attempt(launcher: str, order: str, tmp_path: Path) -> None:
    port = free_port()
    for launch in (1, 2):
        if launcher == "torchrun":
            torchrun(tmp_path, order, f"--master-port={port}", LATE="1")
        else:
            command = ["-m", MEMBER, str(tmp_path), "r", order, "spawn", str(free_port())]
            run_all([command], [environment(LATE="1")])
        assert attempts(tmp_path) == {attempt: [0, 1] for attempt in range(1, launch + 1)}
    for attempt in (1, 2):
        flight = resmon.load(tmp_path / "r", attempt=attempt)
        assert flight.info["world_size"] == 2
        assert flight.outcome == "finished"
        assert flight.steps()["ranks"].tolist() == [2] * stack.STEPS
        truth = stack.truth(stack.stack())
        assert flight.steps()["gradient_norm"].tolist() == pytest.approx([step["total"] for step in truth], rel=1e-6)


def test_ranks_that_are_given_no_name_agree_on_one(tmp_path: Path) -> None:
    run_ranks(2, MEMBER, str(tmp_path), "", "init-watch", "environment", LATE="1")
    (run,) = layout.runs(tmp_path)
    assert attempts(tmp_path, run.name) == {1: [0, 1]}
    run_ranks(2, MEMBER, str(tmp_path / "other"), "", "watch-init", "environment", LATE="1")
    (run,) = layout.runs(tmp_path / "other")
    assert run.name.startswith("launch-")
    assert attempts(tmp_path / "other", run.name) == {1: [0, 1]}


def test_a_launch_that_torchrun_restarts_is_a_new_attempt(tmp_path: Path) -> None:
    # Its agent's store keeps the addresses of the workers that died, and gloo may call them: so the workers make one of their own.
    torchrun(tmp_path, "init-watch", "--standalone", "--max-restarts=1", DIES="1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert attempts(tmp_path) == {1: [0, 1], 2: [0, 1]}
    first, second = (resmon.load(tmp_path / "r", attempt=attempt) for attempt in (1, 2))
    assert first.outcome == "killed"
    assert first.steps()["step"].tolist()[:2] == [0, 1]
    assert second.outcome == "finished"
    assert second.steps()["ranks"].tolist() == [2] * stack.STEPS


def test_a_launch_in_which_a_rank_never_came_is_not_completed_by_the_next(tmp_path: Path) -> None:
    """The same words in the environment, even the same port: only the process groups' own stores tell the two launches apart."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = ["-m", MEMBER, str(tmp_path), "r", "init-watch", "environment"]
    with ThreadPoolExecutor(2) as pool:
        ended = pool.map(lambda rank: forkserver.run(*command, env=environment(**place, RANK=str(rank), GONE="1")), range(2))
        assert [process.returncode for process in ended] == [0, -9]
    assert attempts(tmp_path) == {1: [0]}
    run_all([command] * 2, [environment(**place, RANK=str(rank)) for rank in range(2)])
    assert attempts(tmp_path) == {1: [0], 2: [0, 1]}
    assert resmon.load(tmp_path / "r").steps()["ranks"].tolist() == [2] * stack.STEPS


def test_a_group_that_is_joined_too_late_is_told(tmp_path: Path) -> None:
    script = """if True:
        import sys, torch, torch.distributed as dist, resmon
        from tests.capture import stack
        model = stack.stack()
        with resmon.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), run="r", directory=sys.argv[1]):
            dist.init_process_group("gloo", init_method=sys.argv[2], rank=int(sys.argv[3]), world_size=2)
            model(next(stack.batches(stack.WIDTH))).sum().backward()
        dist.barrier()
        dist.destroy_process_group()
    """
    where = f"tcp://127.0.0.1:{free_port()}"
    commands = [["-c", script, str(tmp_path), where, str(rank)] for rank in range(2)]
    outputs = run_all(commands, [environment()] * 2)
    assert attempts(tmp_path) == {1: [0], 2: [0]}
    assert all("call init_process_group before resmon.watch" in output for output in outputs)


@pytest.mark.parametrize(
    ("variables", "place", "here"),
    [
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "5", "SLURM_STEP_ID": "0"}, (3, 5), None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "5", "SLURM_JOB_ID": "7"}, (0, 1), 1),  # a batch script, which is no task
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "RANK": "5", "WORLD_SIZE": "8"}, (5, 8), None),
        ({"SLURM_PROCID": "4", "SLURM_NTASKS": "5", "SLURM_STEP_ID": "0", "SLURM_NODEID": "2"}, (4, 5), 1),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "5", "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}, (1, 5), 2),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "5", "SLURM_STEP_ID": "0", "SLURM_NODEID": "9"}, (1, 5), None),
        ({"RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, (1, 8), 4),
    ],
)
def test_the_place_among_the_ranks_as_launchers_tell_it(
    variables: dict[str, str], place: tuple[int, int], here: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2),1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process.rank_and_world() == place
    assert process.local_world() == here
