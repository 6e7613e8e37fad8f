"""What all panels have in common, and the kinds of them. A title, a unit and what there is to say are no options.

A panel is read by somebody who wants to know whether to act. So what it says has three parts: what is shown, how it looks when all
is well, and what to do where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import NotRequired, TypedDict, TypeVar, Unpack

from grafana_foundation_sdk.builders import (
    barchart,
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
    xychart,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import xychart as xychart_models
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BarGaugeValueMode,
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    MappingType,
    MatcherConfig,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.xychart import SeriesMapping, XYShowMode

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

WIDTH = 24  # of a dashboard, in columns

# Severities and outcomes have one colour everywhere.
RED, ORANGE, GREEN, BLUE, GREY = "red", "orange", "green", "blue", "text"

Panel = Builder[models.Panel]

_Kind = (
    barchart.Panel
    | bargauge.Panel
    | heatmap.Panel
    | stat.Panel
    | statetimeline.Panel
    | table.Panel
    | timeseries.Panel
    | xychart.Panel
)
_Panel = TypeVar("_Panel", bound=_Kind)


@dataclass(frozen=True, slots=True)
class Says:
    """What a panel says of itself."""

    shows: str
    healthy: str
    otherwise: str

    def __str__(self) -> str:
        return f"{self.shows}\n\n**Healthy:** {self.healthy}\n\n**Otherwise:** {self.otherwise}"


@dataclass(frozen=True, slots=True)
class Field:
    """What is special about one column or series, named as it comes; everything else has the panel's defaults."""

    name: str
    title: str = ""
    unit: str = ""
    decimals: int | None = None
    width: int | None = None
    colours: Mapping[str, str] | None = None  # of values
    texts: Mapping[str, str] | None = None  # values' other texts; a key in slashes is a regular expression
    link: tuple[str, str] | None = None  # its title and address
    hidden: bool = False
    colour: str = ""
    dashed: bool = False
    scheme: bool = False  # a background from red, at `least`, to green, at 1
    least: float = 0.0

    def properties(self) -> list[DynamicConfigValue]:
        found: dict[str, object] = {}
        if self.title:
            found["displayName"] = self.title
        if self.unit:
            found["unit"] = self.unit
        if self.decimals is not None:
            found["decimals"] = self.decimals
        if self.width is not None:
            found["custom.width"] = self.width
        if self.texts:
            found["mappings"] = list(_texts(self.texts))
        if self.colours:
            found["mappings"] = [_values({value: (value, colour) for value, colour in self.colours.items()})]
            found["custom.cellOptions"] = {"type": "color-text"}
        if self.link:
            title, url = self.link
            found["links"] = [{"title": title, "url": url, "targetBlank": not url.startswith("/")}]
        if self.hidden:
            found["custom.hidden"] = True
        if self.colour:
            found["color"] = {"mode": "fixed", "fixedColor": self.colour}
        if self.dashed:
            found["custom.lineStyle"] = {"fill": "dash", "dash": [8, 8]}
            found["custom.fillOpacity"] = 0
        if self.scheme:
            found["color"] = {"mode": "continuous-RdYlGr"}
            found["min"], found["max"] = self.least, 1
            found["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
        return [DynamicConfigValue(id_val=name, value=value) for name, value in found.items()]


def _properties(**values: object) -> list[DynamicConfigValue]:
    return [DynamicConfigValue(id_val=name, value=value) for name, value in values.items()]


def _values(shown: Mapping[str, tuple[str, str]]) -> dict[str, object]:
    options = {value: {"text": text, "color": colour, "index": i} for i, (value, (text, colour)) in enumerate(shown.items())}
    return {"type": MappingType.VALUE_TO_TEXT, "options": options}


def _texts(texts: Mapping[str, str]) -> list[object]:
    plain = {value: {"text": text, "index": i} for i, (value, text) in enumerate(texts.items()) if not value.startswith("/")}
    found: list[object] = [{"type": MappingType.VALUE_TO_TEXT, "options": plain}]
    for value, text in texts.items():
        if value.startswith("/"):
            found.append(
                {
                    "type": MappingType.REGEX_TO_TEXT,
                    "options": {"pattern": value.strip("/"), "result": {"text": text, "index": len(plain)}},
                }
            )
    return found


class Content(TypedDict):
    """What every kind of panel is given."""

    unit: str
    says: Says
    queries: Sequence[prometheus.Dataquery]
    size: NotRequired[tuple[int, int]]
    empty: NotRequired[str]  # what stands there where there is nothing to show
    fields: NotRequired[Sequence[Field]]


def _panel(made: _Panel, title: str, size: tuple[int, int], content: Content) -> _Panel:
    """`size` is that of the kind, unless the content has its own."""
    width, height = content.get("size", size)
    made.title(title).description(str(content["says"])).datasource(DATASOURCE).unit(content["unit"]).span(width).height(height)
    made.no_value(content.get("empty", "Nothing of this run in the time that is shown."))
    for letter, query in zip(ascii_uppercase, content["queries"], strict=False):
        made.with_target(query.ref_id(letter).datasource(DATASOURCE))
    for field in content.get("fields", ()):
        made.override_by_name(field.name, field.properties())
    return made


def _plain_thresholds() -> dashboard.ThresholdsConfig:
    """None: whether a number is bad is a detector's to say."""
    return _above(GREY)


def _above(below: str, *steps: tuple[float, str]) -> dashboard.ThresholdsConfig:
    levels = [Threshold(value=None, color=below), *(Threshold(value=value, color=colour) for value, colour in steps)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(levels)


def _legend(calculations: Sequence[str] = ("lastNotNull", "max"), aside: bool = False) -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.TABLE)
        .placement(LegendPlacement.RIGHT if aside else LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(list(calculations))
    )


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)


