"""What share of a gradient lies on this rank, so that the ranks' shares of a squared norm add up to the truth.

What a wrapper says of its tensors is taken from the wrapper: the placements of a DTensor (FSDP2, HSDP, tensor parallelism) and the
group of a DistributedDataParallel. A shard counts whole, one of n equal replicas 1/n. A gradient that is one summand of several
(Partial), that was not synchronised before the step, or that other ranks may hold too without anybody saying so, has no share that
could be known here: it is absent, with the reason. Nothing in this module communicates or waits for a device.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resmon.capture.host import process
from resmon.capture.host.compiler import plain

# What the ranks that no wrapper accounts for hold: the same gradient (the loop averages it itself), or parameters of their own.
OtherRanks = Literal["same", "own"]

UNSYNCHRONISED = "the optimizer stepped on gradients that were not synchronised (no_sync)"
PASSED_BY = (
    "the pass went by DistributedDataParallel (model.module(...)), which then does not synchronise gradients: each rank stepped on "
    "its own. Call the wrapper itself"
)
UNFROZEN = (
    "it was frozen when DistributedDataParallel wrapped the model, which does not synchronise its gradient: each rank steps on its "
    "own. Wrap the model again after unfreezing"
)
SOME_UNFROZEN = (
    "DistributedDataParallel does not synchronise parameters that were frozen when it wrapped the model, and more are trained than "
    "it knows: each rank steps on its own gradients of some. Wrap the model again after unfreezing"
)
UNKNOWN_STREAM = "the sum is a plain tensor in a tensor-parallel region, which does not tell whether it is whole or a part"
UNLIKE_REPLICAS = "a communication hook that does not average over all ranks leaves each with a gradient of its own"
FSDP1 = "FullyShardedDataParallel, FSDP1, does not tell what part of a gradient lies on this rank; fully_shard, FSDP2, does"
UNEQUAL_DIVISION = "FSDP divides the gradients of its modules by different factors, so that no one scale is the averaged loss's"


@dataclass(frozen=True, slots=True)
class Share:
    """What a local square is multiplied with to be this rank's share of the true square, or why that cannot be known."""

    factor: float
    reason: str = ""

    @property
    def known(self) -> bool:
        return not self.reason

    @property
    def replicas(self) -> int:
        """How many ranks have the same share."""
        return round(1 / self.factor) if self.known else 1


WHOLE = Share(1.0)


def unknown(reason: str) -> Share:
    return Share(0.0, reason)


def unwrapped(model: Any) -> Any:
    """The module inside DistributedDataParallel and torch.compile, whose parameters bear the names that they have without it."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            return model


def class_name(model: nn.Module) -> str:
    """The name of a model's class as it was before FSDP2 put a class of its own in front of it."""
    kind = type(model)
    if _loaded("torch.distributed.fsdp", "FSDPModule") in kind.__bases__:
        kind = kind.__bases__[-1]
    return kind.__name__


def local(tensor: Tensor) -> tuple[Tensor, Share]:
    """The part of `tensor` that lies on this rank, and its share as far as the tensor itself tells."""
    share = WHOLE
    if is_distributed(tensor):
        share = _of_placements(tensor)
        tensor = tensor._local_tensor  # type: ignore[attr-defined] # to_local() would add a node to a graph
    if isinstance(tensor, _loaded("torch.distributed._functional_collectives", "AsyncCollectiveTensor")):
        # Somebody's collective is under way. Whoever uses the tensor waits for it; on a GPU that is the stream, not the host.
        tensor = tensor.trigger_wait()
    return tensor, share


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, which tells its own placements."""
    return type(tensor) is not Tensor and isinstance(tensor, _loaded("torch.distributed.tensor", "DTensor"))


def _loaded(module: str, name: str) -> Any:
    """A class, for isinstance, without importing its module: DTensor's takes 40 MB. Where nobody did, nothing is one."""
    return getattr(sys.modules.get(module), name, ())


def _of_placements(tensor: Any) -> Share:
    replicas = 1
    for dimension, placement in enumerate(tensor.placements):
        size = tensor.device_mesh.size(dimension)
        if size == 1:
            continue
        if placement.is_partial():
            return unknown(
                f"it is Partial over {_mesh_dimension(tensor.device_mesh, dimension)}: each of {size} ranks holds one summand, and "
                "only communication would tell their sum"
            )
        if placement.is_replicate():
            replicas *= size
    return Share(1 / replicas)


def _mesh_dimension(mesh: Any, dimension: int) -> str:
    names = mesh.mesh_dim_names
    return f"the mesh's dimension {names[dimension]!r}" if names else f"dimension {dimension} of the mesh"


