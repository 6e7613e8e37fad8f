"""The results: as a Markdown table between two marks of a page, one for each kind of device, and as JSON that holds every pair."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import resmon
from benchmarks.measurement import Measurement, Quartiles, known_median


@dataclass(frozen=True, slots=True)
class Marks:
    """Between them stands a table."""

    begin: str
    end: str


MARKS = {
    "cpu": Marks("<!-- results: begin -->", "<!-- results: end -->"),
    "cuda": Marks("<!-- results on a GPU: begin -->", "<!-- results on a GPU: end -->"),
}
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
HEAD_GPU = ("device memory at peak", "host waits for the device")


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
    gpu: str = ""  # that was measured on

    @property
    def machine(self) -> dict[str, object]:
        """What figures that stand in one table have in common."""
        return {"cpu": self.cpu, "cores": self.cores, "gpu": self.gpu, "versions": self.versions}


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(names: Sequence[str] = ("torch", "transformers", "wandb", "tensorboard")) -> dict[str, str]:
    found = {"resmon": resmon.__version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # it is not compared with then
            continue
    return found


def load_average() -> tuple[float, float, float]:
    one, five, fifteen = os.getloadavg()
    return round(one, 2), round(five, 2), round(fifteen, 2)


def markdown(measurements: Sequence[Measurement], titles: dict[str, str], targets: dict[str, float], how: Circumstances) -> str:
    """The table, what was aimed at, and the circumstances. `titles` and `targets` (of the ratio) are by workload."""
    head = HEAD + HEAD_GPU if how.gpu else HEAD
    rows = [(*_row(m, titles[m.workload], targets.get(m.workload)), *(_on_gpu(m) if how.gpu else ())) for m in measurements]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    waited = [f"{titles[m.workload]}, {m.observer}: {', '.join(m.places)}" for m in measurements if m.places]
    if waited:
        lines += ["", "Waited for the device at these lines, by torch's own account:", "", *(f"- {line}" for line in waited)]
    packages = ", ".join(f"{name} {number}" for name, number in how.versions.items())
    load = " ".join(f"{n:.2f}" for n in how.load)
    machine = ", ".join(filter(None, (how.gpu, how.cpu)))
    made = (
        f"Made by `{how.command}` on {how.date}. {machine}, {how.cores} cores, {how.threads} threads; {packages}. "
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
        _spread(m.ratio, 3) + (_told(m.ratios, m.own_ratio, target, 3) if is_ours and target is not None else ""),
        "" if m.own_ratio is None else f"{m.own_ratio:.3f}",
        _spread(m.per_site, 0) + (_told(m.differences, m.own_per_site, TARGET_PER_SITE, 0) if is_ours else ""),
        "" if m.own_per_site is None else f"{m.own_per_site:.0f}",
        "" if background is None else f"{background * 1e3:.1f} ms",
        "yes" if m.same_weights else "no",
    ]


def _on_gpu(m: Measurement) -> list[str]:
    memory = waits = ""
    if m.memory is not None:
        bare, watched = m.memory
        memory = f"{bare / 2**30:.2f} GiB, {(watched - bare) / 2**20:+.1f} MiB ({watched / bare - 1:+.2%})"
    if m.waits is not None and m.further_waits is not None:
        bare, watched = m.waits
        waits = f"{bare} bare, {watched} watched" + _verdict(m.further_waits, 0 if m.observer == "resmon" else None)
    return [memory, waits]


def _spread(q: Quartiles, digits: int) -> str:
    return f"{q.median:.{digits}f} ({q.lower:.{digits}f} to {q.upper:.{digits}f})"


def _told(pairs: Sequence[float], own: float | None, target: float, digits: int) -> str:
    """Whether the median of the pairs meets the target, as far as they tell; `own`, which leaves some out, may miss it alone."""
    low, high = known_median(pairs)
    if own is not None and own > target:
        return f", target {target:g}: **missed**"
    if low <= target < high:
        between = f", {low:.{digits}f} to {high:.{digits}f}" if math.isfinite(low) else ""
        return f", target {target:g}: not told by these pairs{between}"
    return f", target {target:g}: {'met' if high <= target else '**missed**'}"


def _verdict(value: float, target: float | None) -> str:
    if target is None:
        return ""
    return f", target {target:g}: {'met' if value <= target else '**missed**'}"


def put_into(page: Path, table: str, marks: Marks) -> None:
    """Put `table` between the marks of `page`. Raises ValueError as `around` does."""
    before, after = around(page, marks)
    page.write_text(f"{before}{marks.begin}\n\n{table}\n\n{marks.end}{after}", encoding="utf-8")


def around(page: Path, marks: Marks) -> tuple[str, str]:
    """What stands before and after the table. Raises ValueError where the marks are not there once each and in order."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(marks.begin)
    _, end, after = rest.partition(marks.end)
    if not begin or not end or marks.begin in rest or marks.end in before + after:
        raise ValueError(
            f"{page} needs the marks {marks.begin} and {marks.end} once each, in this order; put them where the table belongs"
        )
    return before, after


def results_file(folder: Path, how: Circumstances) -> Path:
    """One a day, and for each kind of GPU one of its own."""
    gpu = re.findall(r"[a-z0-9]+", how.gpu.partition(",")[0].lower())
    return folder / f"{'-'.join((how.date[:10], *gpu))}.json"


def write_json(path: Path, measurements: Sequence[Measurement], how: Circumstances) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"circumstances": asdict(how), "measurements": [_short(asdict(m)) for m in measurements]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> tuple[Circumstances, list[Measurement]]:
    """What `write_json` wrote. Raises OSError, or ValueError where it is something else."""
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return Circumstances(**content["circumstances"]), [Measurement(**values) for values in content["measurements"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no results: {error!r}") from error


def _short(values: dict[str, object]) -> dict[str, object]:
    """Microseconds are what a clock can tell; the digits behind them only make the file long."""

    def short(value: object) -> object:
        return round(value, 6) if isinstance(value, float) else value

    return {key: [short(v) for v in value] if isinstance(value, list) else value for key, value in values.items()}
