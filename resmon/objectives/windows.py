"""Over which windows an error budget is watched, and how fast it may burn in each: multi-window, multi-burn-rate alerts.

A pair of windows fires while both the long one (enough of the budget is gone that it matters) and the short one (it is still
going on) burn faster than a factor; burn rate 1 uses up the budget exactly by the end of the period. The method and the shares of
`workbook` are from the Site Reliability Workbook, chapter 5, "Alerting on SLOs", table 5-8 (sre.google/workbook/alerting-on-slos):

    factor = share of the budget x period / long window

A policy is data: a file in the shape of slok/sloth's alert windows (kind AlertWindows, sloth.slok.dev/v1). Shares stay and factors
are recomputed where objectives have another period than the policy was written for. In a policy of one's own a pair may say
`burnRate` in the place of `errorBudgetPercent`: a factor that is the same for every period.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from resmon.errors import ConfigurationError, nearest
from resmon.rules import durations
from resmon.settings.document import Document, Nit, read, refused

Severity = Literal["page", "ticket"]
Pace = Literal["quick", "slow"]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
PACES: tuple[Pace, ...] = get_args(Pace)
KIND, VERSION = "AlertWindows", "sloth.slok.dev/v1"
DEFAULT = "workbook"
LARGEST_FACTOR = 1_000_000


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of the table: fires while both windows burn faster than `factor`. Windows in seconds."""

    severity: Severity
    pace: Pace
    short: int
    long: int
    factor: Fraction

    def __str__(self) -> str:
        return f"{self.severity} {self.pace} ({durations.written(self.long)}/{durations.written(self.short)})"


