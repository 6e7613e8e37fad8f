"""Compiles resmon's native parts while a wheel or an editable install is built."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.errors import BaseError, CCompilerError

SOURCES = {f"resmon.{room}._native": f"resmon/{room}/_native.c" for room in ("capture", "detectors")}
# Sums are vectorised at -O3. A product and a sum stay two operations, as in torch, so that results are the same on every machine.
# Without what is for debuggers, the folder among it, so that the same source gives the same wheel.
FLAGS = ["/O2", "/fp:precise"] if sys.platform == "win32" else ["-O3", "-fno-math-errno", "-ffp-contract=off", "-g0"]


LIBRARIES = ["dl", "m"] if sys.platform == "linux" else []


class NativeBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002, hatchling names its arguments
        extensions = [
            Extension(name, [source], extra_compile_args=FLAGS, libraries=LIBRARIES, py_limited_api=True)
            for name, source in SOURCES.items()
        ]
        command = Distribution({"name": "resmon", "ext_modules": extensions}).get_command_obj("build_ext")
        command.inplace = True
        command.force = True
        with tempfile.TemporaryDirectory() as folder:
            command.build_temp = command.build_lib = folder
            command.ensure_finalized()
            try:
                command.run()
            except (CCompilerError, BaseError) as error:
                raise RuntimeError(
                    f"resmon's native parts, {' and '.join(SOURCES.values())}, could not be compiled ({error}). They need a C "
                    "compiler and Python's headers: on Debian `apt-get install gcc python3-dev`, on macOS `xcode-select --install`."
                ) from error
        build_data["artifacts"] += ["/resmon/*/_native.*.so", "/resmon/*/_native*.pyd"]
        build_data["pure_python"] = False
        # The limited C API serves every Python from the one that it names on.
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
