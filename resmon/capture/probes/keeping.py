"""Which samples kept their branch, where a random operation drops it sample by sample (stochastic depth).

A sample is what has one index in the first dimension. Its branch was dropped where all of it is exactly zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resmon.capture import _native
from resmon.capture.probes.sums import CODES, is_dense


def kept_square(skip: Tensor, branch: Tensor, square: float, kept: int) -> float:
    """The sum of the skip's squares in samples that kept their branch, of tensors in main memory; of all samples it is `square`.

    How many those are goes to the address `kept`, as a float64.
    """
    if not branch.dim():
        skip, branch = skip[None], branch[None]
    samples = len(branch)
    branch, skip = _sample_by_sample(branch), _sample_by_sample(skip)
    size = branch.numel() // samples if samples else 0
    return _native.kept(branch.data_ptr(), CODES[branch.dtype], skip.data_ptr(), CODES[skip.dtype], samples, size, square, kept)


def _sample_by_sample(tensor: Tensor) -> Tensor:
    """The tensor as the native part reads it: one sample dense behind the other."""
    tensor = tensor.detach()
    if tensor.dtype not in CODES:
        tensor = tensor.float()
    outermost = tensor.numel() == 0 or tensor.stride(0) * len(tensor) == tensor.numel()
    return tensor if outermost and is_dense(tensor) else tensor.contiguous()


def kept_elsewhere(branch: Tensor) -> Tensor:
    """[samples], as a tensor on the branch's device."""
    return branch.detach().flatten(1).ne(0).any(1) if branch.dim() > 1 else branch.detach().ne(0)


def kept_norm(skip: Tensor, kept: Tensor) -> Tensor:
    """The root of the sum of the skip's squares in samples that kept their branch, on the skip's device."""
    rows = skip.detach().flatten(1) if skip.dim() > 1 else skip.detach()[:, None]
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    found: Tensor = torch.linalg.vector_norm(torch.where(kept, norms, 0.0))
    return found
