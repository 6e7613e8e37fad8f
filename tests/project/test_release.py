"""`make release`: what it refuses, all of it at once, and what it builds. It is run in a repository of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import resmon
from tests.checkout import CHECKOUT
from tests.project.test_wheel import tracked

DATE = "2026-01-31"


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "resmon"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, folder / name)
    changes = folder / "CHANGELOG.md"
    # Whatever this checkout is about to release: nothing is new, and all of it belongs to the version that it has.
    said = re.sub(rf"^## \[{re.escape(resmon.__version__)}\].*\n", "", changes.read_text(), flags=re.MULTILINE)
    changes.write_text(said.replace("## [Unreleased]", f"## [Unreleased]\n\n## [{resmon.__version__}] - {DATE}", 1))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return folder


def release(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "BIN": str(Path(sys.prefix) / "bin")}
    return subprocess.run(["bash", ".ci/release"], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_cannot_be_released_is_refused_with_all_that_is_wrong(repository: Path) -> None:
    changes = repository / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace(f"- {DATE}", "- soon", 1))
    git(repository, "tag", f"v{resmon.__version__}")
    compose = repository / "deploy" / "compose" / "compose.yaml"
    compose.write_text(compose.read_text().replace(f"resmon:{resmon.__version__}", "resmon:0.0.1"))
    done = release(repository)
    assert done.returncode == 1 and done.stdout == ""
    first, *wrong = done.stderr.splitlines()
    assert first == f"resmon {resmon.__version__} cannot be released:"
    assert len(wrong) == 4
    for line, said in zip(
        wrong, ("the tree is not clean", "there is a tag v", "CHANGELOG.md has no heading", "resmon:0.0.1"), strict=True
    ):
        assert said in line
    assert not (repository / "dist").exists()


@pytest.mark.slow
def test_what_is_new_stands_below_the_version(repository: Path) -> None:
    changes = repository / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("## [Unreleased]", "## [Unreleased]\n\n### Added\n\n- Something.", 1))
    git(repository, "commit", "--quiet", "--all", "--message", "new")
    done = release(repository)
    assert done.returncode == 1 and "CHANGELOG.md lists changes as unreleased" in done.stderr


@pytest.mark.slow
def test_an_sdist_and_a_wheel_are_built_the_same_every_time_and_nothing_is_uploaded(repository: Path) -> None:
    built = []
    for _ in range(2):
        done = release(repository)
        assert done.returncode == 0, done.stderr
        built.append({path.name: path.read_bytes() for path in (repository / "dist").iterdir()})
    assert built[0] == built[1]
    sdist, wheel = f"resmon-{resmon.__version__}.tar.gz", next(name for name in built[0] if name.endswith(".whl"))
    assert built[0].keys() == {sdist, wheel}
    if sys.platform == "linux":
        assert re.fullmatch(rf"resmon-{resmon.__version__}-cp311-abi3-manylinux_\d+_\d+_\w+\.whl", wheel)
    with tarfile.open(repository / "dist" / sdist) as archive:
        assert f"resmon-{resmon.__version__}/resmon/py.typed" in archive.getnames()
    assert "Not uploaded." in done.stdout and f"git tag -a v{resmon.__version__}" in done.stdout
    clean = subprocess.run(["git", "status", "--porcelain"], cwd=repository, capture_output=True, text=True, check=True)
    tags = subprocess.run(["git", "tag"], cwd=repository, capture_output=True, text=True, check=True)
    assert clean.stdout == tags.stdout == ""
