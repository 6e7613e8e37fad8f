"""Capture on a device whose memory the host cannot read: the nearest to a GPU that can be had on any machine (far/plugin.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from resmon.capture.host.requirement import IN_GRAPHS, at_least
from tests.programs import program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not at_least(torch.__version__, IN_GRAPHS), reason="the device is written for torch 2.13 and newer"),
]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The device as torch loads it."""
    library = tmp_path_factory.mktemp("far") / "device.so"
    places = [f"-I{path}" for path in cpp_extension.include_paths()] + [f"-L{path}" for path in cpp_extension.library_paths()]
    how = ["-std=c++20", "-O1", "-shared", "-fPIC", *places]
    subprocess.run([program("g++"), *how, HERE / "far" / "device.cpp", "-ltorch_cpu", "-lc10", "-o", library], check=True)
    return library


@pytest.mark.parametrize(
    ("files", "least"),
    [
        pytest.param(["far/waits.py"], 8, id="waits"),
        pytest.param(["loop/test_session.py", "probes/test_norms.py", "loop/test_copies.py"], 90, id="loops"),
        pytest.param(["gradients/test_reader.py", "gradients/test_clipping.py", "gradients/test_scaler.py"], 80, id="gradients"),
        pytest.param(["test_compiled.py"], 30, id="compiled"),
    ],
)
def test_on_a_device_far_from_the_host(files: list[str], least: int, device: Path, pytestconfig: pytest.Config) -> None:
    """The tests of capture once more, in a process where every tensor is made there."""
    plugins = ["-p", "tests.capture.far.plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
    how = ["--quiet", "--show-capture=no", "-m", "not slow"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *how, *(str(HERE / name) for name in files)],
        env={**os.environ, "FAR_DEVICE": str(device)},
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-4000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed and int(passed[1]) >= least, ran.stdout[-2000:]
