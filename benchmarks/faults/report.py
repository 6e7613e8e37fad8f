"""The page that a person reads, made of what the notebook holds, and the JSON beside it that has every trial.

Proportions stand with the interval of Wilson (1927), "Probable inference, the law of succession, and statistical inference",
Journal of the American Statistical Association 22: at 95 %, as scipy computes it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from scipy.stats import binomtest

from benchmarks.faults.architectures import ARCHITECTURES
from benchmarks.faults.comparison import TITLES, TOOLS, Cost
from benchmarks.faults.healthy import HEALTHY, Quiet
from benchmarks.faults.kinds import DETECTED, EXACT, KINDS, USUAL, Kind
from benchmarks.faults.outcome import Outcome
from benchmarks.report import Circumstances

SHOWN = 20  # misses in the page; the JSON has all
STEPS = 1_000_000  # healthy ones that are aimed at
RUNS = 20
PER, TICKETS = 10_000, 1.0  # steps, and tickets in so many that a healthy run may have
_PACKAGE = re.compile(r"(?<!\S)/\S*/(?=(?:benchmarks|transformers)/)")  # the folders that a package lies in
QUESTIONS = ("block", "operation", "line", "origin")
HEAD = ("fault", "trials", "detected", "delay in steps", "block", "operation", "source line", "origin", "goal")


@dataclass(frozen=True, slots=True)
class Proportion:
    right: int
    of: int

    @classmethod
    def yes(cls, answers: Iterable[bool | None]) -> Proportion:
        """Of the questions that were asked."""
        asked = [answer for answer in answers if answer is not None]
        return cls(sum(asked), len(asked))

    @property
    def value(self) -> float:
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        found = binomtest(self.right, self.of).proportion_ci(confidence_level=0.95, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        """Empty where nothing was asked."""
        if not self.of:
            return ""
        low, high = (100 * each for each in self.interval)
        return f"{100 * self.value:.1f} % ({low:.1f} to {high:.1f})" + (
            f", {self.right} of {self.of}" if self.right < self.of else ""
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A kind's trials in one row."""

    name: str
    kind: Kind
    outcomes: Sequence[Outcome]

    @property
    def detected(self) -> Proportion:
        return Proportion.yes(outcome.detected for outcome in self.outcomes)

    def proportion(self, question: str) -> Proportion:
        return Proportion.yes(getattr(outcome, question) for outcome in self.outcomes)

    @property
    def delays(self) -> list[int]:
        return [outcome.delay for outcome in self.outcomes if outcome.delay is not None]

    @property
    def goal(self) -> str:
        """Whether it is met: of the kinds that have a block, by the block too."""
        block = self.proportion("block")
        met = self.detected.value >= DETECTED and (not block.of or block.value >= EXACT)
        few = len(self.outcomes) < self.kind.trials
        return ("met" if met else "**missed**") + (f", of {self.kind.trials} trials aimed at" if few else "")

    def row(self) -> tuple[str, ...]:
        delays = self.delays
        delay = f"{median(delays):g}, at most {max(delays)}" if delays else ""
        answers = (str(self.proportion(question)) for question in QUESTIONS)
        return (self.kind.title, str(len(self.outcomes)), str(self.detected), delay, *answers, self.goal)


def summaries(outcomes: Sequence[Outcome]) -> list[Summary]:
    """In the order of the table of kinds, those that have been tried."""
    found = ((name, kind, [each for each in outcomes if each.kind == name]) for name, kind in KINDS.items())
    return [Summary(name, kind, mine) for name, kind, mine in found if mine]


def markdown(outcomes: Sequence[Outcome], quiets: Sequence[Quiet], costs: Sequence[Cost], how: Circumstances) -> str:
    parts = [_INTRODUCTION, _faults(outcomes), _misses(outcomes), _healthy(quiets), _comparison(outcomes, costs)]
    parts += [_tried(outcomes, quiets), _made(how)]
    return "\n\n".join(part for part in parts if part) + "\n"


