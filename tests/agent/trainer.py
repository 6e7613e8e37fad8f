"""A training process without a network: `python -m tests.agent.trainer FOLDER RUN RANK WORLD SITES PACE LAST HOW`.

It claims a rank's folder, registers it, writes a step every PACE seconds up to LAST and then ends as HOW says: "finished",
"failed" and "nonfinite" write that end mark, "sleep" goes on living without a word. From step 30 on, "nonfinite" has NaN, in the
third block first; "outlier" is "sleep" with gradients of the last block that are a thousand times as large from step 30 on; "slow"
does not end, but goes on with a step a second. Each line that it prints is the number of a step on file.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import count
from pathlib import Path

from resmon.agent import register
from resmon.flight.layout import boot_id, claim
from resmon.flight.writer import FlightWriter
from resmon.records import RunEnd, ScalarRecord
from tests import synthetic


def main(folder: str, run: str, rank: str, world: str, sites: str, pace: str, last: str, how: str) -> None:
    rank_folder, attempt = claim(Path(folder), run, os.environ.get("LAUNCH", str(os.getpid())), int(rank))
    info = synthetic.info(
        run=run,
        attempt=attempt,
        rank=int(rank),
        world_size=int(world),
        started=time.time(),
        launch=os.environ.get("LAUNCH", str(os.getpid())),
        boot_id=boot_id(),
        pid=os.getpid(),
        stall_after=float(os.environ.get("STALL_AFTER", "300")),
    )
    writer = FlightWriter(rank_folder, info, 64 << 20)
    register(rank_folder)
    blocks = synthetic.sites(int(sites))
    writer.sites(blocks)
    training = synthetic.Training(blocks, seed=int(rank))
    for step in count() if how == "slow" else range(int(last) + 1):
        bad = how == "nonfinite" and step >= 30
        values = {("gradient_square", len(blocks) - 1): 1e8} if how == "outlier" and step >= 30 else {}
        forward = range(2, len(blocks)) if bad and step > 30 else [2] if bad else []
        record = training.step(forward=forward, values=values, time=time.time())
        writer.step(record)
        writer.scalars(ScalarRecord(step, record.time, {"loss": 2.0 / (step + 1), "accuracy": step / 1000}))
        print(step, flush=True)
        time.sleep(1.0 if how == "slow" and step >= int(last) else float(pace))
    if how in ("sleep", "outlier"):
        time.sleep(3600)
    writer.end(RunEnd(how, time.time(), training.steps - 1, ""))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
