"""The model that `resmon inspect package.module:name` speaks of, and inputs for it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resmon.capture.host.compiler import plain
from resmon.errors import ConfigurationError

Target = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def load_target(name: str) -> Target:
    """Import `package.module:name`, from the current directory too, and make of it a model with the inputs that come along.

    The name is a module, a class of modules or a function, called without arguments, that gives a module, (module, args) or
    (module, args, kwargs). Raises ConfigurationError where it is none of these.
    """
    return made(name, imported(name))


def imported(name: str) -> Any:
    """What `package.module:name` names. Raises ConfigurationError where there is no such thing."""
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise ConfigurationError(f"{name!r} names no model. Write package.module:name, such as mymodels.resnet:make_model.")
    if module_name.endswith(".py"):
        parts = (part for part in Path(module_name).with_suffix("").parts if part not in (".", "/"))
        module = ".".join(parts)
        raise ConfigurationError(
            f"{module_name!r} is a file, and a module is named: {module}:{path}, from the folder in which that can be imported."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f"{module_name!r} cannot be imported: {error}. Run the command where it can be, such as the project's root."
        ) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            models = [key for key, value in vars(found).items() if isinstance(value, type) and issubclass(value, nn.Module)]
            known = (
                f"It has these models: {', '.join(models)}." if models else "Name a model, its class or a function that makes it."
            )
            raise ConfigurationError(f"{module_name!r} has no {path!r}. {known}")
        found = getattr(found, attribute)
    return found


def made(name: str, found: Any) -> Target:
    """The model, and the inputs that come along, that `found` is or makes. Raises ConfigurationError where it is or makes none."""
    if not isinstance(found, nn.Module) and callable(found):
        try:
            inspect.signature(found).bind()
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{name} cannot be called without arguments: {error}. "
                "Name a function that makes the model: def make(): return Model(...)."
            ) from error
        found = found()
    parts = found if isinstance(found, tuple) else (found,)
    if not parts or len(parts) > 3 or not isinstance(parts[0], nn.Module):
        raise ConfigurationError(
            f"{name} gives {_kind(found)}; it must give a torch.nn.Module, (module, args) or (module, args, kwargs)."
        )
    args: Any = parts[1] if len(parts) > 1 else ()
    kwargs: Any = parts[2] if len(parts) > 2 else {}
    if isinstance(args, dict) and len(parts) == 2:
        args, kwargs = (), args
    if isinstance(args, Tensor):
        args = (args,)
    if not isinstance(args, Sequence) or not isinstance(kwargs, dict):
        raise ConfigurationError(f"{name} gives {_kind(found)}; args must be a tuple and kwargs a dict.")
    return parts[0], tuple(args), kwargs


def random_input(text: str) -> Tensor:
    """`8,3,32,32` is a tensor of that shape from the normal distribution, `int:8,128:50257` one of integers below 50,257."""
    numbers, limit = text, None
    if text.startswith("int:"):
        numbers, _, upper = text.removeprefix("int:").partition(":")
        limit = int(upper) if upper.isdecimal() else 0
    sizes = [size.strip() for size in numbers.split(",")]
    if limit == 0 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ConfigurationError(
            f"the input {text!r} cannot be read. Write a shape, such as 8,3,32,32, "
            "or int:SHAPE:LIMIT for token ids, such as int:8,128:50257."
        )
    shape = [int(size) for size in sizes]
    return torch.randn(shape) if limit is None else torch.randint(limit, shape)


def parameter_count(model: nn.Module, names: Sequence[str]) -> int:
    """The elements of the parameters that bear these names."""
    sizes = {plain(name): parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
    return sum(sizes.get(name, 0) for name in names)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__