def lines(
    title: str, *, logarithmic: bool = False, least: float | None = None, aside: bool = False, **content: Unpack[Content]
) -> timeseries.Panel:
    """Numbers over time."""
    made = _panel(timeseries.Panel(), title, (12, 8), content)
    made.legend(_legend(aside=aside)).tooltip(_tooltip()).line_width(1).fill_opacity(0).show_points(VisibilityMode.AUTO)
    made.thresholds(_plain_thresholds()).color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
    if logarithmic:
        made.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    return made if least is None else made.min(least)


def stacked(title: str, *, bars: bool = False, **content: Unpack[Content]) -> timeseries.Panel:
    """Parts of a whole over time; as bars where they are counts."""
    made = lines(title, least=0, **content)
    made.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A")).fill_opacity(80 if bars else 30)
    return made.draw_style(GraphDrawStyle.BARS if bars else GraphDrawStyle.LINE)


def number(title: str, *, any_is: str = "", names: bool = False, **content: Unpack[Content]) -> stat.Panel:
    """One number, or a few. `any_is` is the colour of one above 0; `names` shows a series' name instead of its number."""
    made = _panel(stat.Panel(), title, (6, 4), content)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    made.graph_mode(BigValueGraphMode.NONE).color_mode(BigValueColorMode.BACKGROUND if any_is else BigValueColorMode.NONE)
    made.thresholds(_above(GREEN, (1, any_is)) if any_is else _plain_thresholds())
    if names:
        return made.text_mode(BigValueTextMode.NAME)
    return made.text_mode(BigValueTextMode.VALUE_AND_NAME if len(content["queries"]) > 1 else BigValueTextMode.AUTO)


def ranked(title: str, *, colours: Mapping[str, str] | None = None, **content: Unpack[Content]) -> bargauge.Panel:
    """A bar for each series; `colours` by the series' names."""
    content["fields"] = [*content.get("fields", ()), *(Field(name, colour=colour) for name, colour in (colours or {}).items())]
    made = _panel(bargauge.Panel(), title, (12, 8), content)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    made.orientation(VizOrientation.HORIZONTAL).display_mode(BarGaugeDisplayMode.BASIC).value_mode(BarGaugeValueMode.TEXT)
    made.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(BLUE))
    return made.thresholds(_plain_thresholds()).show_unfilled(True).min(0)


def columns(
    title: str,
    *,
    drop: Sequence[str] = (),
    order: Sequence[str] = (),
    sort: tuple[str, bool] | None = None,
    steps: Sequence[DataTransformerConfig] = (),
    **content: Unpack[Content],
) -> table.Panel:
    """A table. `drop` are columns that nobody reads, `order` the first ones, `sort` a column's title and whether the largest is
    first.

    Several queries become one table by their common labels. `unit` is that of numbers: labels are texts, though they may look like
    numbers or times, and what is empty in a row is not what is empty of all (packages/grafana-data/src/field/displayProcessor.ts).
    """
    fields = content.pop("fields", ())
    made = _panel(table.Panel(), title, (12, 8), content | {"unit": "string"})
    made.override_by_field_type("string", _properties(noValue=""))
    made.override_by_field_type("number", _properties(noValue="–", unit=content["unit"]))
    for field in fields:
        made.override_by_name(field.name, field.properties())
    if len(content["queries"]) > 1:
        made.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    for step in steps:
        made.with_transformation(step)
    kept: dict[str, object] = {
        "excludeByName": dict.fromkeys(("Time", *drop), True),
        "indexByName": {name: i for i, name in enumerate(order)},
        "renameByName": {},
    }
    made.with_transformation(DataTransformerConfig(id_val="organize", options=kept))
    if sort is not None:
        made.sort_by([common.TableSortByFieldState().display_name(sort[0]).desc(sort[1])])
    return made.show_header(True).filterable(True).thresholds(_plain_thresholds())


def in_order(column: str) -> DataTransformerConfig:
    """Rows from the least to the largest of a column, which need not be shown."""
    return DataTransformerConfig(id_val="sortBy", options={"fields": {}, "sort": [{"field": column}]})


