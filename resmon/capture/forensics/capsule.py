"""An incident capsule: one module's inputs and state, and what else its failure needs to happen again elsewhere.

A safetensors file. Its tensors are the module's arguments (`input/...`), parameters and buffers (`state/...`), the gradients that
came to its outputs (`gradient/...`), unless they were broken already, and torch's random state. The entry "resmon" of its metadata
is JSON that says what they are of. Nothing in it is code: the module's class is a name to read, and only a command line makes a
module of it. What did not fit is listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resmon.capture.discovery.dataflow import leaves
from resmon.capture.forensics.birth import Event, Trace, kinds
from resmon.capture.host.compiler import plain
from resmon.errors import ConfigurationError, ResmonError

LARGEST = 64 << 20  # bytes of tensors in a capsule
LARGEST_FILE = 1 << 30  # that is opened: no capsule of ours is as large
DEPTH = 16  # of nested arguments
VERSION = 1

_HEADER = "resmon"
_RANDOM = "random"

_NAME_ONE = "Name a capsule-*.safetensors of a rank's folder."
_NOT_SAID = "the capsule does not say how the module was called. Run the training script."


class Recorder:
    """Hears of a pass that is done again, and keeps what goes into one call of one module and what comes back to it."""

    def __init__(self, path: str, call: int) -> None:
        self._wanted = path, call
        self.tensors: dict[str, Tensor] = {}
        self.arguments: Any = None
        self.autocast: dict[str, str] = {}
        self.there = False

    def entered(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (path, call) != self._wanted:
            return
        self.there = True
        self.arguments = self._written([list(args), kwargs], "input", 0)
        self.tensors[_RANDOM] = torch.get_rng_state()
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                self.autocast[device] = str(torch.get_autocast_dtype(device)).removeprefix("torch.")

    def left(self, path: str, call: int, output: Any) -> None:
        if (path, call) == self._wanted:
            for i, (_, tensor) in enumerate(leaves(output)):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient, i=i: self._arrived(i, gradient))

    def _arrived(self, output: int, gradient: Tensor) -> None:
        if not kinds(gradient):
            self.tensors[f"gradient/{output}"] = gradient.detach().clone()

    def _written(self, value: Any, name: str, depth: int) -> Any:
        """An argument as JSON has it; its tensors apart, under their names."""
        if isinstance(value, Tensor):
            self.tensors[name] = value.detach().clone()
            return {"tensor": name, "requires_grad": value.requires_grad}
        if depth < DEPTH and isinstance(value, (list, tuple)):
            return {type(value).__name__: [self._written(each, f"{name}/{i}", depth + 1) for i, each in enumerate(value)]}
        if depth < DEPTH and isinstance(value, Mapping):
            return {"dict": [[str(key), self._written(each, f"{name}/{key}", depth + 1)] for key, each in value.items()]}
        if value is None or isinstance(value, (bool, int, str)):
            return {"value": value}
        if isinstance(value, float):
            return {"float": str(value)}
        return {"left_out": type(value).__name__}


def packed(recorder: Recorder, module: nn.Module, told: Mapping[str, Any]) -> bytes:
    """A capsule of what was recorded. Raises ImportError where safetensors is not installed."""
    from safetensors.torch import save

    tensors = dict(recorder.tensors)
    state = {plain(name): tensor for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    tensors |= {f"state/{name}": tensor.detach() for name, tensor in state.items()}
    left_out = []
    room = LARGEST
    # Inputs and gradients first, then the state from its smallest on: a large table must not push out all else.
    for name in sorted(tensors, key=lambda name: (name.startswith("state/"), tensors[name].numel())):
        size = tensors[name].numel() * tensors[name].element_size()
        if size > room or tensors[name].layout is not torch.strided:
            left_out.append({"name": name, "shape": list(tensors[name].shape), "dtype": _dtype(tensors[name])})
            del tensors[name]
        else:
            room -= size
    header = {
        "version": VERSION,
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "arguments": recorder.arguments,
        "autocast": recorder.autocast,
        "training": sorted(plain(path) for path, each in module.named_modules() if each.training),
        "left_out": left_out,
        "torch": torch.__version__,
        **told,
    }
    ready = {name: tensor.to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return save(ready, {_HEADER: json.dumps(header)})


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor of a capsule, as far as one looks at it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nan: int
    infinite: int
    smallest: float | None  # of what is finite; None where nothing is
    largest: float | None
    first: tuple[int, ...] | None  # where the first stands that is not finite


@dataclass(frozen=True, slots=True)
class Capsule:
    """A capsule that was read."""

    header: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def text(self, name: str) -> str:
        value = self.header.get(name)
        return value if isinstance(value, str) else ""

    @property
    def left_out(self) -> list[str]:
        found = self.header.get("left_out")
        return [str(each["name"]) for each in found if isinstance(each, dict) and "name" in each] if isinstance(found, list) else []

    def seen(self) -> list[Seen]:
        """Every tensor but the random state, in the order of their names."""
        return [_seen(name, tensor) for name, tensor in sorted(self.tensors.items()) if name != _RANDOM]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a capsule when its module was run: where it was born, and in which direction; no event where all was finite."""

    event: Event | None
    direction: str
    nonfinite: tuple[str, ...]  # what was not finite: outputs, and gradients of inputs and parameters


