"""One rank that trains a `Stack` in the ways of `CASES`: `python -m tests.capture.sharded FOLDER BARE CASE...`.

Each case is a run of its own in FOLDER, and `<case>-<rank>.json` holds a digest of the weights that it ended with and the
collectives that were issued. With BARE "1" nothing is watched.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import resmon
from tests.capture import stack

Wrap = Callable[[stack.Stack], nn.Module]  # what the loop calls


@dataclass(frozen=True)
class Case:
    """How the model is spread. `watch`: what the loop calls ("outside"), the module "inside", or that "before" it is wrapped."""

    wrap: Wrap
    watch: str = "outside"
    uneven: bool = False
    parts: int | None = None  # into which the batch is cut; one for each rank
    micro_batches: int = 1
    synchronise: Callable[[nn.Module, bool], AbstractContextManager[object]] = lambda model, last: nullcontext()
    evaluates_first: bool = False  # a pass without gradients before anything is watched
    divide: bool = False  # the loop divides its loss by the number of ranks, and the gradients are summed
    clip: float = math.inf
    average: bool = False  # the loop averages gradients itself
    detour_on: tuple[int, ...] = ()  # ranks that use the detour
    left_out: tuple[tuple[int, ...], ...] = ()  # by rank: blocks that its passes go by
    past_from: int | None = None  # the step from which on the loop calls what is inside the wrapper
    unfreeze_at: int | None = None  # the step at which the first block, frozen when it is wrapped, is trained again
    settings: dict[str, Any] = field(default_factory=dict)
    feed: Callable[[Tensor], Tensor] = lambda batch: batch


def ddp(**options: Any) -> Wrap:
    return lambda model: DistributedDataParallel(model, **options)


def fsdp(mesh: Callable[[], Any] | None = None, blocks: bool = True, root: bool = True, **options: Any) -> Wrap:
    def wrap(model: stack.Stack) -> nn.Module:
        over = mesh() if mesh else init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.h if blocks else ():
            fully_shard(block, mesh=over, **options)
        if root:
            fully_shard(model, mesh=over, **options)
        return model

    return wrap


def hybrid() -> Any:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def fsdp_sum(model: stack.Stack) -> nn.Module:
    called: Any = fsdp()(model)
    for module in (called, *called.h):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    return called


def tensor_parallel(model: stack.Stack) -> nn.Module:
    """Branches are split, the stream is whole on each rank, and nobody says so of the norms."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    for block in model.h:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def sequence_parallel(model: stack.Stack, mesh: Any = None) -> nn.Module:
    """The stream is cut along the sequence; a norm's gradient is one summand of as many as there are ranks."""
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    cut = Shard(1)
    plan = {
        "stem": RowwiseParallel(input_layouts=Replicate(), output_layouts=cut),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=cut, output_layouts=Replicate()),
    }
    for i in range(len(model.h)):
        plan |= {
            f"h.{i}.ln_1": SequenceParallel(),
            f"h.{i}.attn": RowwiseParallel(input_layouts=cut, output_layouts=cut),
            f"h.{i}.ln_2": SequenceParallel(),
            f"h.{i}.up": ColwiseParallel(input_layouts=cut),
            f"h.{i}.down": RowwiseParallel(output_layouts=cut),
        }
    parallelize_module(model, mesh, plan)
    return model


def two_dimensional(model: stack.Stack) -> nn.Module:
    """FSDP2 over one dimension of the mesh, tensor parallelism over the other."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for block in model.h:
        parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return model


def distributed_stream(model: stack.Stack) -> nn.Module:
    """Every parameter and activation is a DTensor; the batch is cut, the weights are replicated."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
    return distribute_module(model, mesh)


