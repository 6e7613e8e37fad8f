"""What `resmon diff` says of structure and of where streams part, from flights alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resmon
from benchmarks.faults.architectures import ARCHITECTURES
from resmon.diff.comparison import Comparison, compare
from resmon.diff.divergence import STATISTICS, diverge, steps_to_look_at
from resmon.diff.report import as_json, divergence_sentence, structure_sentences
from resmon.diff.runs import Series
from resmon.diff.structure import compare_structure, order
from resmon.flight.schema import sites_from_json, sites_to_json
from resmon.records import Ints, ResidualSite
from tests.twins import Convolutional, Transformer


def train(directory: Path, run: str, model: nn.Module, steps: int = 12, rate: float = 0.02, later: float = 0) -> Path:
    """The same weights and data each time; `later` is a learning rate from step 6 on."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with resmon.watch(model, optimizer, run=run, agent="off", directory=directory) as monitor:
        for step in range(steps):
            x = torch.randn(8, 1, 8, 8)
            optimizer.param_groups[0]["lr"] = later if later and step >= 6 else rate
            loss = nn.functional.cross_entropy(model(x), (x.mean((1, 2, 3)) > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)
    return monitor.directory / "attempt-0001"


def compared(directory: Path, a: Callable[[], nn.Module], b: Callable[[], nn.Module]) -> Comparison:
    return compare([train(directory, "a", a())], [train(directory, "b", b())])


def said(comparison: Comparison) -> list[tuple[str, str, int]]:
    assert comparison.structure is not None
    return [(each.aspect, each.what, len(each.blocks)) for each in comparison.structure.differences]


@pytest.mark.parametrize(("model", "kind", "blocks"), [(Convolutional, "activation", 4), (Transformer, "norm", 6)])
def test_blocks_in_another_order_are_found_from_two_flights_alone(
    model: Callable[[bool], nn.Module], kind: str, blocks: int, tmp_path: Path
) -> None:
    shapes = [{name: parameter.shape for name, parameter in model(post).named_parameters()} for post in (False, True)]
    assert shapes[0] == shapes[1]
    there = compared(tmp_path, lambda: model(False), lambda: model(True))
    assert said(there) == [("order", f"went from pre-{kind} to post-{kind} order", blocks)]
    back = compare([Path(there.b[0].folder)], [Path(there.a[0].folder)])
    assert said(back) == [("order", f"went from post-{kind} to pre-{kind} order", blocks)]
    assert there.divergence is not None and there.divergence.first is not None
    assert there.divergence.first.step == 0
    assert there.divergence.first.block.startswith("blocks.0")


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("name", ["pre-activation", "in-place"])
def test_one_block_in_another_order_is_named_alone(name: str, block: int) -> None:
    """The one in the middle projects its skip, in a pre-activation network behind the block's first activation."""
    healthy = ARCHITECTURES[name]
    assert healthy.reordered is not None
    images = torch.randn(2, 1, 8, 8)
    usual, swapped = (resmon.discover(model.train(), images) for model in (healthy.make(), healthy.reordered(block)))
    for a, b, orders in ((usual, swapped, ("pre", "post")), (swapped, usual, ("post", "pre"))):
        was, became = orders if name == "pre-activation" else orders[::-1]
        found = compare_structure(a, b).differences
        assert [(each.aspect, each.blocks) for each in found if each.aspect == "order"] == [("order", (f"blocks.{block}",))]
        assert found[0].what == f"went from {was}-activation to {became}-activation order"


def test_the_same_model_has_no_difference(tmp_path: Path) -> None:
    comparison = compared(tmp_path, Convolutional, Convolutional)
    assert said(comparison) == []
    assert comparison.divergence is not None
    assert comparison.divergence.first is None
    assert comparison.divergence.equal_until == 11
    assert "equal to the last bit up to step 11" in divergence_sentence(comparison.divergence)


def test_where_one_run_of_each_parts_from_the_other(tmp_path: Path) -> None:
    a = train(tmp_path, "a", Convolutional(), steps=30)
    b = train(tmp_path, "b", Convolutional(), steps=30, later=5.0)
    divergence = compare([a], [b]).divergence
    assert divergence is not None and divergence.first is not None
    assert divergence.equal_until == 6  # the weights that step 6 makes are the first others
    assert 7 <= divergence.first.step <= 9
    assert divergence.first.size is None


class Configurable(nn.Module):
    """A pre-activation block with a choice of everything that can differ."""

    def __init__(
        self, width: int = 8, inside: int = 8, projection: bool = False, scale: bool = False, dropout: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.one = nn.Conv2d(width, inside, 1)
        self.dropout = nn.Dropout(0.1) if dropout else nn.Identity()
        self.two = nn.Conv2d(inside, width, 1)
        self.projection = nn.Conv2d(width, width, 1) if projection else nn.Identity()
        self.gain = nn.Parameter(torch.full((), 0.1)) if scale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        branch = self.two(self.dropout(torch.relu(self.one(self.norm(x)))))
        return self.projection(x) + (branch if isinstance(self.gain, float) else self.gain * branch)


class Chain(nn.Module):
    def __init__(self, names: Sequence[str] = ("first", "second", "third"), **last: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 1)
        self.blocks = nn.ModuleDict(
            {name: Configurable(**(last if i == len(names) - 1 else {})) for i, name in enumerate(names)}  # type: ignore[arg-type]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks.values():
            x = block(x)
        return x


def sites(model: nn.Module) -> list[ResidualSite]:
    return resmon.discover(model, torch.randn(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("change", "aspect", "what"),
    [
        ({"projection": True}, "skip", "has a projection on its skip, which was an identity"),
        (
            {"inside": 16},
            "width",
            "has Conv2d[16,8,1,1], where A has Conv2d[8,8,1,1]; has Conv2d[8,16,1,1], where A has Conv2d[8,8,1,1]",
        ),
        ({"scale": True}, "scaling", "gained mul[]"),
        ({"dropout": True}, "operations", "gained Dropout"),
    ],
)
def test_what_became_of_a_block(change: dict[str, object], aspect: str, what: str) -> None:
    found = compare_structure(sites(Chain()), sites(Chain(**change))).differences
    assert [(each.aspect, each.blocks) for each in found] == [(aspect, ("blocks.third",))]
    assert what in found[0].what


def test_blocks_that_were_added_removed_and_renamed() -> None:
    a = sites(Chain())
    (added,) = compare_structure(a, sites(Chain(("first", "second", "third", "fourth")))).differences
    assert (added.aspect, added.a, added.b) == ("added", (), ("blocks.fourth",))
    (removed,) = compare_structure(a, sites(Chain(("first", "third")))).differences
    assert (removed.aspect, removed.a) == ("removed", ("blocks.second",))
    structure = compare_structure(a, sites(Chain(("first", "middle", "third"))))
    (renamed,) = structure.differences
    assert (renamed.aspect, renamed.a, renamed.b) == ("renamed", ("blocks.second",), ("blocks.middle",))
    assert ("blocks.second", "blocks.middle") in structure.pairs


def test_a_renamed_block_is_compared_with_what_it_was(tmp_path: Path) -> None:
    comparison = compared(tmp_path, Chain10, lambda: Chain10(("first", "middle")))
    assert {row.block for row in comparison.rows if row.block} == {"chain.blocks.first", "chain.blocks.middle"}
    assert (comparison.only_a, comparison.only_b) == ((), ())


class Chain10(nn.Module):
    def __init__(self, names: Sequence[str] = ("first", "second")) -> None:
        super().__init__()
        self.chain = Chain(names)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.chain(x).mean((2, 3)))
        return y


class Handmade(nn.Module):
    """A norm of its own and weights without modules: as much of it as can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.norm = RootMeanSquare(6)

    def forward(self, x: Tensor) -> Tensor:
        return x.add(nn.functional.gelu(self.norm(x) @ self.weight), alpha=0.5)


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


def test_functions_and_modules_of_the_users_own_have_names() -> None:
    (site,) = resmon.discover(Handmade(), torch.randn(2, 6))
    assert site.operations == ("RootMeanSquare[6]", "matmul[6,6]", "gelu", "×0.5")


def test_the_operations_travel_with_the_flight() -> None:
    found = tuple(sites(Chain(projection=True)))
    assert sites_from_json(sites_to_json(found)) == found
    assert found[-1].skip_operations == ("Conv2d[8,8,1,1]",)
    before = tuple(replace(site, operations=(), skip_operations=(), following=()) for site in found)
    assert "operations" not in sites_to_json(before)  # so that the checksums of rows that were written before hold
    structure = compare_structure(before, found)
    assert not structure.operations_known
    assert "not known" in structure_sentences(structure)[0]


@pytest.mark.parametrize("operations", [3, "relu", [1]])
def test_operations_that_are_none_are_refused(operations: object) -> None:
    (item,) = json.loads(sites_to_json([ResidualSite("a", "a", "identity", (), (), (1,))]))
    if operations == "relu":
        assert sites_from_json(json.dumps([item | {"operations": operations}]))[0].operations == tuple("relu")
        return
    with pytest.raises(ValueError, match="not a"):
        sites_from_json(json.dumps([item | {"operations": operations}]))


def test_what_normalises_before_and_after_is_in_neither_order() -> None:
    site = ResidualSite("a", "a", "identity", (), (), (1,), operations=("LayerNorm[4]", "Linear[4,4]"), following=("LayerNorm[4]",))
    assert order(site) is None
    assert order(replace(site, following=())) == "pre"
    assert order(replace(site, operations=("Linear[4,4]",))) == "post"
    assert order(replace(site, operations=("cos",), following=())) is None


def streams(random: np.random.Generator, steps: Ints, blocks: int, apart: int | None, block: int) -> dict[str, dict[str, Series]]:
    """Levels that differ between runs by a tenth, over steps by a hundredth; from `apart` on one branch is thrice as high."""
    made: dict[str, dict[str, Series]] = {}
    for i in range(blocks):
        made[f"h.{i}"] = {}
        for statistic in STATISTICS:
            values = np.exp(random.normal(0, 0.1) + random.normal(0, 0.01, len(steps)))
            if apart is not None and i == block and statistic == "branch_rms":
                values = np.where(steps >= apart, 3 * values, values)
            made[f"h.{i}"][statistic] = Series(steps, values)
    return made


def test_the_step_and_block_at_which_kinds_of_runs_part() -> None:
    steps = np.arange(0, 400, 2)
    found = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        a = [streams(random, steps, 8, None, 0) for _ in range(4)]
        b = [streams(random, steps, 8, 100, 5) for _ in range(4)]
        divergence = diverge(a, b, steps)
        assert divergence is not None
        if divergence.first is not None and divergence.first.block == "h.5":
            found += 1
            assert 92 <= divergence.first.step <= 108
            assert divergence.first.statistic == "branch_rms"
            assert divergence.first.size is not None and divergence.first.size > 3
    assert found >= 19


def test_kinds_that_do_not_differ_seldom_part() -> None:
    steps = np.arange(120)
    parted = 0
    for seed in range(60):
        random = np.random.default_rng(1000 + seed)
        a, b = ([streams(random, steps, 8, None, 0) for _ in range(3)] for _ in range(2))
        divergence = diverge(a, b, steps)
        parted += divergence is not None and divergence.first is not None
    assert parted <= 8  # of 60, at a level of 5 %


def test_few_of_many_steps_are_looked_at_and_the_first_all() -> None:
    steps = np.arange(10, 1_000_010)
    chosen = steps_to_look_at(steps)
    assert len(chosen) <= 256
    assert chosen[:64].tolist() == list(range(10, 74))
    assert chosen[-1] == steps[-1]


def test_the_json_has_it_all(tmp_path: Path) -> None:
    made = as_json(compared(tmp_path, Convolutional, lambda: Convolutional(True)))
    assert made["structure"]["differences"][0]["aspect"] == "order"
    assert made["divergence"]["partings"][0]["step"] == 0
    json.dumps(made, allow_nan=False)