def read(path: Path) -> Capsule:
    """Raises ResmonError for what is no capsule. Nothing in the file is executed."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise ConfigurationError("a capsule is a safetensors file: install that package (pip install 'resmon[torch]').") from error
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ResmonError(f"{path} has {size:,} bytes, more than any capsule. Name the file that the incident names.")
        data = path.read_bytes()
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER])
    except OSError as error:
        raise ResmonError(f"{path} cannot be read: {error.strerror or error}. {_NAME_ONE}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResmonError(
            f"{path} is no capsule, or is damaged ({type(error).__name__}: {str(error)[:200]}). {_NAME_ONE}"
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("version"), int):
        raise ResmonError(f"{path} is a safetensors file, but no capsule of resmon's. {_NAME_ONE}")
    if header["version"] > VERSION:
        raise ResmonError(f"{path} was written by a newer resmon; read it with that one.")
    return Capsule(header, tensors)


def run(capsule: Capsule, model: nn.Module) -> Verdict:
    """Run the module that the capsule is of, which `model` is or holds, with what the capsule holds. Raises ConfigurationError."""
    module = _module(capsule, model)
    missing = _load(capsule, module)
    if missing:
        raise ConfigurationError(
            f"the module does not fit the capsule: {'; '.join(missing[:5])}. Make it as it was made in the failed run."
        )
    training = capsule.header.get("training")
    for path, each in module.named_modules():
        each.training = isinstance(training, list) and plain(path) in training
    arguments = _read_back(capsule, capsule.header.get("arguments"), 0)
    if (
        not isinstance(arguments, list)
        or len(arguments) != 2
        or not isinstance(arguments[0], list)
        or not isinstance(arguments[1], dict)
    ):
        raise ConfigurationError(_NOT_SAID)
    args, kwargs = tuple(arguments[0]), arguments[1]
    if (state := capsule.tensors.get(_RANDOM)) is not None:
        torch.set_rng_state(state)
    trace = Trace(module)
    with ExitStack() as stack:
        autocast = capsule.header.get("autocast")
        for device, name in autocast.items() if isinstance(autocast, dict) else ():
            if isinstance(dtype := getattr(torch, str(name), None), torch.dtype) and device in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device, dtype))
        try:
            output = trace.forward(args, kwargs)
        except Exception as error:
            raise ConfigurationError(
                f"the module could not be run with what the capsule holds: {type(error).__name__}: {str(error)[:300]}. "
                "Make it as in the failed run."
            ) from error
    outputs = [tensor for _, tensor in leaves(output)]
    nonfinite = [f"output {i}" for i, tensor in enumerate(outputs) if kinds(tensor)]
    if sources := [event for tensor in outputs if (event := trace.source(tensor)) is not None]:
        return Verdict(min(sources, key=lambda event: event.order), "forward", tuple(nonfinite))
    given = [
        (outputs[i], gradient)
        for i in range(len(outputs))
        if (gradient := capsule.tensors.get(f"gradient/{i}")) is not None
        and outputs[i].requires_grad
        and outputs[i].shape == gradient.shape
    ]
    if not given:
        return Verdict(None, "", tuple(nonfinite))
    trace.listen()
    named: dict[str, Tensor] = {f"parameter {name}": each for name, each in module.named_parameters() if each.requires_grad}
    named |= {f"input {i}": tensor for i, (_, tensor) in enumerate(leaves((args, kwargs))) if tensor.requires_grad}
    gradients = torch.autograd.grad(
        [output for output, _ in given], list(named.values()), [gradient for _, gradient in given], allow_unused=True
    )
    nonfinite += [f"gradient of {name}" for name, each in zip(named, gradients, strict=True) if each is not None and kinds(each)]
    found = trace.backward_source()
    event = (trace.behind(found[0]) or found[0]) if found else None
    return Verdict(event, "backward" if event is not None else "", tuple(nonfinite))


def _module(capsule: Capsule, model: nn.Module) -> nn.Module:
    """The module that the capsule is of: `model`, or the one at its path in there. A script's own class is known by its name."""
    path, wanted = capsule.text("module"), capsule.text("class")
    candidates: list[nn.Module] = [model, *(each for name, each in model.named_modules() if plain(name) == path)]
    for found in candidates:
        kind = type(found)
        if f"{kind.__module__}.{kind.__qualname__}" == wanted or f"__main__.{kind.__qualname__}" == wanted:
            return found
    raise ConfigurationError(
        f"the capsule is of a {wanted}, module {path or 'the model itself'!r} of its model; {type(model).__name__} is none, and "
        "holds none there. Name what makes that class, or the whole model."
    )