def distributed_batch(batch: Tensor) -> Tensor:
    return distribute_tensor(batch, init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",)), [Shard(0)])


def no_sync(model: Any, last: bool) -> AbstractContextManager[object]:
    return nullcontext() if last else model.no_sync()


def no_sync_ever(model: Any, last: bool) -> AbstractContextManager[object]:
    return model.no_sync()


def fsdp_no_sync(model: Any, last: bool) -> AbstractContextManager[object]:
    model.set_requires_gradient_sync(last)
    return nullcontext()


class Outer(nn.Module):
    """What is watched holds the wrapper that averages."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


def no_sync_inside(model: Any, last: bool) -> AbstractContextManager[object]:
    return nullcontext() if last else model.inner.no_sync()


def no_sync_inside_ever(model: Any, last: bool) -> AbstractContextManager[object]:
    return model.inner.no_sync()


def fsdp1(model: stack.Stack) -> nn.Module:
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

CASES: dict[str, Case] = {
    "ddp": Case(ddp()),
    "ddp-inside": Case(ddp(), watch="inside"),
    "ddp-before": Case(ddp(), watch="before"),
    "ddp-accumulate": Case(ddp(), micro_batches=2, synchronise=no_sync),
    "ddp-unused": Case(ddp(find_unused_parameters=True), detour_on=(0,)),
    "ddp-static": Case(ddp(static_graph=True)),
    "ddp-clip": Case(ddp(), clip=0.2),
    "ddp-view": Case(ddp(gradient_as_bucket_view=True)),
    "ddp-unsynchronised": Case(ddp(), synchronise=no_sync_ever),
    "ddp-depth": Case(ddp(find_unused_parameters=True), left_out=((), (1,))),
    "ddp-disjoint": Case(ddp(find_unused_parameters=True), left_out=((1,), (0,))),
    "ddp-past": Case(ddp(), past_from=1),
    "ddp-unfrozen": Case(ddp(), unfreeze_at=1),
    "ddp-unfrozen-before": Case(ddp(), unfreeze_at=-1),
    "part-accumulate": Case(lambda model: Outer(ddp()(model)), micro_batches=2, synchronise=no_sync_inside),
    "part-unsynchronised": Case(lambda model: Outer(ddp()(model)), synchronise=no_sync_inside_ever),
    "fsdp1": Case(fsdp1),
    "fsdp1-own": Case(fsdp1, settings={"other_ranks": "own"}),
    "fsdp": Case(fsdp()),
    "fsdp-keep": Case(fsdp(reshard_after_forward=False)),
    "fsdp-evaluated": Case(fsdp(reshard_after_forward=False), evaluates_first=True),
    "fsdp-root": Case(fsdp(blocks=False)),
    "fsdp-uneven": Case(fsdp(), uneven=True),
    "fsdp-half": Case(fsdp(mp_policy=HALF)),
    "fsdp-accumulate": Case(fsdp(), micro_batches=2, synchronise=fsdp_no_sync),
    "fsdp-sum": Case(fsdp_sum, divide=True),
    "fsdp-clip": Case(fsdp(), clip=0.2),
    "fsdp-blocks": Case(fsdp(root=False)),
    "hsdp": Case(fsdp(hybrid)),
    "hsdp-uneven": Case(fsdp(hybrid), uneven=True),
    "tp": Case(tensor_parallel, parts=1),
    "tp-same": Case(tensor_parallel, parts=1, settings={"other_ranks": "same"}),
    "sequence": Case(sequence_parallel, parts=1),
    "fsdp-tp": Case(two_dimensional, parts=2),
    "fsdp-tp-same": Case(two_dimensional, parts=2, settings={"other_ranks": "same"}),
    "dtensor": Case(distributed_stream, parts=1, feed=distributed_batch),
    "plain": Case(lambda model: model),
    "plain-averaged": Case(lambda model: model, average=True, settings={"other_ranks": "same"}),
    "plain-own": Case(lambda model: model, settings={"other_ranks": "own"}),
}


# Those in which collectives are counted, where what is watched is compared with what is not.
COMPARED = (
    "ddp",
    "fsdp-clip",
    "ddp-accumulate",
    "ddp-unused",
    "fsdp",
    "fsdp-half",
    "tp-same",
    "sequence",
    "dtensor",
    "hsdp",
    "fsdp-tp",
)


def train(name: str, folder: Path, watched: bool) -> dict[str, object]:
    case = CASES[name]
    rank, world = dist.get_rank(), dist.get_world_size()
    inner = stack.stack(case.uneven, bool(case.detour_on))
    inner.takes_detour = rank in case.detour_on
    inner.left_out = case.left_out[rank] if case.left_out else ()
    inner.h[0].requires_grad_(case.unfreeze_at is None)
    if case.watch == "before":
        monitor = resmon.watch(inner, run=name, directory=folder, **case.settings) if watched else None
    called = case.wrap(inner)
    inner.h[0].requires_grad_(case.unfreeze_at is None or case.unfreeze_at < 0)
    optimizer = torch.optim.SGD(called.parameters(), lr=stack.RATE)
    parts = case.parts or world
    mine = rank * parts // world
    if case.evaluates_first:
        with torch.no_grad():
            called(next(stack.batches(inner.stem.in_features)).chunk(parts)[mine])
    if case.watch != "before":
        target = called if case.watch == "outside" else inner
        monitor = resmon.watch(target, optimizer, run=name, directory=folder, **case.settings) if watched else None
    for step, batch in enumerate(stack.batches(inner.stem.in_features)):
        if step == case.unfreeze_at:
            inner.h[0].requires_grad_(True)
        if step == case.past_from:
            called = inner
        optimizer.zero_grad()
        micro_batches = batch.chunk(parts)[mine].chunk(case.micro_batches)
        for i, micro_batch in enumerate(micro_batches):
            with case.synchronise(called, i == len(micro_batches) - 1):
                loss = stack.loss_of(called(case.feed(micro_batch))) / len(micro_batches)
                (loss / world if case.divide else loss).backward()
        if case.average:
            for parameter in called.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world
        if case.clip < math.inf:
            torch.nn.utils.clip_grad_norm_(called.parameters(), case.clip)
        if case.watch == "before" and monitor is not None:
            monitor.step()
        optimizer.step()
    if monitor is not None:
        monitor.close()
    return {"weights": digest(called)}


def digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for tensor in _local(model):
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def _local(model: nn.Module) -> Iterator[Tensor]:
    for tensor in model.state_dict().values():
        yield tensor.to_local() if isinstance(tensor, DTensor) else tensor


def main(folder: str, bare: str, *names: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in names:
        with profile(activities=[ProfilerActivity.CPU]) if name in COMPARED else nullcontext() as profiler:
            said = train(name, Path(folder), bare != "1")
        if profiler is not None:
            said["collectives"] = Counter(e.name for e in profiler.events() if e.name.startswith(("gloo:", "c10d::", "_c10d_")))
        (Path(folder) / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(said))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