class _Wrapper:
    """What is known of one DistributedDataParallel: over how many ranks it averages, and why its last pass does not."""

    __slots__ = ("passed", "reason", "size", "unsynchronised")

    def __init__(self, module: DistributedDataParallel, parameters: Sequence[nn.Parameter]) -> None:
        self.size = module.process_group.size()
        self.reason = ""
        self.passed = False  # a pass has gone through it in this step
        self.unsynchronised = _unsynchronised(module, parameters)  # by id: why it is so of a parameter

    def why_unknown(self, parameter: Tensor) -> str:
        return self.reason or self.unsynchronised.get(id(parameter), "")


class Placement:
    """How gradients are spread over the ranks of this run, as far as their wrappers tell.

    `other_ranks` is what the user says of ranks that no wrapper accounts for.
    """

    def __init__(self, models: Iterable[nn.Module], other_ranks: OtherRanks | None = None) -> None:
        self.world = 1  # how many ranks train, as of the last look
        self._other_ranks = other_ranks
        self._models = list(models)
        self._wrappers: weakref.WeakKeyDictionary[nn.Module, _Wrapper] = weakref.WeakKeyDictionary()
        self._around: weakref.WeakKeyDictionary[nn.Module, _Wrapper] = weakref.WeakKeyDictionary()  # of a model, that called it
        self._inside: list[DistributedDataParallel] = []  # those that are parts of the models
        self._fsdp1 = False  # parts of the models are FSDP1's
        self._wrapper_of: dict[int, _Wrapper] = {}  # by the id of a parameter that it synchronises
        self._shares: dict[int, tuple[Any, Share]] = {}  # by a parameter's id: its gradient's layout and share
        self._outputs: dict[tuple[int, bool], Share] = {}
        self._look_around()

    def look(self) -> None:
        """See whether the process, which may do so after it was watched, has joined a group."""
        if self.world == 1 and process.is_in_group():
            self._look_around()

    @property
    def unknown_of_all(self) -> str:
        """Why no gradient's share can be known, "" where some can."""
        return FSDP1 if self._fsdp1 else ""

    def _look_around(self) -> None:
        self.world = process.rank_and_world()[1]
        if self.world == 1:
            return
        self._forget()
        modules = [module for model in self._models for module in model.modules()]
        self._inside = [module for module in modules if isinstance(module, DistributedDataParallel)]
        self._fsdp1 = any(isinstance(module, _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")) for module in modules)
        for module in self._inside:
            self._learn(module)

    def pass_begun(self) -> None:
        """A forward pass begins; where it is inside a DistributedDataParallel, torch tells which."""
        self.look()
        if self.world == 1:
            return
        active = DistributedDataParallel._active_ddp_module
        for module in (*self._inside, *((active,) if active is not None else ())):
            wrapper = self._wrappers.get(module) or self._learn(module)
            reason = _why_unsynchronised(module)
            if wrapper.reason != reason:
                wrapper.reason = reason
                self._forget()

    def entered(self, model: nn.Module) -> None:
        """A pass of `model` begins, outside of graphs: through the DistributedDataParallel around it, or past that?"""
        if self.world == 1:
            return
        active = DistributedDataParallel._active_ddp_module
        if active is not None:
            wrapper = self._around[model] = self._wrappers.get(active) or self._learn(active)
            wrapper.passed = True
            return
        around = self._around.get(model)
        # One pass through it has it synchronise all that the backward passes bring until then.
        if around is not None and not around.passed and around.reason != PASSED_BY:
            around.reason = PASSED_BY
            self._forget()

    def step_over(self) -> None:
        for wrapper in self._around.values():
            wrapper.passed = False

    def _learn(self, module: DistributedDataParallel) -> _Wrapper:
        named = module.module.named_parameters(remove_duplicate=False)
        parameters = {id(each): each for name, each in named if name not in module.parameters_to_ignore}
        wrapper = self._wrappers[module] = _Wrapper(module, list(parameters.values()))
        self._wrapper_of.update(dict.fromkeys(parameters, wrapper))
        self._forget()
        return wrapper

    def _forget(self) -> None:
        self._shares.clear()
        self._outputs.clear()

    def gradient(self, parameter: Tensor, gradient: Tensor) -> tuple[Tensor, Share]:
        """The local part of a parameter's gradient, and its share."""
        part, share, layout = gradient, WHOLE, None
        if type(gradient) is not Tensor:
            layout = getattr(gradient, "placements", None)
            part, share = local(gradient)
        known = self._shares.get(id(parameter))
        if known is None or known[0] != layout:
            known = self._shares[id(parameter)] = layout, self._share(parameter, gradient, share)
        return part, known[1]

    def _share(self, parameter: Tensor, gradient: Any, share: Share) -> Share:
        if self.world == 1 or not share.known:
            return share
        if self._fsdp1:
            return unknown(FSDP1)
        accounted = gradient.device_mesh.size() if is_distributed(gradient) else 1
        factor = share.factor
        wrapper = self._wrapper_of.get(id(parameter))
        if wrapper is not None:
            if why := wrapper.why_unknown(parameter):
                return unknown(why)
            accounted *= wrapper.size
            factor /= wrapper.size
        others = self._others(accounted)
        return Share(factor * others.factor) if others.known else others

    def output(self, model: nn.Module, distributed: bool) -> Share:
        """The share of the squared gradient of a site's output in the scale of the loss that is averaged over the ranks.

        `distributed` says that the output is a DTensor, whose own placements count besides.
        """
        key = id(model), distributed
        if key not in self._outputs:
            self._outputs[key] = self._output(model, distributed)
        return self._outputs[key]

    def _output(self, model: nn.Module, distributed: bool) -> Share:
        if self.world == 1:
            return WHOLE
        if self._fsdp1:
            return unknown(FSDP1)
        parameters = list(model.parameters())
        # The ranks that average their losses, what the gradients are divided by for it, and the ranks that share one loss.
        averaging = max((self._wrapper_of[id(p)].size for p in parameters if id(p) in self._wrapper_of), default=1)
        divisor = float(averaging)
        groups = list(_fsdp_groups(model))
        if groups:
            sizes = [_data_parallel_size(group.mesh_info) for group in groups]
            divisors = [getattr(group, "gradient_divide_factor", None) or size for group, size in zip(groups, sizes, strict=True)]
            if len({*zip(sizes, divisors, strict=True)}) > 1:
                return unknown(UNEQUAL_DIVISION)
            averaging *= sizes[0]
            divisor *= divisors[0]
        mesh = max((p.device_mesh.size() for p in parameters if is_distributed(p)), default=1)  # type: ignore[attr-defined]
        sharing = max(1, mesh // sizes[0]) if groups else mesh
        if sharing > 1 and not distributed:
            return unknown(UNKNOWN_STREAM)
        others = self._others(averaging * sharing)
        return Share((others.factor / divisor) ** 2) if others.known else others

    def _others(self, accounted: int) -> Share:
        """What ranks that no wrapper accounts for do to a share."""
        others = self.world / accounted
        if others <= 1 or self._other_ranks == "own":
            return WHOLE
        if self._other_ranks == "same":
            return Share(1 / others)
        return unknown(
            f"{self.world} ranks train, wrappers account for {accounted} of them, and nothing tells what the others hold; say "
            "watch(other_ranks='same') where the loop averages gradients itself, 'own' where every rank has parameters of its own"
        )


def _why_unsynchronised(module: DistributedDataParallel) -> str:
    if not module.require_backward_grad_sync:
        return UNSYNCHRONISED
    # The hooks of torch's own that average over some ranks or none; all the others leave every rank the same gradient.
    hooks = {getattr(hook, "__name__", "") for hook, _ in module._comm_hooks}
    return "" if hooks.isdisjoint(("noop_hook", "post_localSGD_hook")) else UNLIKE_REPLICAS


def _unsynchronised(module: DistributedDataParallel, parameters: Sequence[nn.Parameter]) -> dict[int, str]:
    """Of its parameters, those that it does not synchronise: what was frozen when it was made. It only tells how many it took."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        taken: int = module._get_ddp_logging_data()["num_parameter_tensors"]
    except (KeyError, RuntimeError):
        return {}
    if len(trained) > taken:
        return dict.fromkeys(map(id, trained), SOME_UNFROZEN)
    if len(trained) < taken:  # some were frozen since, and are synchronised once they are trained again
        return {}
    return {id(parameter): UNFROZEN for parameter in parameters if not parameter.requires_grad}


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that an optimizer of `model` has, under every name.

    Between an FSDP module's forward and backward, modules hold gathered parameters in the place of the shards that are trained.
    """
    shards = {
        id(held): parameter.sharded_param
        for group in _fsdp_groups(model)
        for parameter in group.fsdp_params
        if (held := getattr(parameter, "_unsharded_param", None)) is not None
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield plain(name), shards.get(id(parameter), parameter)


def _fsdp_groups(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, _loaded("torch.distributed.fsdp", "FSDPModule")):
            state: Any = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None)
            yield from (group for group in (groups if groups is not None else [state._fsdp_param_group]) if group is not None)


def _data_parallel_size(mesh_info: Any) -> int:
    """How many ranks average: those that shard times those that replicate (HSDP)."""
    return math.prod(getattr(mesh_info, name, 1) for name in ("shard_mesh_size", "replicate_mesh_size"))