_INTRODUCTION = f"""# The fault bench

Faults whose kind, step and place are known are put into small trainings that resmon watches as it would watch any; then only what a
user gets is read: the incidents and findings of the flight, or what `resmon diff` says. `make faults` measures all of this anew and
writes this page; a trial is repeated alone by `python -m benchmarks.faults --only KIND --trial NUMBER`.

What they are put into:

{chr(10).join(f"- {each.title}" for each in ARCHITECTURES.values())}

Which modules make which block is written down by hand in `benchmarks/faults/architectures.py`. Operation, module, step and values
are drawn from the number of the trial. A fault that reaches neither the loss nor any gradient is drawn anew.

Slow faults begin after some hundred healthy steps, or with the training; what comes to nothing is drawn anew, too. They are
detected by a finding that is opened at their step or later and is true of them, if nothing paged before; the first that names a
block has to name the right one.

Right means: the block's name, and none for a fault outside of blocks; the operation and its module; file and number of the source
line; the origin (forward, backward, loss, data, parameters, optimizer), of loss and data with exactly the rows of the batch. A
proportion stands with its 95 % interval by Wilson. The goal is {100 * DETECTED:.0f} % detected and {100 * EXACT:.0f} % with the
exact block."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |" for cells in lines)


def show(console: Console, outcomes: Sequence[Outcome], quiets: Sequence[Quiet]) -> None:
    """In the terminal, in short."""
    found = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("fault", "trials", "detected", "delay", *QUESTIONS):
        found.add_column(name, justify="left" if name == "fault" else "right")
    for summary in summaries(outcomes):
        delays = summary.delays
        counted = [summary.detected, *(summary.proportion(question) for question in QUESTIONS)]
        detected, *answers = (f"{each.right}/{each.of}" if each.of else "" for each in counted)
        found.add_row(summary.name, str(len(summary.outcomes)), detected, f"{median(delays):g}" if delays else "", *answers)
    console.print(found)
    for outcome in misses(outcomes):
        console.print(f"\n{outcome.kind} {outcome.trial}, {outcome.architecture}: {_wrong(outcome)}", style="red", highlight=False)
        console.print(Padding(f"done: {outcome.expected}\nsaid: {outcome.said}", (0, 2)), highlight=False)
    if quiets:
        steps, alarms = sum(each.steps for each in quiets), Alarms.of(quiets)
        said = f"{alarms.pages} pages, {alarms.tickets} tickets, {alarms.rate:.2g} in {PER:,} steps"
        console.print(f"\n{len(quiets)} healthy runs, {steps:,} steps: {said}", highlight=False)


def _faults(outcomes: Sequence[Outcome]) -> str:
    found = summaries(outcomes)
    if not found:
        return ""
    others = [f"- {s.kind.title}: {s.kind.detected}." for s in found if s.kind.detected != USUAL]
    means = f"Detected means {USUAL}, but of these:\n\n" + "\n".join(others) if others else f"Detected means {USUAL}."
    return "\n\n".join(("## Faults", table(HEAD, (s.row() for s in found)), means))


def _misses(outcomes: Sequence[Outcome]) -> str:
    missed = misses(outcomes)
    if not missed:
        return "## Misses\n\nNone."
    rows = [
        (f"`{each.kind}` {each.trial}", each.architecture, _wrong(each), each.expected, each.said[:300]) for each in missed[:SHOWN]
    ]
    rest = f"\n\n{len(missed) - SHOWN} more stand in the JSON." if len(missed) > SHOWN else ""
    return "## Misses\n\n" + table(("trial", "architecture", "wrong", "what was done", "what was said"), rows) + rest


def misses(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Of the kinds, not of the other tools; files are named from their packages on."""
    missed = [outcome for outcome in outcomes if outcome.kind in KINDS and not outcome.is_right]
    return [replace(each, expected=_PACKAGE.sub("", each.expected), said=_PACKAGE.sub("", each.said)) for each in missed]


