"""docs/distributed.md: its script runs under torchrun, and what the page says of ranks together is so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import resmon
from resmon.flight import layout
from tests.ports import free_port
from tests.ranks import environment, run_all

PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
SCRIPT, FSDP, READING, SEVERAL = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
DDP = "model = DistributedDataParallel(model)\n"
AGREES = 1e-5  # "to five digits"


def launched(folder: Path, script: str, ranks: int) -> resmon.Flight:
    """The script by the page's command, with so many ranks."""
    (command,) = re.findall(r"```sh\ntorchrun --nproc-per-node 2 (.*?)\n```", PAGE)
    folder.mkdir()
    (folder / "train.py").write_text(script, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), f"--master-port={free_port()}"]
    run_all([[*torchrun, str(folder / command)]], [environment(RESMON_DIRECTORY=str(folder / "runs"))])
    return resmon.load(folder / "runs" / "many")


@pytest.mark.slow
def test_ranks_agree_with_one_process_and_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DDP in SCRIPT and "to five digits, under DDP and FSDP2" in PAGE.replace("\n", " ")
    one = launched(tmp_path / "one", SCRIPT, 1)
    many = launched(tmp_path / "ddp", SCRIPT, 2)
    sharded = launched(tmp_path / "fsdp", SCRIPT.replace(DDP, FSDP), 2)
    truth = one.blocks()
    assert len(truth) == 20 * 4
    for flight in (many, sharded):
        assert (flight.outcome, flight.info["ranks"], flight.info["attempts"]) == ("finished", (0, 1), (1,))
        assert flight.steps()["ranks"].tolist() == [2] * 20
        blocks = flight.blocks()
        for name in ("skip_rms", "branch_rms", "branch_skip_ratio", "gradient_norm", "output_gradient_norm"):
            assert blocks[name].tolist() == pytest.approx(truth[name].tolist(), rel=AGREES), name
        assert flight.steps()["loss"].tolist() == pytest.approx(one.steps()["loss"].tolist(), rel=AGREES)
        assert flight.steps()["samples"].tolist() == one.steps()["samples"].tolist() == [8] * 20
        assert not any(site.absent for site in flight.sites)
    # What the page reads, as it reads it.
    monkeypatch.chdir(tmp_path / "ddp")
    world: dict[str, Any] = {"resmon": resmon}
    exec(READING, world)  # noqa: S102 - the page is ours
    apart = world["flight"].blocks(per_rank=True)
    assert len(apart) == 2 * len(truth) and "gradient_norm_share" in apart
    # And where each machine has its own rank's folder.
    attempt = tmp_path / "ddp" / "runs" / "many" / "attempt-0001"
    for rank, folder in layout.ranks(attempt).items():
        there = tmp_path / "machines" / f"node{rank + 1}" / "runs" / "many" / attempt.name
        there.mkdir(parents=True)
        shutil.copy(attempt / layout.LAUNCH, there)
        shutil.copytree(folder, there / folder.name)
    monkeypatch.chdir(tmp_path / "machines")
    exec(SEVERAL, world)  # noqa: S102
    assert world["flight"].blocks()["gradient_norm"].tolist() == many.blocks()["gradient_norm"].tolist()
    assert "2 ranks" not in world["flight"]._repr_mimebundle_()["text/plain"]
    (glob,) = re.findall(r'resmon\.load\("(node\*/[^"]*)"\)', PAGE)
    assert resmon.load(glob).info["ranks"] == (0, 1)


@pytest.mark.slow
def test_an_unchanged_script_under_torchrun(tmp_path: Path) -> None:
    (command,) = re.findall(r"`torchrun --nproc-per-node 2 (-m resmon run .*?)`", PAGE)
    bare = "".join(line for line in SCRIPT.splitlines(keepends=True) if "resmon" not in line and "monitor" not in line)
    (tmp_path / "train.py").write_text(bare, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", f"--master-port={free_port()}"]
    words = command.replace("train.py", str(tmp_path / "train.py")).split()
    run_all([[*torchrun, *words]], [environment(RESMON_DIRECTORY=str(tmp_path / "runs"))])
    flight = resmon.load(tmp_path / "runs" / "many")
    assert (flight.outcome, flight.info["ranks"]) == ("finished", (0, 1))
    assert flight.steps()["loss"].notna().any()
