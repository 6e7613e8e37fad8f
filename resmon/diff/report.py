"""A comparison as people and programs read it: a sentence and a table per group in the terminal, or JSON with fixed keys.

The sentences are part of the JSON too. Names come from files that anybody may have written, so none is printed as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from resmon.diff.comparison import Comparison, Group, Level, Row, Verdict
from resmon.diff.divergence import Divergence, Parting
from resmon.diff.effects import Effect
from resmon.diff.runs import Run
from resmon.diff.structure import Difference, Structure
from resmon.quantities import printable, size

FORMAT = 1  # of the JSON: it rises when a key goes away or changes its meaning
ROWS = 12  # of a group that are shown, the worst ones
NAMED = 3  # quantities that a sentence names
STYLES: dict[Verdict, str] = {
    "b not finite": "bold red",
    "mixed": "yellow",
    "worse": "bold red",
    "better": "green",
    "changed": "yellow",
    "a not finite": "yellow",
    "both not finite": "bold red",
    "no difference": "",
    "cannot tell": "dim",
    "equal": "dim",
}


def sentence(comparison: Comparison, group: Group) -> str:
    """The verdict on a group of quantities, with what it rests on."""
    rows = [row for row in comparison.of(group) if row.at == "shared"]
    verdict = comparison.verdicts[group]
    one_each = all(len(row.a) == len(row.b) == 1 for row in rows)
    match verdict:
        case "b not finite" | "a not finite" | "both not finite":
            which = {"b not finite": "B is", "a not finite": "A is", "both not finite": "both are"}[verdict]
            caution = "; one run of each cannot tell whether another seed would be" if one_each else ""
            return f"{which} not finite: {_listed(rows, verdict)}{caution}"
        case "mixed":
            return f"worse: {_listed(rows, 'worse')}. Better: {_listed(rows, 'better')}"
        case "worse" | "better":
            return f"{verdict}: {_listed(rows, verdict)}"
        case "changed":
            return f"changed, which may be better or worse: {_listed(rows, verdict)}"
        case "no difference":
            return f"no difference that the spread between runs would not explain ({_runs(rows[0])}){_not_excluded(rows)}"
        case "equal":
            return "equal to the last bit"
        case "cannot tell":
            seed = "another moment of the machine" if group in ("speed", "memory") else "another seed"
            return f"cannot tell: one run of each cannot tell a change from {seed}{_by_noise(rows)}"


def _listed(rows: Sequence[Row], verdict: Verdict) -> str:
    """The rows with this verdict: the first in words; of blocks how many there are."""
    chosen = [row for row in rows if row.verdict == verdict]
    say = _broken if "finite" in verdict else _change
    if chosen[0].block is not None:
        touched, known = len({row.block for row in chosen}), len({row.block for row in rows})
        counts = f"{len(chosen):,} of {len(rows):,} statistics, in {touched:,} of {known:,} blocks"
        return f"{counts}; first {say(chosen[0])}"
    more = f" and {len(chosen) - NAMED:,} more of {len(rows):,} quantities" if len(chosen) > NAMED else ""
    return "; ".join(say(row) for row in chosen[:NAMED]) + more


def _broken(row: Row) -> str:
    of_a, of_b = (f"{sum(level.value is None for level in side)} of {len(side)} runs of {name}" for name, side in _sides(row))
    return f"{_label(row)} ends in NaN or infinity in {of_b} and {of_a}"


def _change(row: Row) -> str:
    size = "" if row.effect is None or row.effect.size is None else f", {_size(row.effect.size)} standard deviations"
    p = "" if row.p_adjusted is None else f", p {_p(row.p_adjusted)}"
    values = f"{_value(row, row.mean_b)} against {_value(row, row.mean_a)}"
    return f"{_label(row)} {values} ({_shift(row, row.difference)}{size}{p})"


def _runs(row: Row) -> str:
    return ", ".join(f"{len(side)} of {name}" for name, side in _sides(row))


def _not_excluded(rows: Sequence[Row]) -> str:
    """What a difference could still be: no evidence of one is no evidence that there is none."""
    row = _chief(rows)
    if row is None or row.effect is None:
        return ""
    return f"; of {_label(row)} {_interval(row, row.effect)} is not excluded"


def _chief(rows: Sequence[Row]) -> Row | None:
    """The row that speaks for a group of few quantities; none does for the blocks."""
    few = [row for row in rows if row.block is None]
    return next((row for row in few if row.name in ("loss", "duration")), few[0] if few else None)


def _by_noise(rows: Sequence[Row]) -> str:
    row = _chief(rows)
    if row is None or not row.noise or row.difference is None:
        return ""
    times = abs(row.difference) / row.noise
    return f". {_label(row)} differs by {_shift(row, row.difference)}, {times:.1f} times the noise within the runs"


def _sides(row: Row) -> tuple[tuple[str, tuple[Level, ...]], tuple[str, tuple[Level, ...]]]:
    return ("A", row.a), ("B", row.b)


def render(comparison: Comparison, everything: bool = False) -> RenderableType:
    """For a terminal; the worst rows of each group, or all of them."""
    steps = comparison.steps
    parts: list[RenderableType] = [
        Text.assemble(("A  ", "bold"), _named(comparison.a)),
        Text.assemble(("B  ", "bold"), _named(comparison.b)),
        Text(f"{len(steps):,} steps in common, {steps[0]:,} to {steps[-1]:,}", style="dim"),
    ]
    if comparison.structure is not None:
        said = structure_sentences(comparison.structure)
        parts += [Text(), Text.assemble(("structure", "bold"), "  ", (printable(said[0]), "yellow" if said[1:] else ""))]
        parts += [Text(f"  {printable(line)}") for line in said[1:]]
    if comparison.divergence is not None:
        parts += [Text(), Text.assemble(("behaviour", "bold"), "  ", printable(divergence_sentence(comparison.divergence)))]
    for group, verdict in comparison.verdicts.items():
        rows = comparison.of(group)
        parts += [Text(), Text.assemble((group, "bold"), "  ", (printable(sentence(comparison, group)), STYLES[verdict]))]
        shown = rows if everything else rows[:ROWS]
        parts.append(_table(shown))
        if len(shown) < len(rows):
            parts.append(Text(f"{len(rows) - len(shown):,} more; --all shows them", style="dim"))
    for side, blocks in (("A", comparison.only_a), ("B", comparison.only_b)):
        if blocks:
            names = ", ".join(map(printable, blocks[:ROWS])) + (f" and {len(blocks) - ROWS:,} more" if len(blocks) > ROWS else "")
            parts += [Text(), Text(f"blocks in {side} only: {names}")]
    if any(row.at == "final" for row in comparison.rows):
        parts += [Text(), Text("final: each run's own last values, not at equal steps and no part of a verdict", style="dim")]
    if comparison.notes:
        parts.append(Text())
        parts += [Text(f"note: {printable(note)}", style="dim") for note in comparison.notes]
    return Lines(*parts)


def structure_sentences(structure: Structure) -> list[str]:
    """What differs in structure: one sentence for all of it, then one for each difference."""
    unknown = "" if structure.operations_known else "; the operations of a flight of before are not known"
    if not structure.differences:
        return [f"the same in all {len(structure.pairs):,} blocks{unknown}"]
    touched = {block for difference in structure.differences for block in difference.blocks}
    lines = [_difference_sentence(difference, len(structure.pairs)) for difference in structure.differences]
    return [f"differs in {len(touched):,} {_blocks(len(touched))}{unknown}", *lines]


def _difference_sentence(difference: Difference, pairs: int) -> str:
    blocks = difference.blocks
    if difference.aspect == "renamed":
        names = [f"{b} (A: {a})" for a, b in zip(difference.a, difference.b, strict=True)]
    else:
        names = list(blocks)
    shown = names if len(names) == NAMED + 1 else names[:NAMED]  # "and 1 more" is no shorter than its name
    listed = ", ".join(shown) + (f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else "")
    of_all = "" if difference.aspect in ("added", "removed") else f" of {pairs:,}"
    return f"{difference.aspect}: {len(blocks):,}{of_all} {_blocks(pairs if of_all else len(blocks))}, {listed}: {difference.what}"


def _blocks(count: int) -> str:
    return "block" if count == 1 else "blocks"


def divergence_sentence(divergence: Divergence) -> str:
    """Where A and B part first, and what that rests on."""
    single = divergence.runs == (1, 1)
    equal = "" if divergence.equal_until is None else f"equal to the last bit up to step {divergence.equal_until:,}; "
    basis = "one run of each, so a factor and no effect size" if single else f"{divergence.runs[0]} and {divergence.runs[1]} runs"
    if divergence.first is None:
        beyond = "what the levels waver from step to step" if single else "the spread between runs"
        return (
            f"{equal}no block parts beyond {beyond} ({divergence.blocks:,} blocks, {divergence.steps:,} steps looked at; {basis})"
        )
    followers = [f"{parting.block} at step {parting.step:,}" for parting in divergence.partings[1 : 1 + NAMED]]
    then = f"; then {', '.join(followers)}" if followers else ""
    return f"{equal}the streams part first at {_parting(divergence.first)}{then} ({basis})"


def _parting(parting: Parting) -> str:
    size = "" if parting.size is None else f", {_size(parting.size)} standard deviations between runs"
    change = f"is {parting.b:.4g} in B and {parting.a:.4g} in A, a factor of {parting.factor:.3g}{size}"
    return f"step {parting.step:,} in block {parting.block}: {parting.statistic} {change}"


def _named(runs: Sequence[Run]) -> str:
    return ", ".join(printable(run.name) for run in runs) + (f"  ({len(runs)} runs)" if len(runs) > 1 else "")


def _table(rows: Sequence[Row]) -> Table:
    several = any(len(row.a) + len(row.b) > 2 for row in rows)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", min_width=12)
    for name in ("A", "B", "change", *(("95 % interval", "size", "p") if several else ("noise ±",))):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        effect = row.effect
        if several:
            interval = "–" if effect is None else _interval(row, effect, "…")
            size = "–" if effect is None or effect.size is None else _size(effect.size)
            figures = [interval, size, "–" if row.p_adjusted is None else _p(row.p_adjusted)]
        else:
            figures = ["–" if row.noise is None else _shift(row, row.noise).removeprefix("+")]
        cells = [_value(row, row.mean_a), _value(row, row.mean_b), _shift(row, row.difference), *figures]
        # What the group's sentence has said of all of it need not stand in every row.
        verdict = "" if row.verdict == "no difference" or row.at == "final" else row.verdict
        table.add_row(
            Text(_label(row) + (", final" if row.at == "final" else "")), *cells, Text(verdict, style=STYLES[row.verdict])
        )
    return table


def _label(row: Row) -> str:
    return printable(row.name if row.block is None else f"{row.block} {row.name}")


def _value(row: Row, value: float | None) -> str:
    if value is None:
        return "not finite"
    return size(value) if row.group == "memory" else f"{value:.4g}"


def _shift(row: Row, difference: float | None) -> str:
    """A difference as a part of A's level, or itself where A's is 0."""
    if difference is None:
        return "–"
    return f"{_part(row, difference)} %" if row.mean_a else _part(row, difference)


def _interval(row: Row, effect: Effect, to: str = "to") -> str:
    return f"{_part(row, effect.low)} {to} {_shift(row, effect.high)}"


def _part(row: Row, difference: float) -> str:
    if not row.mean_a:
        return f"{difference:+.3g}"
    part = 100 * difference / abs(row.mean_a)
    return f"{part:+,.0f}" if abs(part) >= 100 else f"{part:+.2g}"


def _size(size: float) -> str:
    return f"{size:+.1f}" if math.isfinite(size) else f"{size:+}"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.0001 else "<0.0001"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The same for programs. Numbers that are not there or not finite are null."""
    return {
        "format": FORMAT,
        "worse": comparison.worse,
        "a": [_run(run) for run in comparison.a],
        "b": [_run(run) for run in comparison.b],
        "steps": {"shared": len(comparison.steps), "first": int(comparison.steps[0]), "last": int(comparison.steps[-1])},
        "groups": {
            group: {"verdict": verdict, "sentence": sentence(comparison, group)} for group, verdict in comparison.verdicts.items()
        },
        "rows": [_row(row) for row in comparison.rows],
        "blocks_only_in_a": list(comparison.only_a),
        "blocks_only_in_b": list(comparison.only_b),
        "structure": _structure(comparison.structure),
        "divergence": _divergence(comparison.divergence),
        "notes": list(comparison.notes),
    }


