"""The results as a Markdown table between two marks of a page, and as JSON that holds every single pair."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import resmon
from benchmarks.measurement import Measurement, Quartiles

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
TARGET_PER_SITE = 60.0  # microseconds per residual site and step
HEAD = (
    "training",
    "watched by",
    "pairs",
    "bare step",
    "ratio, watched / bare",
    "by own account",
    "µs per site and step",
    "by own account",
    "beside the loop",
    "same weights",
)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """When, where and how; a figure without them cannot be compared."""

    command: str
    date: str  # UTC
    cpu: str
    cores: int
    threads: int  # that torch computes with
    versions: dict[str, str]
    load: tuple[float, float, float]  # averages over 1, 5 and 15 minutes before the first measurement


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "wandb", "tensorboard")
    return {"resmon": resmon.__version__, "python": platform.python_version()} | {name: version(name) for name in packages}


def load_average() -> tuple[float, float, float]:
    one, five, fifteen = os.getloadavg()
    return round(one, 2), round(five, 2), round(fifteen, 2)


def markdown(measurements: Sequence[Measurement], titles: dict[str, str], targets: dict[str, float], how: Circumstances) -> str:
    """The table, what was aimed at, and the circumstances. `titles` and `targets` (of the ratio) are by workload."""
    rows = [_row(m, titles[m.workload], targets.get(m.workload)) for m in measurements]
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *rows)]
    packages = ", ".join(f"{name} {number}" for name, number in how.versions.items())
    load = " ".join(f"{n:.2f}" for n in how.load)
    made = (
        f"Made by `{how.command}` on {how.date}. {how.cpu}, {how.cores} cores, {how.threads} threads; {packages}. "
        f"Load average before (1, 5, 15 min) {load}."
    )
    return "\n".join([*lines, "", made])


def _row(m: Measurement, title: str, target: float | None) -> list[str]:
    is_ours = m.observer == "resmon"
    background = m.background_per_step
    return [
        f"{title}, {m.sites} sites",
        m.observer,
        str(len(m.bare)),
        f"{m.step * 1e3:.1f} ms",
        _spread(m.ratio, 3) + _verdict(m.ratio.median, target if is_ours else None),
        "" if m.own_ratio is None else f"{m.own_ratio:.3f}",
        _spread(m.per_site, 0) + _verdict(m.per_site.median, TARGET_PER_SITE if is_ours else None),
        "" if m.own_per_site is None else f"{m.own_per_site:.0f}",
        "" if background is None else f"{background * 1e3:.1f} ms",
        "yes" if m.same_weights else "no",
    ]


def _spread(q: Quartiles, digits: int) -> str:
    return f"{q.median:.{digits}f} ({q.lower:.{digits}f} to {q.upper:.{digits}f})"


def _verdict(value: float, target: float | None) -> str:
    if target is None:
        return ""
    return f", target {target:g}: {'met' if value <= target else '**missed**'}"


def put_into(page: Path, table: str) -> None:
    """Put `table` between the marks of `page`. Raises ValueError as `around` does."""
    before, after = around(page)
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def around(page: Path) -> tuple[str, str]:
    """What stands before and after the table. Raises ValueError where the marks are not there once each and in order."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"{page} needs the marks {BEGIN} and {END} once each, in this order; put them where the table belongs")
    return before, after


def write_json(path: Path, measurements: Sequence[Measurement], how: Circumstances) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"circumstances": asdict(how), "measurements": [_short(asdict(m)) for m in measurements]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _short(values: dict[str, object]) -> dict[str, object]:
    """Microseconds are what a clock can tell; the digits behind them only make the file long."""
    return {key: [round(v, 6) for v in value] if isinstance(value, list) else value for key, value in values.items()}