def _wrong(outcome: Outcome) -> str:
    if not outcome.detected:
        return "not detected"
    return ", ".join(question for question in QUESTIONS if getattr(outcome, question) is False)


@dataclass(frozen=True, slots=True)
class Alarms:
    """What was said of healthy runs, all of it false."""

    incidents: int
    paging: int  # findings
    tickets: int
    seen: int  # steps, by the detectors
    kinds: Mapping[str, tuple[int, int]]  # of findings: that paged, and tickets

    @classmethod
    def of(cls, quiets: Sequence[Quiet]) -> Alarms:
        findings = [finding for quiet in quiets for finding in quiet.findings]
        said = Counter((finding["kind"], finding["severity"]) for finding in findings)
        kinds = {kind: (said[kind, "page"], said[kind, "ticket"]) for kind in sorted({kind for kind, _ in said})}
        paging, tickets = (sum(counts[i] for counts in kinds.values()) for i in (0, 1))
        incidents, seen = sum(len(quiet.incidents) for quiet in quiets), sum(quiet.seen for quiet in quiets)
        return cls(incidents, paging, tickets, seen, kinds)

    @property
    def pages(self) -> int:
        return self.incidents + self.paging

    @property
    def rate(self) -> float:
        """Tickets in PER steps."""
        return self.tickets * PER / max(self.seen, 1)


def _healthy(quiets: Sequence[Quiet]) -> str:
    if not quiets:
        return ""
    steps, alarms = sum(quiet.steps for quiet in quiets), Alarms.of(quiets)
    enough = steps >= STEPS and len(quiets) >= RUNS
    silent = "met" if enough and not alarms.pages else "**missed**" if alarms.pages else "no page so far"
    few = ("met" if enough else "so far") if alarms.rate <= TICKETS else "**missed**"
    kinds = "; ".join(f"`{kind}` {pages} and {tickets}" for kind, (pages, tickets) in alarms.kinds.items())
    places = {name: place for place, name in enumerate(HEALTHY)}
    rows = [
        (
            HEALTHY[quiet.name].title if quiet.name in HEALTHY else quiet.name,
            f"{quiet.steps:,}" + ("" if quiet.done else " so far"),
            f"{quiet.first_loss:.3g} → {quiet.last_loss:.3g}",
            str(quiet.skipped) if quiet.skipped else "",
            "; ".join([*quiet.incidents, *(f"{each['severity']}: {each['summary']}" for each in quiet.findings)]) or "nothing",
        )
        for quiet in sorted(quiets, key=lambda each: places.get(each.name, len(places)))
    ]
    text = (
        f"{len(quiets)} trainings in which nothing is wrong, {steps:,} steps together, of which the detectors saw {alarms.seen:,}. "
        f"Incidents: {alarms.incidents}; findings that page: {alarms.paging}; tickets: {alarms.tickets}, {alarms.rate:.2g} in "
        f"{PER:,} steps. The goals: no page in {STEPS:,} steps of {RUNS} runs: {silent}; at most {TICKETS:g} ticket in {PER:,} "
        f"steps: {few}." + (f" Findings that page and tickets of each kind: {kinds}." if kinds else "")
    )
    return f"## Healthy runs\n\n{text}\n\n" + table(("training", "steps", "loss", "skipped by the scaler", "what was said"), rows)


