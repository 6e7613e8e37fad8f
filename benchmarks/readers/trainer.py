"""`python -m benchmarks.readers.trainer RUN FILE`: a training that is watched and notes when each step begins, until SIGTERM."""

from __future__ import annotations

import signal
import struct
import sys
import time
from pathlib import Path

import torch

import resmon
from benchmarks.workloads import WORKLOADS

WORKLOAD = "digits"


def main(run: str, file: str) -> None:
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    torch.set_num_threads(1)  # two of these share the machine
    training = WORKLOADS[WORKLOAD].make()
    with resmon.watch(training.model, training.optimizer, run=run) as monitor, Path(file).open("wb", buffering=4096) as steps:
        step = 0
        while not ended:
            arguments, target = training.batches[step % len(training.batches)]
            steps.write(struct.pack("d", time.monotonic()))  # one clock for all processes of a machine
            training.optimizer.zero_grad()
            loss = training.loss(training.model(**arguments), target)
            loss.backward()
            training.optimizer.step()
            monitor.log(loss=loss)
            step += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
