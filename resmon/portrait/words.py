"""A run in words: plain for a terminal, and as HTML with tables and pictures.

The HTML has no script and asks for nothing, so that it is shown as it is where a notebook is not trusted, and long after. Its size
is bounded, because notebooks are kept in git.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from resmon.plots.theme import light
from resmon.portrait.facts import TABLED, Facts, Trouble
from resmon.portrait.picture import Picture
from resmon.quantities import count, number

ROWS = 24  # blocks in the table
TROUBLES = 6  # in words
LONGEST, LONGEST_TEXT = 60, 300  # characters of a name, and of a sentence
HEADINGS = ("skip rms", "branch rms", "branch/skip", "gradient norm")

_GOOD, _BAD = ("running", "finished", "interrupted"), ("stalled", "unknown", "unreadable")


def plain(facts: Facts) -> str:
    """In lines of a terminal."""
    lines = [_heading(facts), *(f"  {_line(each)}" for each in facts.troubles[:TROUBLES]), *_notes(facts)]
    places = _chosen(facts, 12)
    if places:
        names = [_cut(facts.blocks[i]) for i in places]
        width = max(len("block"), *map(len, names))
        lines.append("  ".join([f"{'block':<{width}}", *(f"{heading:>13}" for heading in HEADINGS)]))
        for name, i in zip(names, places, strict=True):
            lines.append("  ".join([f"{name:<{width}}", *(f"{_value(facts.newest[k, i]):>13}" for k in range(len(TABLED)))]))
        lines += _left(facts, places)
    return "\n".join(lines)


def hypertext(facts: Facts, pictures: Sequence[Picture]) -> str:
    """As a notebook shows it."""
    colour = _colour(facts)
    rest = html.escape(_heading(facts).removeprefix(_cut(facts.run.name)))
    parts = [f'<p style="margin:4px 0"><span style="color:{colour}">■</span> <b>{_safe(facts.run.name)}</b>{rest}</p>']
    if facts.troubles:
        items = "".join(f"<li>{html.escape(_line(each))}</li>" for each in facts.troubles[:TROUBLES])
        parts.append(f'<ul style="margin:4px 0">{items}</ul>')
    parts += [f'<p style="margin:4px 0"><i>{html.escape(note)}</i></p>' for note in _notes(facts)]
    if facts.scores:
        told = " · ".join(f"{_safe(name)} {html.escape(value)}" for name, value in facts.scores)
        parts.append(f'<p style="margin:4px 0">{told}</p>')
    for picture in pictures:
        parts.append(f'<div style="margin:6px 0">{picture.image()}</div>')
        parts += [f'<p style="margin:4px 0"><i>{html.escape(picture.caption)}</i></p>'] if picture.caption else []
    places = _chosen(facts, ROWS)
    if places:
        parts.append(_table(facts, places))
        parts += [f'<p style="margin:4px 0"><i>{html.escape(note)}</i></p>' for note in _left(facts, places)]
    return f'<div style="max-width:820px">{"".join(parts)}</div>'


def _table(facts: Facts, places: Sequence[int]) -> str:
    bad = light()["--bad"]
    right = 'style="text-align:right"'
    head = "".join(f"<th {right}>{heading}</th>" for heading in HEADINGS)
    rows = []
    for i in places:
        cells = []
        for k in range(len(TABLED)):
            value = facts.newest[k, i]
            style = f'style="text-align:right;color:{bad};font-weight:bold"' if math.isinf(value) else right
            cells.append(f"<td {style}>{_value(value)}</td>")
        told = ", ".join(dict.fromkeys(each.kind for each in facts.troubles if each.block == facts.blocks[i] and each.is_open))
        rows.append(
            f'<tr><td style="text-align:left">{_safe(facts.blocks[i])}</td>{"".join(cells)}'
            f'<td style="text-align:left">{_safe(told)}</td></tr>'
        )
    newest = "" if facts.span is None else f" at step {facts.span[1]:,}"
    return (
        f'<table><caption style="text-align:left">Blocks{newest}</caption><thead><tr>'
        f'<th style="text-align:left">block</th>{head}<th></th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _heading(facts: Facts) -> str:
    """digits, attempt 1, ResidualNetwork: finished after 1,545 steps, 9 blocks, loss 0.00136"""
    run = facts.run
    attempt = f", attempt {run.attempt}" + (f" of {facts.attempts}" if facts.attempts > 1 else "")
    model = f", {_cut(run.model)}" if run.model else ""
    if facts.span is None:
        return f"{_cut(run.name)}{attempt}{model}: {run.outcome}, and no step is on file"
    loss = "" if run.loss is None else f", loss {number(run.loss)}"
    lives = "with" if run.lives else "after"
    course = f"{run.outcome} {lives} {count(run.steps, 'step')}, {count(len(facts.blocks), 'block')}{loss}"
    return f"{_cut(run.name)}{attempt}{model}: {course}"


def _notes(facts: Facts) -> list[str]:
    read, there = facts.ranks
    made = []
    if read != there and facts.span is not None:
        made.append(f"{count(read, 'rank')} of {there:,} are shown, those that are here.")
    if facts.skipped:
        made.append(f"{count(facts.skipped, 'damaged row')} cannot be read.")
    if len(facts.troubles) > TROUBLES:
        made.append(f"{len(facts.troubles) - TROUBLES:,} more findings and incidents: .findings() and .incidents().")
    return made


def _line(trouble: Trouble) -> str:
    step = "" if trouble.step is None else f" at step {trouble.step:,}"
    state = "" if trouble.severity == "incident" else f", {trouble.severity}, {'open' if trouble.is_open else 'closed'}"
    return f"{_cut(trouble.kind)}{step}{state}: {_cut(trouble.text, LONGEST_TEXT)}"


def _chosen(facts: Facts, most: int) -> list[int]:
    """The blocks that the table has, in order of depth: all, or those in trouble and others at equal distances."""
    blocks = len(facts.blocks)
    if blocks <= most:
        return list(range(blocks))
    known = {each.block for each in facts.troubles}
    told = [i for i in range(blocks) if facts.blocks[i] in known or bool(np.isinf(facts.newest[:, i]).any())][: most // 2]
    others = [i for i in range(blocks) if i not in set(told)]
    even = np.unique(np.linspace(0, len(others) - 1, most - len(told)).astype(int)).tolist()
    return sorted([*told, *(others[i] for i in even)])


def _left(facts: Facts, places: Sequence[int]) -> list[str]:
    left = len(facts.blocks) - len(places)
    return [f"{left:,} more blocks: .blocks() of resmon.load(...) has all."] if left else []


def _colour(facts: Facts) -> str:
    if facts.run.outcome in _GOOD:
        return light()["--warn" if any(each.is_open for each in facts.troubles) else "--good"]
    return light()["--warn" if facts.run.outcome in _BAD else "--bad"]


def _value(value: float) -> str:
    return "–" if math.isnan(value) else "not finite" if math.isinf(value) else number(value)


def _cut(text: str, longest: int = LONGEST) -> str:
    """On one line, and harmless to a terminal."""
    harmless = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return harmless if len(harmless) <= longest else f"{harmless[: longest - 1]}…"


def _safe(text: str) -> str:
    return html.escape(_cut(text))
