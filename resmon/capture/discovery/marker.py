"""An explicit marker for adds that no trace can see, because a fused kernel does them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def residual_add(skip: Tensor, branch: Tensor, *, output: Tensor | None = None) -> Tensor:
    """Add `branch` to the residual stream `skip` and say so to resmon.

    Without `output` this is `skip + branch`. Where a fused kernel has done the add already (add-and-normalise kernels do), pass
    its sum as `output`: nothing is computed then, `output` is returned as it is. All three have the same shape. Costs nothing
    but a function call when the model is not watched.
    """
    # As a torch function it reaches the mode that traces or observes the block, as any other add does.
    if has_torch_function((skip, branch)):
        return handle_torch_function(residual_add, (skip, branch), skip, branch, output=output)
    return torch.add(skip, branch) if output is None else output
