"""What a run's blocks put out while it was well, in a file; and how far another run, or a served model, is from that.

A baseline holds, for each block, the histogram of |y| over a stretch of steps and the medians of its statistics. It is JSON, small
enough to be kept beside the code, and is validated when it is read: nothing in it is run. A comparison gives the distances of
detectors/distances.py and how likely so much is by chance.

Samples within a step, and steps in a row, are not independent, so that counts say too much. Each side therefore keeps its design
effect (Kish 1965): X^2 of the homogeneity of its parts, over its degrees of freedom, which is 1 where samples are independent. The
likelihood-ratio statistic over that has about an F distribution (Rao and Scott 1981, 1987), the Kolmogorov-Smirnov distance has its
probability at the effective sizes. Over the blocks the false-discovery rate is held (Benjamini and Hochberg 1995).

A block is called drifted where it is beyond chance and its population stability index is 0.1 or more: with millions of samples
everything is beyond chance.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resmon import __version__
from resmon.detectors import distances
from resmon.detectors.drift import in_order
from resmon.detectors.window import Window, Windows
from resmon.diff.effects import benjamini_hochberg
from resmon.errors import ConfigurationError
from resmon.flight import incidents, layout
from resmon.flight.reader import Follower
from resmon.quantities import count, number
from resmon.records import MAGNITUDE_EDGES, MAGNITUDE_NONFINITE, Columns, Ints, StepRecord

FORMAT: Literal["resmon-baseline"] = "resmon-baseline"
VERSION = 1
STATISTICS = ("skip_rms", "branch_rms", "branch_skip_ratio", "output_rms")
PARTS = 32  # at most, that a stretch is cut into to tell its design effect
LEAST_PARTS = 4
LARGEST = 64 << 20  # bytes of a file that is read
ALPHA = 0.01  # false-discovery rate
SHIFT = 0.1  # population stability index from which on a shift is one
BINS = len(MAGNITUDE_EDGES) + 2  # zeros, the edges' bins, larger

Count = Annotated[int, Field(ge=0, le=2**62)]
Verdict = Literal["drifted", "shifted", "same"]


class Block(BaseModel):
    """One block over the stretch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    name: str
    histogram: list[Count] = Field(min_length=BINS, max_length=BINS)  # zeros first, then by magnitude
    nonfinite: Count
    design_effect: float = Field(ge=1, allow_inf_nan=False)
    parts: int = Field(ge=LEAST_PARTS)
    medians: dict[str, float | None]

    @property
    def counts(self) -> Ints:
        return np.array(self.histogram, np.int64)


