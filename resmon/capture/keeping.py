"""Which samples kept their branch, where a random operation drops it sample by sample (stochastic depth).

A sample is what has one index in the first dimension. Its branch was dropped where all of it is exactly zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resmon.capture.sums import square_sum

FEW = 16  # elements of a sample that are looked at first: one that is not zero is enough


def kept_here(branch: Tensor) -> Tensor:
    """[samples], of a tensor in main memory: most samples are told by a few elements, the others are read."""
    rows = branch.detach().flatten(1) if branch.dim() > 1 else branch.detach()[:, None]
    kept = rows[:, :: max(1, rows.shape[1] // FEW)].ne(0).any(1)
    for sample in (~kept).nonzero().flatten().tolist():
        kept[sample] = bool(rows[sample].any())
    return kept


def kept_elsewhere(branch: Tensor) -> Tensor:
    """[samples], as a tensor on the branch's device."""
    return branch.detach().flatten(1).ne(0).any(1) if branch.dim() > 1 else branch.detach().ne(0)


def kept_square(skip: Tensor, kept: Tensor, square: float) -> float:
    """The sum of the skip's squares in samples that kept their branch; of all samples it is `square`."""
    if bool(kept.all()):
        return square
    dropped = square_sum(skip.detach()[~kept])  # of few, usually
    return square - dropped if dropped < square / 2 else square_sum(skip.detach()[kept])  # else little is left of a difference


def kept_norm(skip: Tensor, kept: Tensor) -> Tensor:
    """Its root, on the skip's device."""
    rows = skip.detach().flatten(1) if skip.dim() > 1 else skip.detach()[:, None]
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    found: Tensor = torch.linalg.vector_norm(torch.where(kept, norms, 0.0))
    return found
