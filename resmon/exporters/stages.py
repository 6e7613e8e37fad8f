"""Stages: which consecutive blocks may share their series, told from paths and shapes, without knowing any architecture.

A stage is a run of blocks, in the order in which they run, that lie under one container and whose output shape and kind agree:
ResNet's `layer1`, or all blocks of a transformer's `h`. The container is what stands before the first number in a module's path,
as lists and sequences of modules number what they hold.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from itertools import count, groupby

import numpy as np

from resmon.records import Ints, ResidualSite
from resmon.statistics import Column

Piece = tuple[int, ...]  # consecutive blocks of one model, as places among the sites


def cut(sites: Sequence[ResidualSite], most: int) -> list[Piece]:
    """All blocks in at most `most` pieces (at least as many as there are models), none of which reaches over two stages.

    Long stages are cut into pieces as equal as can be. Where there are more stages than `most`, pieces reach over them.
    """
    models: dict[str, list[int]] = {}
    for i, site in enumerate(sites):
        models.setdefault(site.model, []).append(i)
    stages = [list(run) for places in models.values() for _, run in groupby(places, lambda i: _stage(sites[i]))]
    runs = stages if len(stages) <= most else list(models.values())
    short, long = 1, max(map(len, runs), default=1)  # the least length of a piece with which `most` are enough
    while short < long:
        length = (short + long) // 2
        if sum(-(-len(run) // length) for run in runs) <= most:
            long = length
        else:
            short = length + 1
    return [tuple(piece.tolist()) for run in runs for piece in np.array_split(run, -(-len(run) // short))]


def peers(sites: Sequence[ResidualSite]) -> Ints:
    """A number for each block, the same for those that can be compared: of one stage, and alike by name but for numbers."""
    numbers: dict[Hashable, int] = {}
    keys = ((site.model, _stage(site), re.sub(r"\d+", "#", site.name)) for site in sites)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def depths(sites: Sequence[ResidualSite]) -> Column:
    """Each block's place among those of its model, in the order in which they run."""
    places = {model: count() for model in {site.model for site in sites}}
    return Column(np.array([next(places[site.model]) for site in sites], np.float64), np.ones(len(sites), bool))


def _stage(site: ResidualSite) -> Hashable:
    path = site.module.split(".")
    container = next((i for i, part in enumerate(path) if part.isdecimal()), len(path) - 1)
    return tuple(path[:container]), site.shape, site.kind