def bars(title: str, *, x: str, sort: str, drop: Sequence[str] = (), **content: Unpack[Content]) -> barchart.Panel:
    """A bar of each query for each value of the label `x`, from left to right by the column `sort`."""
    content["fields"] = [*content.get("fields", ()), Field(x, unit="string")]
    made = _panel(barchart.Panel(), title, (24, 8), content)
    made.with_transformation(DataTransformerConfig(id_val="joinByField", options={"byField": x, "mode": "outer"}))
    made.with_transformation(in_order(sort))
    kept: dict[str, object] = {"excludeByName": dict.fromkeys((sort, *drop), True), "indexByName": {x: 0}, "renameByName": {}}
    made.with_transformation(DataTransformerConfig(id_val="organize", options=kept))
    made.fill_opacity(80).line_width(1)
    made.x_field(x).orientation(VizOrientation.VERTICAL).show_value(VisibilityMode.NEVER).x_tick_label_max_length(24)
    made.x_tick_label_rotation(-45).legend(_legend(())).tooltip(_tooltip())
    return made.thresholds(_plain_thresholds()).color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))


def depths(title: str, *, scheme: str, **content: Unpack[Content]) -> heatmap.Panel:
    """A row for each series, from the top in the order in which they come; a cell's colour is its value."""
    made = _heat(title, (12, 10), content, scheme, HeatmapColorScale.LINEAR)
    # By itself a heat map leaves out what is not above 0, which powers of ten may be, and makes room for names however long.
    made.filter_values(heatmap.FilterValueRange().le(-1e9)).y_axis(heatmap.YAxisConfig().reverse(True).axis_width(140))
    return made.cell_values(heatmap.CellValues().unit(content["unit"]).decimals(2))


def magnitudes(title: str, *, repeat: str, **content: Unpack[Content]) -> heatmap.Panel:
    """A histogram over time, one panel for each value of the variable `repeat`; `unit` is that of what is counted."""
    size = content.get("size", (8, 8))
    made = _heat(title, size, content | {"unit": "short"}, "Viridis", HeatmapColorScale.EXPONENTIAL)
    made.y_axis(heatmap.YAxisConfig().unit(content["unit"])).rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.LE))
    return made.repeat(repeat).repeat_direction("h").max_per_row(WIDTH // size[0])


def _heat(title: str, size: tuple[int, int], content: Content, scheme: str, scale: HeatmapColorScale) -> heatmap.Panel:
    made = _panel(heatmap.Panel(), title, size, content)
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme(scheme).fill("dark-orange").scale(scale)
    made.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LINEAR))
    return (
        made.color(colour.exponent(0.5).steps(64).reverse(False)).cell_gap(0).mode(TooltipDisplayMode.SINGLE).show_color_scale(True)
    )


def states(title: str, *, texts: Mapping[str, tuple[str, str]], **content: Unpack[Content]) -> statetimeline.Panel:
    """A bar over time for each series; `texts` are the words and colours of its values."""
    made = _panel(statetimeline.Panel(), title, (24, 6), content)
    made.mappings([ValueMap({value: ValueMappingResult(text=text, color=colour) for value, (text, colour) in texts.items()})])
    made.show_value(VisibilityMode.NEVER).row_height(0.8).line_width(0).fill_opacity(80).thresholds(_plain_thresholds())
    return made.legend(
        common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    )


def against(
    title: str,
    *,
    unit: str,
    says: Says,
    lines: Sequence[tuple[str, prometheus.Dataquery, prometheus.Dataquery]],
    empty: str,
) -> xychart.Panel:
    """Lines of one query's values over another's: each line's name, what goes to the right, and what goes up.

    The two of a line are joined by time, and apart from the others': a moment that only one line has would be drawn as 0.
    """
    queries = [query for _, right, up in lines for query in (right, up)]
    made = _panel(xychart.Panel(), title, (12, 8), {"unit": unit, "says": says, "queries": queries, "empty": empty})
    for i in range(len(lines)):
        both = MatcherConfig("byRefId", f"/^(?:{ascii_uppercase[2 * i]}|{ascii_uppercase[2 * i + 1]})$/")
        options = {"byField": "Time", "mode": "outer"}
        made.with_transformation(DataTransformerConfig(id_val="joinByField", filter_val=both, options=options))
    series: list[Builder[xychart_models.XYSeriesConfig]] = [
        _line(i, name, queries[2 * i], queries[2 * i + 1]) for i, (name, _, _) in enumerate(lines)
    ]
    made.mapping(SeriesMapping.MANUAL).series(series).show(XYShowMode.POINTS_AND_LINES)
    made.point_size(xychart.XychartFieldConfigPointSize().fixed(3)).line_width(1).thresholds(_plain_thresholds())
    return made.legend(_legend(())).color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))


def _line(frame: int, name: str, right: prometheus.Dataquery, up: prometheus.Dataquery) -> xychart.XYSeriesConfig:
    x, y = (xychart.MatcherConfig().id("byName").options(query.build().legend_format) for query in (right, up))
    return (
        xychart.XYSeriesConfig()
        .name(xychart.XychartXYSeriesConfigName().fixed(name))
        .frame(xychart.XychartXYSeriesConfigFrame().matcher(xychart.MatcherConfig().id("byIndex").options(frame)))
        .x(xychart.XychartXYSeriesConfigX().matcher(x))
        .y(xychart.XychartXYSeriesConfigY().matcher(y))
    )
