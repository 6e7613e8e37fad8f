"""Capsules: a failure that happens again elsewhere, and files that are not what they say."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from resmon.capture.forensics import capsule
from resmon.errors import ConfigurationError, ResmonError
from resmon.records import Incident
from tests.capture import loops
from tests.capture.forensics.test_nonfinite import WIDTH, Breakable, batch, breaking, line_of, network, only, train


def failed(fault: str, model: nn.Module | None = None, **more: Any) -> tuple[Incident, bytes]:
    model = network() if model is None else model
    _, sink, _ = train(model, before=breaking(model, "2", fault), **more)
    found = only(sink)
    return found, sink.capsules[found.capsule]


def on_disk(folder: Path, data: bytes) -> capsule.Capsule:
    path = folder / "capsule.safetensors"
    path.write_bytes(data)
    return capsule.read(path)


def broken(fault: str) -> Breakable:
    made = Breakable()
    made.fault = fault
    return made


@pytest.mark.parametrize(
    ("fault", "direction", "mark"), [("log", "forward", "log of zero"), ("sqrt", "backward", "infinite derivative")]
)
def test_a_failure_happens_again_in_a_module_made_anew(fault: str, direction: str, mark: str, tmp_path: Path) -> None:
    found, data = failed(fault)
    read = on_disk(tmp_path, data)
    torch.manual_seed(99)
    verdict = capsule.run(read, broken(fault))
    assert verdict.event is not None
    assert (verdict.direction, verdict.event.operation, verdict.event.line) == (direction, found.operation, line_of(mark))
    assert verdict.nonfinite
    assert read.text("class").endswith("Breakable") and read.text("module") == "2" and read.text("summary") == found.summary


def test_in_a_whole_model_the_module_is_found_by_its_path(tmp_path: Path) -> None:
    _, data = failed("log")
    other = network(7)
    other[2].fault = "log"
    verdict = capsule.run(on_disk(tmp_path, data), other)
    assert verdict.event is not None and verdict.event.operation == "log"


def test_a_repaired_module_stays_finite(tmp_path: Path) -> None:
    _, data = failed("log")
    verdict = capsule.run(on_disk(tmp_path, data), broken(""))
    assert verdict.event is None and verdict.nonfinite == ()


def test_dropout_draws_the_same_numbers_and_autocast_casts_again(tmp_path: Path) -> None:
    class Drops(Breakable):
        def forward(self, x: Tensor) -> Tensor:
            self.drawn = nn.functional.dropout(torch.ones(64), 0.5)
            self.dtype = self.fc1(x).dtype
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(), Drops(), nn.Linear(WIDTH, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, sink = loops.watch(model, optimizer)
    model[2].fault = "log"
    with torch.autocast("cpu"):
        output = model(batch())
    drawn = model[2].drawn
    output.float().square().mean().backward()
    optimizer.step()
    again = Drops()
    again.fault = "log"
    verdict = capsule.run(on_disk(tmp_path, sink.capsules[only(sink).capsule]), again)
    assert verdict.event is not None and verdict.event.operation == "log"
    assert torch.equal(again.drawn, drawn) and again.dtype is torch.bfloat16


def test_what_it_holds_is_seen_without_running_anything(tmp_path: Path) -> None:
    def inputs(step: int) -> Tensor:
        x = batch(step)
        if step == 2:
            x[3, 1] = math.nan
        return x

    _, sink, _ = train(network(), inputs=inputs)
    read = on_disk(tmp_path, sink.capsules[only(sink).capsule])
    (seen,) = [each for each in read.seen() if each.name.startswith("input/")]
    assert (seen.nan, seen.infinite, seen.shape, seen.first) == (1, 0, (6, WIDTH), (3, 1))
    x = inputs(2)
    assert (seen.smallest, seen.largest) == (float(x.nan_to_num(0).min()), float(x.nan_to_num(0).max()))
    assert {each.name for each in read.seen()} >= {"state/2.fc1.weight"}


def test_what_is_too_large_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capsule, "LARGEST", 5800)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), Breakable(), nn.Linear(WIDTH, 4))
    _, data = failed("log", model)
    read = on_disk(tmp_path, data)
    assert read.left_out and all(name.startswith("state/") for name in read.left_out)
    with pytest.raises(ConfigurationError, match="it was too large"):
        capsule.run(read, broken("log"))


def test_a_module_of_another_shape_or_class_is_refused(tmp_path: Path) -> None:
    _, data = failed("log")
    read = on_disk(tmp_path, data)
    with pytest.raises(ConfigurationError, match="shape"):
        capsule.run(read, Breakable(WIDTH * 2))
    with pytest.raises(ConfigurationError, match="Breakable"):
        capsule.run(read, nn.Linear(3, 3))


def header(**values: Any) -> bytes:
    return save({"random": torch.get_rng_state()}, {"resmon": json.dumps({"version": 1} | values)})


DEEP: Any = {"value": 1}
for _ in range(60):
    DEEP = {"list": [DEEP]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95",
        b"PK\x03\x04" + b"\0" * 60,
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 61) + b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,400]}}',
        save({"x": torch.ones(2)}),
        save({"x": torch.ones(2)}, {"resmon": "[]"}),
        save({"x": torch.ones(2)}, {"resmon": "{"}),
        save({"x": torch.ones(2)}, {"resmon": "[" * 100_000}),
        header(version=99),
        header(version="1"),
    ],
    ids=range(12),
)
def test_what_is_no_capsule_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ResmonError):
        on_disk(tmp_path, data)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"arguments": 3},
        {"arguments": DEEP},
        {"arguments": {"list": [{"list": []}, {"dict": [["a"], 3]}]}},
        {"arguments": {"list": [{"list": [{"tensor": "nowhere"}]}, {"dict": []}]}},
        {"arguments": {"list": [{"list": [{"left_out": "Image"}]}, {"dict": []}]}},
        {"autocast": 1, "training": 1, "left_out": 1},
    ],
)
def test_headers_that_make_no_sense_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    path = f"{nn.Identity.__module__}.Identity"
    read = on_disk(tmp_path, header(**({"class": path, "module": ""} | values)))
    read.seen()
    with pytest.raises(ResmonError):
        capsule.run(read, nn.Identity())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResmonError, match="nowhere"):
        capsule.read(tmp_path / "nowhere.safetensors")
