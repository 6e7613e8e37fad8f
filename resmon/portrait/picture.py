"""The pictures of a run: its loss, and below it, on the same steps, a heat map of its blocks."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from typing import Any

from resmon.plots import heatmap
from resmon.plots.canvas import BAD, SERIES, Canvas, Data, escaped
from resmon.plots.curves import line, scale
from resmon.plots.svg import svg
from resmon.plots.theme import alone
from resmon.portrait.facts import Facts, Map

WIDTH = 760  # pixels
LOSS = 130  # pixels of the panel of losses
LINES = 20  # incidents that are marked

PLOTLY = "application/vnd.plotly.v1+json"


@dataclass(frozen=True, slots=True)
class Picture:
    """One of them. Front ends that draw plotly's figures (JupyterLab, VS Code) let one zoom into it; elsewhere it stands still."""

    title: str
    caption: str  # what its colours mean besides
    plot: Data

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        told = f"<p><i>{html.escape(self.caption)}</i></p>" if self.caption else ""
        figure = alone(self.plot) | {"config": {"responsive": True}}
        return {"text/plain": self.title, "text/html": self.image() + told, PLOTLY: figure}

    def __repr__(self) -> str:
        return self.title

    def image(self) -> str:
        """As HTML that needs nothing else."""
        data = base64.b64encode(self.svg().encode()).decode("ascii")
        style = "max-width:100%;height:auto"
        return f'<img alt="{html.escape(self.title)}" width="{WIDTH}" style="{style}" src="data:image/svg+xml;base64,{data}">'

    def svg(self) -> str:
        return svg(self.plot, WIDTH, self.title)


def picture(facts: Facts, map_: Map, *, losses: bool = True) -> Picture:
    """Of a quantity of the blocks, below the loss if that was logged."""
    above = facts.losses if losses else ()
    below = min(heatmap.height(len(facts.blocks), 620), 520)
    height = below + (LOSS if above else 0)
    rows: Data = {"rows": 2, "heights": [LOSS, below], "vertical_spacing": 0.05, "shared_x": True} if above else {}
    names = min(22, max((len(name) for name in facts.blocks), default=0))
    margin = {"l": max(76, 22 + round(6.3 * names)), "r": 104, "t": 26 if len(above) > 1 else 12, "b": 42}
    canvas = Canvas(height, **rows, margin=margin)
    for i, (name, curve) in enumerate(above):
        line(canvas, curve, name, SERIES[i], 1)
    if above:
        heading = escaped(above[0][0], 20) if len(above) == 1 else "loss"
        canvas.y(1, title={"text": heading, "standoff": 8}, **scale([curve for _, curve in above]))
        canvas.set(showlegend=len(above) > 1)
    row, linear = (2 if above else 1), map_.measure.scale == "linear"
    zero, broken = heatmap.cells(canvas, 1, map_.steps, facts.blocks, map_.values, linear=linear, row=row)
    rows_of = Canvas(1)
    heatmap.rows(rows_of, facts.blocks, 22, max(2, min(heatmap.NAMES, (below - 42) // 13)))
    canvas.y(row, **{name: rows_of.layout["yaxis"][name] for name in ("autorange", "showgrid", "tickmode", "tickvals", "ticktext")})
    heatmap.colours(canvas, map_.measure.label, map_.measure.colours, heatmap.scale_of([map_.values], linear), linear=linear)
    if above:  # the bar stands beside the map alone
        low, high = canvas.layout["yaxis2"]["domain"]
        canvas.set(coloraxis={"colorbar": {"y": (low + high) / 2, "len": high - low}})
    first, last = facts.span or (0, 1)
    beside = max(0.5, (last - first) * 0.002)
    canvas.x(range=[first - beside, last + beside], tickformat=",d")
    canvas.x(row, title={"text": "step"})
    for step in sorted({each.step for each in facts.troubles if each.severity == "incident" and each.step is not None})[:LINES]:
        for each in range(1, row + 1):
            canvas.vertical(step, each, colour=BAD)
    what = f"{map_.measure.title} of {escaped(facts.run.name, 60)}, steps {first:,} to {last:,}"
    said = [f"A column stands for {map_.width:,} steps."] if map_.width > 1 else []
    said += ["Light blue is exactly 0."] if zero else []
    said += ["Vermilion is NaN or infinite."] if broken else []
    return Picture(what, " ".join(said), canvas.plot())