def _comparison(outcomes: Sequence[Outcome], costs: Sequence[Cost]) -> str:
    theirs = {tool: [each for each in outcomes if each.kind.startswith(f"{tool}:")] for tool in TOOLS}
    if not any(theirs.values()):
        return ""
    rows = []
    for kind in KINDS:
        tried = {each.trial for mine in theirs.values() for each in mine if each.kind.endswith(f":{kind}")}
        for tool in ("resmon", *TOOLS) if tried else ():
            wanted = kind if tool == "resmon" else f"{tool}:{kind}"
            mine = [each for each in outcomes if each.kind == wanted and each.trial in tried]
            place = str(Proportion.yes(each.operation for each in mine))
            detected = str(Proportion.yes(each.detected for each in mine))
            rows.append((KINDS[kind].title, TITLES[tool], str(len(mine)), detected, place))
    text = (
        "## Beside other tools\n\nThe same faults in the same trainings. Both of the others end the run when they find something. "
        "The place is, for resmon, operation and module; for anomaly mode the source line of the forward call that it prints; for "
        "DebugUnderflowOverflow the module that it names last.\n\n"
    )
    text += table(("fault", "tool", "trials", "detected", "place right"), rows)
    if costs:
        from benchmarks.workloads import WORKLOADS

        priced = [
            (WORKLOADS[cost.workload].title, f"{cost.step * 1e3:.0f} ms", TITLES[cost.tool], f"{cost.ratio:.2f}", str(cost.pairs))
            for cost in costs
        ]
        text += "\n\nWhat a step costs with it, as a ratio to the same step bare (median of pairs that take turns):\n\n"
        text += table(("training", "bare step", "tool", "ratio", "pairs"), priced)
    return text


def _tried(outcomes: Sequence[Outcome], quiets: Sequence[Quiet]) -> str:
    """Which sources: a bench that went on may have tried several."""
    tried = [
        ", ".join(f"{count:,} with {commit or 'a commit that is not known'}" for commit, count in counts.most_common())
        for counts in (Counter(each.commit for each in outcomes), Counter(each.commit for each in quiets))
    ]
    return (
        "The sources that were tried: "
        + "; ".join(f"{what}, {said}" for what, said in zip(("trials", "healthy runs"), tried, strict=True) if said)
        + "."
        if any(tried)
        else ""
    )


def _made(how: Circumstances) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in how.versions.items())
    load = " ".join(f"{n:.2f}" for n in how.load)
    return f"Made by `{how.command}`, {how.date}. {how.cpu}, {how.cores} cores; {packages}. Load average (1, 5, 15 min) {load}."


def write_json(path: Path, outcomes: Sequence[Outcome], quiets: Sequence[Quiet], costs: Sequence[Cost], how: Circumstances) -> None:
    """Every trial in one line: number, architecture, detected, delay, then the answers to QUESTIONS; the misses in full."""
    kinds: dict[str, list[list[Any]]] = {}
    for each in outcomes:
        answers = [getattr(each, question) for question in QUESTIONS]
        kinds.setdefault(each.kind, []).append([each.trial, each.architecture, each.detected, each.delay, *answers])
    counted = {
        summary.name: {
            "trials": len(summary.outcomes),
            **{
                name: {"right": found.right, "of": found.of, "interval": [round(each, 4) for each in found.interval]}
                for name in ("detected", *QUESTIONS)
                if (found := summary.detected if name == "detected" else summary.proportion(name)).of
            },
            "delay": {"median": median(summary.delays), "most": max(summary.delays)} if summary.delays else None,
            "goal": summary.goal.strip("*"),
        }
        for summary in summaries(outcomes)
    }
    parts = {
        "circumstances": asdict(how),
        "faults": counted,
        "misses": [asdict(each) for each in misses(outcomes)],
        "healthy": [asdict(quiet) for quiet in quiets],
        "costs": [asdict(cost) for cost in costs],
    }
    body = [f'"{name}": {json.dumps(value, indent=1)}' for name, value in parts.items()]
    trials = [f'"{kind}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]" for kind, rows in kinds.items()]
    body.append('"questions": ' + json.dumps(["trial", "architecture", "detected", "delay", *QUESTIONS]))
    body.append('"trials": {\n' + ",\n".join(trials) + "\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(body) + "\n}\n", encoding="utf-8")
