"""Which torch this room works with, asked before any of its private parts is imported: what is missing there names no version.

From LEAST on everything that eager training uses is there: the stance of the compiler, FSDP2's public classes, the function in
which all gradient clipping ends. In graphs observing needs IN_GRAPHS: before it torch.compile ignored what an autograd.Function
says of tensors changed in place (pytorch/pytorch#184113), and no trick of ours is worth a model's wrong gradient.
"""

from __future__ import annotations

import re

from resmon.errors import ConfigurationError

LEAST = (2, 6)
IN_GRAPHS = (2, 13)


def at_least(version: str, least: tuple[int, int]) -> bool:
    """Whether a version is `least` or newer; one that is no number, as of a build from a private branch, is taken to be."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= least


def check() -> None:
    """Raise ConfigurationError where torch is missing or too old."""
    needed = f"torch {LEAST[0]}.{LEAST[1]} or newer"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigurationError(
            f"resmon needs {needed} to watch a model, and there is none here: pip install 'resmon[torch]'."
        ) from error
    found = str(getattr(torch, "__version__", "of unknown version"))
    if not at_least(found, LEAST):
        raise ConfigurationError(f"resmon needs {needed} to watch a model, and this is torch {found}; pip install --upgrade torch.")