def _structure(structure: Structure | None) -> dict[str, Any] | None:
    if structure is None:
        return None
    return {
        "sentences": structure_sentences(structure),
        "operations_known": structure.operations_known,
        "differences": [
            {"aspect": each.aspect, "what": each.what, "a": list(each.a), "b": list(each.b)} for each in structure.differences
        ],
    }


def _divergence(divergence: Divergence | None) -> dict[str, Any] | None:
    if divergence is None:
        return None
    return {
        "sentence": divergence_sentence(divergence),
        "equal_until": divergence.equal_until,
        "partings": [
            {
                "step": parting.step,
                "block": parting.block,
                "statistic": parting.statistic,
                "a": _finite(parting.a),
                "b": _finite(parting.b),
                "factor": _finite(parting.factor),
                "effect_size": _finite(parting.size),
            }
            for parting in divergence.partings
        ],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "attempt": run.attempt,
        "folder": str(run.folder),
        "outcome": run.outcome,
        "host": run.host,
        "seed": run.seed,
        "steps": len(run.steps),
        "first_step": int(run.steps[0]),
        "last_step": int(run.steps[-1]),
        "missing_steps": run.gaps,
        "damaged_places": len(run.damage),
    }


def _row(row: Row) -> dict[str, Any]:
    effect = row.effect
    numbers: dict[str, float | None] = {
        "mean_a": row.mean_a,
        "mean_b": row.mean_b,
        "difference": row.difference,
        "relative": row.relative,
        "low": effect.low if effect else None,
        "high": effect.high if effect else None,
        "effect_size": effect.size if effect else None,
        "effect_size_low": effect.size_low if effect else None,
        "effect_size_high": effect.size_high if effect else None,
        "p": effect.p if effect else None,
        "p_adjusted": row.p_adjusted,
        "noise": row.noise,
    }
    return {
        "group": row.group,
        "quantity": row.name,
        "block": row.block,
        "at": row.at,
        "statistic": row.statistic,
        "better": row.better,
        "verdict": row.verdict,
        "steps": row.steps,
        "first_step": row.first,
        "last_step": row.last,
        "a": [_finite(level.value) for level in row.a],
        "b": [_finite(level.value) for level in row.b],
        "nonfinite_a": sum(level.nonfinite for level in row.a),
        "nonfinite_b": sum(level.nonfinite for level in row.b),
        **{name: _finite(value) for name, value in numbers.items()},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
