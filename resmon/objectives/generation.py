"""The files that `resmon slo generate` writes: the same ones for the same objectives, so that what is old can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resmon.errors import ConfigurationError
from resmon.objectives import proofs, rules, spec, windows
from resmon.objectives.rules import Addresses
from resmon.objectives.spec import Objective
from resmon.rules import Group, durations, rule_file

RULES, TESTS = "slo.yaml", "tests/slo.yaml"


@dataclass(frozen=True, slots=True)
class Made:
    """`files` by their paths below the folder that they go to."""

    objectives: tuple[Objective, ...]
    period: str
    groups: tuple[Group, ...]  # those of the rule file
    files: Mapping[str, str]
    remarks: tuple[str, ...]  # what is allowed, and seldom meant


def shipped() -> list[Path]:
    """The specifications that resmon brings."""
    return sorted((Path(__file__).parent / "shipped").glob("*.yaml"))


def make(
    specs: Sequence[Path] | None, policy: str = windows.DEFAULT, period: str | None = None, addresses: Addresses | None = None
) -> Made:
    """Of these files, or of resmon's own. Raises ConfigurationError that names all that is wrong."""
    addresses = addresses or Addresses()
    try:
        length = None if period is None else durations.window(period)
    except ValueError as error:
        raise ConfigurationError(f"--period {error}.") from error
    over = windows.policy(policy).windows(length)
    found = spec.load(specs or shipped(), over)
    header = _header(specs, over)
    groups = tuple(rules.group(each, over, addresses) for each in found)
    files = {
        RULES: rule_file(groups, header),
        TESTS: proofs.file(found, over, addresses, [f"../{RULES}"], header),
    }
    remarks = (*over.remarks, *(remark for each in found for remark in spec.remarks(each)))
    return Made(tuple(found), durations.written(over.period), groups, files, remarks)


def _header(specs: Sequence[Path] | None, over: windows.Windows) -> str:
    named = ", ".join(path.name for path in specs) if specs else "the objectives that resmon brings"
    by = "`resmon slo generate`" if specs else "`resmon assets`, and by `resmon slo generate`,"
    return (
        f"Made by {by} from {named}: policy {over.policy}, period {durations.written(over.period)}.\n"
        "What is changed here is lost; change the objectives and make it anew."
    )


def write(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Raises ConfigurationError where they cannot be written."""
    paths = []
    for name, text in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}. Name another folder with --output.") from error
        paths.append(path)
    return paths


def stale(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Those that are not there, or are not what would be written now."""
    return [folder / name for name, text in files.items() if _text(folder / name) != text]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
