"""An explicit marker for adds that no trace can see, because a fused kernel does them."""

from __future__ import annotations

from types import NoneType

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from resmon.errors import ConfigurationError


def residual_add(skip: Tensor, branch: Tensor, *, output: Tensor | None = None) -> Tensor:
    """Add `branch` to the residual stream `skip` and say so to resmon.

    Without `output` this is `skip + branch`. Where a fused kernel has done the add already (add-and-normalise kernels do), pass
    its sum as `output`: nothing is computed then, `output` is returned as it is. All three have the same shape. Costs nothing
    but a function call when the model is not watched.

    Raises ConfigurationError where skip or branch is no tensor (a branch may be a number).
    """
    # As a torch function it reaches the mode that traces or observes the block, as any other add does.
    if has_torch_function((skip, branch)):
        return handle_torch_function(residual_add, (skip, branch), skip, branch, output=output)
    _check(skip, branch, output)
    return torch.add(skip, branch) if output is None else output


def _check(skip: object, branch: object, output: object) -> None:
    if isinstance(skip, Tensor) and isinstance(branch, (Tensor, int, float)) and isinstance(output, (Tensor, NoneType)):
        return
    given = {"skip": skip, "branch": branch} | ({} if output is None else {"output": output})
    kinds = ", ".join(f"{name} a {type(value).__name__}" for name, value in given.items())
    raise ConfigurationError(
        "residual_add adds a branch to a skip, which are tensors of one shape, and was given others "
        f"({kinds}). Pass the two tensors as y = resmon.residual_add(skip, branch); where there is nothing to add, leave the call "
        "out."
    )
