"""The queries of an objective: templates over a window, and what can be known of them by parsing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import promql_parser

from resmon.rules import durations, metrics, nit

WINDOW = re.compile(r"\{\{-?\s*\.window\s*-?\}\}")  # sloth: {{.window}} and {{ .window }}
TRIED = "5m"
# What stands between words, and the texts in quotes, in which nothing does.
_BETWEEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`[^`]*`|(?:\s|#[^\n]*)+')

# Functions of a window whose results over neighbouring windows add up to that over both.
PER_SECOND = frozenset({"rate"})
ADDITIVE = frozenset({"increase", "sum_over_time", "count_over_time"})


@dataclass(frozen=True)
class Query:
    """A query with {{.window}} in it."""

    template: str

    def over(self, window: int | str) -> str:
        """In one line and without comments, for a window in seconds or as it is written."""
        filled = WINDOW.sub(durations.written(window) if isinstance(window, int) else window, self.template)
        return _BETWEEN.sub(lambda found: found[0] if found[0][0] in "\"'`" else " ", filled).strip()

    @cached_property
    def nits(self) -> tuple[str, ...]:
        """What is wrong with it."""
        return tuple(self._nits())

    def _nits(self) -> Iterator[str]:
        if not self.template.strip():
            yield "must be a query"
            return
        if not WINDOW.search(self.template):
            yield "must have {{.window}} where the length of the window goes, as in rate(errors_total[{{.window}}])"
            return
        filled = self.over(TRIED)
        if "{{" in filled:
            yield "has {{ besides {{.window}}; nothing else is filled in"
            return
        if (why := nit(filled)) is not None:
            yield f"does not parse with a window of {TRIED}: {' '.join(why.split())}"
            return
        parsed = promql_parser.parse(filled)
        if isinstance(parsed, promql_parser.MatrixSelector | promql_parser.SubqueryExpr):
            yield "gives a range of samples; wrap it in a function such as increase(...) or avg_over_time(...)"
        elif isinstance(parsed, promql_parser.StringLiteral | promql_parser.NumberLiteral) or not metrics(filled):
            yield "reads no series, so it would always say the same"

    @cached_property
    def nodes(self) -> tuple[Any, ...]:
        """Its syntax tree, node by node. Only of one without nits."""
        found: list[Any] = []

        def visit(node: Any) -> bool:
            found.append(node)
            return True

        promql_parser.walk(promql_parser.parse(self.over(TRIED)), visit)
        return tuple(found)

    @cached_property
    def functions(self) -> frozenset[str]:
        """The names of the functions that it calls."""
        return frozenset(str(node.func.name) for node in self.nodes if isinstance(node, promql_parser.Call))

    @property
    def is_nested(self) -> bool:
        """Whether it asks another query at every step of a window, which costs as much as the window is long."""
        return any(isinstance(node, promql_parser.SubqueryExpr) for node in self.nodes)

    @property
    def is_per_second(self) -> bool:
        """Whether its value is a rate; else it is a number of events."""
        return bool(self.functions & PER_SECOND)

    @property
    def is_additive(self) -> bool:
        """Whether what it gives for neighbouring windows adds up to what it gives for both."""
        return bool(self.functions & (PER_SECOND | ADDITIVE))

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Those that its outermost aggregation keeps, sorted; None where that cannot be seen at once."""
        node = promql_parser.parse(self.over(TRIED))
        while isinstance(node, promql_parser.ParenExpr):
            node = node.expr
        if not isinstance(node, promql_parser.AggregateExpr):
            return None
        if node.modifier is None:
            return ()
        if node.modifier.type != promql_parser.AggModifierType.By:
            return None
        return tuple(sorted(str(label) for label in node.modifier.labels))
