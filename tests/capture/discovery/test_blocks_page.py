"""docs/blocks.md: what it calls a block is found, what it says is told is told, what it leaves out is left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resmon
from resmon.capture.discovery.sites import look

PAGE = (Path(__file__).parents[3] / "docs" / "blocks.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| ")]
WRITTEN = [
    (code, answer.split()[0].rstrip(";,"))
    for text, answer, *more in ROWS
    if not more
    for code in re.findall(r"`([^`]+)`", text)
    if any(mark in code for mark in ("(x", "(h", "([x"))
]
EXCLUDED = {model: pattern for model, _, pattern in (row for row in ROWS if len(row) == 3) if "`exclude=" in pattern}
WIDTH = 12


@torch.library.custom_op("resmon_tests::add_and_norm", mutates_args=())
def add_and_norm(x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    return x + f, F.layer_norm(x + f, x.shape[-1:])


add_and_norm.register_autograd(lambda ctx, y, normal: (y + normal, y + normal), setup_context=lambda ctx, inputs, output: None)


class Written(nn.Module):
    """Runs code in its forward, in which x is its input and y, if it is set, its output."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.wide, self.narrow, self.sigmoid = (
            nn.Sequential(nn.Linear(n, n), nn.GELU(), nn.Linear(n, n)) for n in (WIDTH, 4, WIDTH)
        )
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.5))
        self.b = nn.Parameter(torch.eye(WIDTH))
        self.code = code

    def f(self, x: Tensor) -> Tensor:
        return self.wide(x) if x.shape[-1] == WIDTH else self.narrow(x)  # type: ignore[no-any-return]

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.sigmoid(x))

    def forward(self, x: Tensor) -> Any:
        world = {
            "torch": torch,
            "resmon": resmon,
            "add_and_norm": add_and_norm,
            "x": x,
            "h": x.clone(),
            "f": self.f,
            "gate": self.gate,
            "gamma": self.gamma,
            "w": self.gamma,
            "d": self.gamma,
            "a": self.f(x),
            "b": self.b,
            "k": 4,
            "rows": torch.tensor([0, 2]),
        }
        exec(compile(self.code, "docs/blocks.md", "exec"), world)  # noqa: S102 - the page is ours
        return [world[name] for name in ("y", "normal", "h", "x") if name in world]


def found(code: str) -> tuple[list[str], int]:
    """The kinds of the blocks in code that is a statement or an expression, and how many additions are told."""
    statement = f"y = {code}" if isinstance(ast.parse(code).body[0], ast.Expr) else code
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Written(statement))
    sites, told = look(model, (torch.randn(3, WIDTH),), {})
    return [site.kind for site in sites], len(told)


def test_the_page_has_what_is_tried() -> None:
    assert len(WRITTEN) >= 18
    assert {answer for _, answer in WRITTEN} == {"yes", "no", "told"}


@pytest.mark.parametrize(("code", "answer"), WRITTEN, ids=[code for code, _ in WRITTEN])
def test_what_is_written_so_is_a_block_or_told_or_neither(code: str, answer: str) -> None:
    kinds, told = found(code)
    assert (len(kinds), told) == {"yes": (1, 0), "told": (0, 1), "no": (0, 0)}[answer]


def test_what_is_marked_is_a_block() -> None:
    snippet = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert snippet is not None
    assert found(snippet[1]) == (["marked"] * 3, 0)


def branch(width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = branch()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)  # type: ignore[no-any-return]


class RungeKutta(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = branch()

    def forward(self, x: Tensor, h: float = 0.5) -> Tensor:
        k1 = self.f(x)
        k2 = self.f(x + h / 2 * k1)
        k3 = self.f(x + h / 2 * k2)
        k4 = self.f(x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)  # type: ignore[no-any-return]


class Solver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.ode = RungeKutta()

    def forward(self, x: Tensor) -> Tensor:
        return self.ode(self.inp(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        h = self.norm(x)
        scores = self.q(h) @ self.k(h).transpose(-1, -2)
        if previous is not None:
            scores = scores + previous
        return x + self.o(scores.softmax(-1) @ self.v(h)), scores


class RealFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        scores = None
        for layer in self.layers:
            x, scores = layer(x, scores)
        return x


class Mean(nn.Module):
    def forward(self, states: list[Tensor]) -> Tensor:
        total: Any = sum(states)
        return total / len(states)  # type: ignore[no-any-return]


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([Cell() for _ in range(3)])
        self.mean = Mean()

    def forward(self, x: Tensor) -> Tensor:
        states = [self.inp(x)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return self.mean(states)  # type: ignore[no-any-return]


class Unrolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.cell(x)
        return x


class ToImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, image: Tensor | None) -> Tensor:
        y: Tensor = self.conv(x)
        return y if image is None else y + F.interpolate(image, scale_factor=2)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.rgb = nn.ModuleList([ToImage() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        image = None
        for i, (block, rgb) in enumerate(zip(self.blocks, self.rgb, strict=True)):
            x = F.leaky_relu(block(F.interpolate(x, scale_factor=2) if i else x))
            image = rgb(x, image)
        assert image is not None
        return image


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wg, self.wx = (nn.Conv2d(8, 4, 1) for _ in range(2))
        self.psi = nn.Conv2d(4, 1, 1)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.psi(F.relu(self.wg(g) + self.wx(x))))


class AttentionUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom, self.up = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))
        g = F.relu(self.bottom(F.max_pool2d(x, 2)))
        g = F.relu(self.up(F.interpolate(g, scale_factor=2)))
        return torch.cat([self.gate(g, x), g], 1)


VECTORS = (3, WIDTH)
# What stands first in the row; its model; what it is given; its blocks; those that are left.
NONE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str], list[str]]] = {
    "an ODE solver": (Solver, VECTORS, ["ode.f", *(f"ode.f#{i}" for i in range(2, 8))], ["ode.f#7"]),
    "attention scores": (
        RealFormer,
        (2, 5, WIDTH),
        ["layers.0", "layers.1.k", "layers.1.o", "layers.2.k", "layers.2.o"],
        ["layers.0", "layers.1.o", "layers.2.o"],
    ),
    "a plain mean": (
        Averaged,
        VECTORS,
        ["layers.0", "layers.1", "layers.2", "mean", "mean#2"],
        ["layers.0", "layers.1", "layers.2"],
    ),
    "a recurrent cell": (Unrolled, VECTORS, ["cell", "cell@2", "cell@3"], ["cell"]),
    "additive attention": (AttentionUNet, (2, 8, 4, 4), ["gate"], []),
    "outputs of several depths": (Generator, (2, 8, 4, 4), ["rgb.1"], []),
}


def test_every_model_of_the_table_is_tried() -> None:
    assert [next((name for name in NONE if model.startswith(name)), model) for model in EXCLUDED] == list(NONE)


@pytest.mark.parametrize("name", NONE)
def test_what_is_none_is_left_out_as_the_page_says(name: str) -> None:
    build, shape, listed, left = NONE[name]
    (text,) = (pattern for model, pattern in EXCLUDED.items() if model.startswith(name))
    given = re.search(r"`exclude=([^`]+)`", text)
    assert given is not None
    model = build()
    x = torch.randn(shape)
    assert [site.name for site in resmon.discover(model, x)] == listed
    assert [site.name for site in resmon.discover(model, x, exclude=ast.literal_eval(given[1]))] == left