def _load(capsule: Capsule, module: nn.Module) -> list[str]:
    """Give the module the capsule's state. Returns what does not fit."""
    missing = []
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            kept = capsule.tensors.get(f"state/{plain(name)}")
            if kept is None:
                missing.append(f"{plain(name)} is not in the capsule" + (", it was too large" if capsule.left_out else ""))
            elif kept.shape != tensor.shape:
                missing.append(f"{plain(name)} has shape {tuple(tensor.shape)} and {tuple(kept.shape)} in the capsule")
            elif kept.dtype != tensor.dtype:
                tensor.data = kept.clone()
            else:
                tensor.copy_(kept)
    return missing


def _read_back(capsule: Capsule, written: Any, depth: int) -> Any:
    if not isinstance(written, dict) or depth > DEPTH + 2:
        raise ConfigurationError(_NOT_SAID)
    if "tensor" in written:
        tensor = capsule.tensors.get(str(written["tensor"]))
        if tensor is None:
            raise ConfigurationError(
                f"the argument {written['tensor']} is not in the capsule: it was too large. Run the training script."
            )
        wants = bool(written.get("requires_grad")) and tensor.is_floating_point()
        return tensor.clone().requires_grad_(wants)
    for kind in ("list", "tuple"):
        if isinstance(written.get(kind), list):
            found = [_read_back(capsule, each, depth + 1) for each in written[kind]]
            return found if kind == "list" else tuple(found)
    if isinstance(written.get("dict"), list):
        return {str(pair[0]): _read_back(capsule, pair[1], depth + 1) for pair in written["dict"] if _is_pair(pair)}
    if "value" in written:
        return written["value"]
    if "float" in written:
        return float(written["float"])
    raise ConfigurationError(
        f"an argument of the module was a {written.get('left_out', '?')}, which a capsule cannot hold: run the training script."
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _seen(name: str, tensor: Tensor) -> Seen:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        numbers = tensor.to(torch.float64)
    else:
        numbers = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).to(torch.float64)
    finite = numbers.isfinite()
    there = numbers[finite]
    bad = (~finite).nonzero()
    return Seen(
        name,
        tuple(tensor.shape),
        _dtype(tensor),
        int(numbers.isnan().sum()),
        int(numbers.isinf().sum()),
        float(there.min()) if there.numel() else None,
        float(there.max()) if there.numel() else None,
        tuple(bad[0].tolist()) if len(bad) else None,
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
