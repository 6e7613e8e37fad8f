"""Queries, by a real parser: what is wrong with one, and which metrics it reads."""

from __future__ import annotations

from typing import Any


def nit(query: str) -> str | None:
    """What is wrong with a query; None where it parses."""
    import promql_parser

    try:
        promql_parser.parse(query)
    except ValueError as error:
        return str(error)
    return None


def metrics(query: str) -> frozenset[str]:
    """The names of every series that a query selects. Raises ValueError where it does not parse."""
    import promql_parser

    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name or "")
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return frozenset(found)