@dataclass(frozen=True, slots=True)
class Windows:
    """A policy, for one period."""

    policy: str
    period: int  # seconds
    pairs: tuple[Pair, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every window, the period too, shortest first."""
        return tuple(sorted({length for pair in self.pairs for length in (pair.short, pair.long)} | {self.period}))

    def of(self, severity: Severity) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.severity == severity)

    @property
    def remarks(self) -> Iterator[str]:
        """What is allowed and seldom meant."""
        for pair in self.pairs:
            if pair.factor < Fraction(9, 10):  # 28 days with the workbook's shares have 0.93, which people use
                yield (
                    f"{pair} tells of a burn rate of {float(pair.factor):.3g}, with which the budget outlasts the "
                    f"{durations.written(self.period)}. A larger share, or a burnRate, says so later."
                )


@dataclass(frozen=True, slots=True)
class Row:
    """One pair as a policy has it: a share of the budget or a burn rate, whichever period."""

    severity: Severity
    pace: Pace
    short: int
    long: int
    share: Fraction | None  # of the budget; None where it is a burn rate
    burn_rate: Fraction
    line: int = 0

    def factor(self, period: int) -> Fraction:
        return self.burn_rate if self.share is None else self.share * period / self.long


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    path: str
    period: int
    rows: tuple[Row, ...]

    def windows(self, period: int | None = None) -> Windows:
        """For a period in seconds, the policy's own unless named. Raises ConfigurationError where a window is longer than that."""
        period = period or self.period
        nits = [
            Nit(
                ("spec", row.severity, row.pace, "longWindow"),
                f"{durations.written(row.long)} is longer than the period of {durations.written(period)}; "
                "take a longer --period, or a policy with shorter windows",
                row.line,
                self.path,
            )
            for row in self.rows
            if row.long > period
        ]
        if nits:
            raise refused(f"policy {self.name} for {durations.written(period)}", nits)
        pairs = tuple(Pair(row.severity, row.pace, row.short, row.long, row.factor(period)) for row in self.rows)
        return Windows(self.name, period, pairs)


def shipped() -> dict[str, Path]:
    """The policies that resmon brings, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "policies").glob("*.yaml"))}


def policy(name: str = DEFAULT) -> Policy:
    """A shipped one by its name, or one's own by the path of its file. Raises ConfigurationError that names all that is wrong."""
    ours = shipped()
    if name in ours:
        return load(ours[name], name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise ConfigurationError(f"there is no policy {name!r}{nearest(name, ours)}. A file is named by its path, ending in .yaml.")
    return load(path, path.stem)


def load(path: Path, name: str) -> Policy:
    documents = read(path)
    if len(documents) != 1:
        raise ConfigurationError(f"{path} holds {len(documents)} documents; a policy is one.")
    made, nits = _checked(documents[0], name)
    if made is None or nits:
        raise refused(str(path), nits)
    return made


def _checked(document: Document, name: str) -> tuple[Policy | None, list[Nit]]:
    reading = _Reading(document)
    top = reading.table((), document.content, {"apiVersion", "kind", "spec"})
    for key, value in (("apiVersion", VERSION), ("kind", KIND)):
        if key in top and top[key] != value:
            reading.nits.append(document.nit((key,), f"must be {value} (got {top[key]!r:.40})"))
    spec = reading.table(("spec",), top.get("spec", {}), {"sloPeriod", *SEVERITIES}) if "spec" in top else {}
    period = reading.duration(("spec", "sloPeriod"), spec)
    rows: list[Row | None] = []
    for severity in SEVERITIES:
        if severity not in spec:
            continue
        paces = reading.table(("spec", severity), spec[severity], set(PACES))
        rows += [reading.row(severity, pace, paces[pace]) for pace in PACES if pace in paces]
    found = [row for row in rows if row is not None]
    for row in found:
        if period is not None and row.long > period:
            message = f"{durations.written(row.long)} is longer than the period of {durations.written(period)}"
            reading.nits.append(document.nit(("spec", row.severity, row.pace, "longWindow"), message))
    nits = [*document.nits, *reading.nits]
    return (None if nits or period is None else Policy(name, document.path, period, tuple(found))), nits


class _Reading:
    """Takes a document apart, and notes what is wrong."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nits: list[Nit] = []

    def table(self, keys: tuple[str, ...], value: Any, known: set[str], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The known keys of a mapping."""
        if not isinstance(value, dict):
            self.nits.append(self.document.nit(keys, f"must be a mapping of {', '.join(sorted(known))}"))
            return {}
        for key in value:
            if key not in known:
                self.nits.append(self.document.nit((*keys, key), f"there is no such key{nearest(key, known)}"))
        missing = sorted(known - optional - set(value))
        if missing:
            self.nits.append(self.document.nit(keys, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"))
        return {key: value[key] for key in value if key in known}

    def duration(self, keys: tuple[str, ...], table: dict[str, Any]) -> int | None:
        if keys[-1] not in table:
            return None
        try:
            return durations.window(str(table[keys[-1]]))
        except ValueError as error:
            self.nits.append(self.document.nit(keys, str(error)))
            return None

    def number(self, keys: tuple[str, ...], table: dict[str, Any], most: int) -> Fraction | None:
        """Exactly the number that is written there."""
        text = str(table[keys[-1]])
        try:
            value = Decimal(text)
            if value.is_finite() and -12 <= value.adjusted() <= 12 and 0 < value <= most:
                return Fraction(value)
        except InvalidOperation:
            pass
        self.nits.append(self.document.nit(keys, f"must be a number above 0 and up to {most:,} (got {text!r:.40})"))
        return None

    def row(self, severity: Severity, pace: Pace, value: Any) -> Row | None:
        keys = ("spec", severity, pace)
        measures = frozenset({"errorBudgetPercent", "burnRate"})
        before = len(self.nits)
        table = self.table(keys, value, {"shortWindow", "longWindow", *measures}, measures)
        short = self.duration((*keys, "shortWindow"), table)
        long = self.duration((*keys, "longWindow"), table)
        if short is not None and long is not None and short >= long:
            message = f"{durations.written(short)} must be shorter than the longWindow, {durations.written(long)}"
            self.nits.append(self.document.nit((*keys, "shortWindow"), message))
        if isinstance(value, dict) and len(measures & set(table)) != 1:
            self.nits.append(self.document.nit(keys, "must have one of errorBudgetPercent and burnRate"))
        percent = self.number((*keys, "errorBudgetPercent"), table, 100) if "errorBudgetPercent" in table else None
        rate = self.number((*keys, "burnRate"), table, LARGEST_FACTOR) if "burnRate" in table else None
        if len(self.nits) > before or short is None or long is None:
            return None
        line = self.document.line_of((*keys, "longWindow"))
        return Row(severity, pace, short, long, None if percent is None else percent / 100, rate or Fraction(0), line)