class Baseline(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["resmon-baseline"]
    version: int
    run: str
    first_step: int = Field(ge=0)
    last_step: int = Field(ge=0)
    resmon: str
    edges: list[float]
    blocks: list[Block] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Row:
    """One block of both."""

    model: str
    block: str
    verdict: Verdict
    population_stability: float
    jensen_shannon: float
    kolmogorov_smirnov: float
    wasserstein: float  # doublings, of those that are not 0
    p: float  # of the likelihood-ratio statistic
    q: float  # over all blocks
    kolmogorov_p: float
    samples: float  # effective ones, of the smaller side


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run beside a baseline."""

    run: str
    baseline: str
    steps: tuple[int, int]
    rows: list[Row]
    missing: list[str]  # blocks that only one side has

    @property
    def drifted(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == "drifted"]


def measure(attempt: Path, first: int | None = None, last: int | None = None) -> Baseline:
    """An attempt's blocks over these steps; else over its last half, as far as nothing had broken. Raises ConfigurationError."""
    followers = [Follower(folder) for _, folder in sorted(layout.ranks(attempt).items())]
    windows = [list(_windows(follower)) for follower in followers]
    every = [window for each in windows for window in each]
    if not every:
        raise ConfigurationError(f"{attempt.parent.name} has recorded no step yet. Come again when it has, or name another run.")
    begin, end = min(window.first_step for window in every), max(window.step for window in every)
    if last is None:
        broken = [each.step for folder in layout.ranks(attempt).values() for each in _incidents(folder) if each.step is not None]
        last = min([end, *(step - 1 for step in broken)])
    first = first if first is not None else begin + (last - begin + 1) // 2
    kept = [window for window in every if window.first_step >= first and window.step <= last]
    blocks = _blocks(kept)
    if not blocks:
        raise ConfigurationError(
            f"{attempt.parent.name} has too little between steps {first:,} and {last:,}: of no block {LEAST_PARTS} windows of 16 "
            f"steps with samples. It has steps {begin:,} to {end:,}; name a stretch with --steps FIRST:LAST."
        )
    return Baseline(
        format=FORMAT,
        version=VERSION,
        run=str(followers[0].info.run),
        first_step=min(window.first_step for window in kept),
        last_step=max(window.step for window in kept),
        resmon=__version__,
        edges=MAGNITUDE_EDGES.tolist(),
        blocks=blocks,
    )


def file_of(name: str) -> Path:
    """NAME.json, or the file that is named."""
    return Path(name) if name.endswith(".json") else Path(f"{name}.json")


def save(baseline: Baseline, path: Path, force: bool = False) -> None:
    """Write it. Raises ConfigurationError where the file is there already, or cannot be written."""
    if path.exists() and not force:
        raise ConfigurationError(f"{path} is there already. Write over it with --force, or choose another name.")
    try:
        path.write_text(baseline.model_dump_json() + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}. Choose another name.") from error


_MAKES = "`resmon baseline save NAME RUN` makes one."


def load(path: Path) -> Baseline:
    """Read one. Raises ConfigurationError, which says what is wrong with it."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigurationError(f"{path} is no baseline: it is larger than {LARGEST >> 20} MiB. {_MAKES}")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}. {_MAKES}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no baseline: it is no JSON ({error!s:.80}). {_MAKES}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigurationError(f"{path} is no baseline: its format is not {FORMAT!r}. {_MAKES}")
    if found.get("version") != VERSION:
        raise ConfigurationError(f"{path} is a baseline of version {found.get('version')!r:.20}; this resmon reads {VERSION}.")
    if found.get("edges") != MAGNITUDE_EDGES.tolist():
        raise ConfigurationError(f"{path} has histograms of other edges than this resmon's: they cannot be compared. Save it anew.")
    try:
        return Baseline.model_validate(found)
    except ValidationError as error:
        nits = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        raise ConfigurationError(f"{path} is no baseline: {nits}. {_MAKES}") from error


def compare(run: Baseline, baseline: Baseline, alpha: float = ALPHA, shift: float = SHIFT) -> Comparison:
    """Block by block. Raises ConfigurationError where they have no block in common."""
    theirs = {(block.model, block.name): block for block in baseline.blocks}
    ours = {(block.model, block.name): block for block in run.blocks}
    both = [key for key in ours if key in theirs]
    if not both:
        raise ConfigurationError(
            f"{run.run} and the baseline of {baseline.run} are of other models: they have no block in common "
            f"({_some(ours)} beside {_some(theirs)}). Name a run of the same model."
        )
    tested = [_test(ours[key], theirs[key]) for key in both]
    adjusted = benjamini_hochberg(np.array([row.p for row in tested]))
    rows = []
    for row, q in zip(tested, adjusted.tolist(), strict=True):
        verdict: Verdict = "same" if q > alpha else "drifted" if row.population_stability >= shift else "shifted"
        rows.append(Row(**(asdict(row) | {"q": q, "verdict": verdict})))
    missing = sorted(name for _, name in ours.keys() ^ theirs.keys())
    return Comparison(run.run, baseline.run, (run.first_step, run.last_step), rows, missing)


def sentence(comparison: Comparison) -> str:
    """The verdict in one sentence."""
    drifted, rows = comparison.drifted, comparison.rows
    beside = f"from the baseline of {comparison.baseline}"
    if not drifted:
        said = f"No block of {comparison.run} has drifted {beside} ({count(len(rows), 'block')} compared)"
        shifted = sum(row.verdict == "shifted" for row in rows)
        return f"{said}; {shifted} shifted: more than chance, and too little to matter." if shifted else f"{said}."
    worst = max(drifted, key=lambda row: row.population_stability)
    return (
        f"{len(drifted)} of {count(len(rows), 'block')} of {comparison.run} have drifted {beside}: most {worst.block}, "
        f"with a population stability index of {number(worst.population_stability)}."
    )


def _test(ours: Block, theirs: Block) -> Row:
    from scipy import stats

    a, b = ours.counts, theirs.counts
    statistic, degrees = distances.g_test(a, b)
    # Both sides' effects, each by what it rests on; the F distribution knows that they are estimates.
    parts = ours.parts + theirs.parts - 2
    effect = (ours.design_effect * (ours.parts - 1) + theirs.design_effect * (theirs.parts - 1)) / parts
    p = float(stats.f.sf(statistic / degrees / effect, degrees, degrees * parts))
    sizes = a.sum() / ours.design_effect, b.sum() / theirs.design_effect
    distance = distances.kolmogorov_smirnov(a, b)
    return Row(
        ours.model,
        ours.name,
        "same",
        float(distances.population_stability(a, b)),
        float(distances.jensen_shannon(a, b)),
        float(distance),
        float(np.nan_to_num(distances.wasserstein(a[1:], b[1:]))),
        p,
        p,
        float(distances.ks_p(distance, np.array(sizes[0]), np.array(sizes[1]))),
        float(min(sizes)),
    )


def _windows(follower: Follower) -> Any:
    windows, columns = Windows(), Columns()
    while items := follower.poll():
        for item in items:
            if isinstance(item, Columns):
                columns = item
            elif isinstance(item, StepRecord):
                yield from windows.add(item, columns.sites)
    yield from windows.flush()
    follower.close()


def _incidents(folder: Path) -> Any:
    events, _ = incidents.read(folder, ended=False)
    return incidents.newest(events)


def _blocks(windows: list[Window]) -> list[Block]:
    """Of several ranks the windows stand beside each other: each is a part of what was sampled."""
    parts: dict[tuple[str, str], list[tuple[Ints, int, dict[str, float]]]] = {}
    for window in windows:
        histogram = window.histogram
        ordered, broken = in_order(histogram), histogram[:, MAGNITUDE_NONFINITE]
        medians = {name: window.median(name) for name in STATISTICS}
        for i, site in enumerate(window.sites):
            if ordered[i].sum():
                of_site = {name: float(values[i]) for name, values in medians.items()}
                parts.setdefault((site.model, site.name), []).append((ordered[i], int(broken[i]), of_site))
    made = []
    for (model, name), each in parts.items():
        if len(each) < LEAST_PARTS:
            continue
        table = _joined(np.stack([counts for counts, _, _ in each]))
        found = {key: [values[key] for _, _, values in each if not np.isnan(values[key])] for key in STATISTICS}
        made.append(
            Block(
                model=model,
                name=name,
                histogram=table.sum(axis=0).tolist(),
                nonfinite=sum(broken for _, broken, _ in each),
                design_effect=design_effect(table),
                parts=len(table),
                medians={key: float(np.median(values)) if values else None for key, values in found.items()},
            )
        )
    return made


def _joined(table: Ints) -> Ints:
    """At most PARTS parts, each of as many windows in a row: what is alike in neighbours counts too."""
    return np.stack([part.sum(axis=0) for part in np.array_split(table, min(len(table), PARTS))])


def design_effect(table: Ints) -> float:
    """How much more the parts [parts, bins] differ than independent samples of one distribution do; at least 1."""
    used = table[:, table.sum(axis=0) > 0]
    expected = used.sum(axis=1, keepdims=True) * used.sum(axis=0) / used.sum()
    degrees = (used.shape[0] - 1) * (used.shape[1] - 1)
    return max(1.0, float(((used - expected) ** 2 / expected).sum() / degrees)) if degrees else 1.0


def _some(blocks: dict[tuple[str, str], Block]) -> str:
    names = [name for _, name in blocks]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
