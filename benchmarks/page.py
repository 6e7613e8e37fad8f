"""What the agent's page costs over a long run: the first look at it, the next ones, a closer look, and memory.

A flight is written as a training of so many blocks and steps would have, with one step that stands out, and then looked at as a
browser does; nothing but the network is left out.

    python -m benchmarks.page [--blocks 100] [--steps 100000]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from resmon.flight.layout import claim
from resmon.flight.writer import FlightWriter
from resmon.page.answers import Answers, Wish
from resmon.page.listing import Listing
from resmon.page.sight import Sights
from resmon.records import BLOCK_VALUES, ResidualSite, RunEnd, ScalarRecord
from resmon.settings import Settings
from tests import synthetic

SPIKE = 0.61803  # of the run: where a gradient is a thousand times as large, in one step
AGAIN = 20  # further looks


def write(directory: Path, blocks: int, steps: int, budget: int) -> Path:
    """The flight; gives the attempt's folder."""
    folder, attempt = claim(directory, "long", "launch", 0)
    writer = FlightWriter(folder, synthetic.info(run="long", attempt=attempt), budget)
    sites = tuple(ResidualSite(f"h.{i}", f"h.{i}", "identity", (f"h.{i}.mlp",), (), (4, 8)) for i in range(blocks))
    training = synthetic.Training(sites)
    writer.sites(sites)
    random = np.random.default_rng(0)
    depth = np.arange(blocks)
    skip, branch, gradient, elements = (
        BLOCK_VALUES.index(name) for name in ("skip_square", "branch_square", "gradient_square", "output_square")
    )
    spike = int(SPIKE * steps)
    record = training.step()
    for step in range(steps):
        noise = np.exp(0.05 * random.standard_normal((3, blocks)))
        warm = 1 + 4 * np.exp(-step / (steps / 12))
        record.blocks[skip] = 32 * (1.0 + 0.045 * depth) ** 2 * noise[0]
        record.blocks[branch] = 32 * (0.6 / np.sqrt(depth + 1) * warm) ** 2 * noise[1]
        record.blocks[gradient] = (0.02 * warm * (1 + np.exp(-depth / 20))) ** 2 * noise[2]
        record.blocks[elements] = record.blocks[skip] + record.blocks[branch]
        if step == spike:
            record.blocks[gradient, blocks // 3] *= 1e6
        buckets = record.magnitude_buckets
        buckets[:, 18:24] += random.integers(1, 60, (blocks, 6))
        changed = {"step": step, "time": 1000.0 + step / 10, "steps_total": step + 1, "magnitude_buckets": buckets}
        record = type(record)(**({name: getattr(record, name) for name in type(record).__slots__} | changed))
        writer.step(record)
        writer.scalars(ScalarRecord(step, record.time, {"loss": float(0.1 + 2 * np.exp(-step / (steps / 6)) * noise[0, 0])}))
    writer.end(RunEnd("finished", record.time, steps - 1))
    return folder.parent


def memory() -> float:
    """MiB that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(answers: Answers, id_: str, wish: Wish) -> tuple[float, int]:
    """Seconds that an answer takes, and its bytes."""
    started = time.perf_counter()
    answer = answers.run(id_, wish)
    assert answer is not None
    assert json.loads(answer.body)["figures"]
    return time.perf_counter() - started, len(answer.body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--runs", type=Path, help="where the flight is kept, or is already; nowhere unless given")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = chosen.runs or Path(temporary)
        if not (directory / "long").exists():
            write(directory, chosen.blocks, chosen.steps, Settings.of().budget)
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        listing = Listing(lambda: [directory], list)
        (entry,) = listing.entries()
        answers = Answers(listing, Sights())
        before = memory()
        first, sent = timed(answers, entry.id, Wish())
        after = memory()
        again = [timed(answers, entry.id, Wish())[0] for _ in range(AGAIN)]
        others = [timed(answers, entry.id, Wish(quantity="gradient_norm", at=i * chosen.steps // AGAIN))[0] for i in range(AGAIN)]
        block = [timed(answers, entry.id, Wish(block=i % chosen.blocks))[0] for i in range(AGAIN)]
        middle = chosen.steps // 2
        near = {wide: timed(answers, entry.id, Wish(first=middle, last=middle + wide - 1))[0] for wide in (100, 1_000, 10_000)}
        newest = timed(answers, entry.id, Wish(newest=500))[0]
    print(f"{chosen.blocks} blocks, {chosen.steps:,} steps, {size / 2**20:,.0f} MiB on disk")
    print(f"first look            {1000 * first:7.0f} ms, {sent / 1024:,.0f} KiB")
    print(f"the same again        {1000 * median(again):7.1f} ms")
    print(f"another quantity, step{1000 * median(others):7.0f} ms")
    print(f"a block's details     {1000 * median(block):7.0f} ms")
    for wide, seconds in near.items():
        print(f"{wide:6,} steps closer   {1000 * seconds:7.0f} ms")
    print(f"the newest 500        {1000 * newest:7.0f} ms")
    print(f"memory                {before:7.0f} MiB before, {after:,.0f} after the first look, {memory():,.0f} in the end")


if __name__ == "__main__":
    main()
