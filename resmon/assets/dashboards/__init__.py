"""Dashboards for Grafana, made with its own SDK (`pip install 'resmon[assets]'`), of which version 11.6 has schema 41.

Each reads as a table of contents, and each panel is one function. What is drawn is the catalogue's, merged over machines as the
recording rules merge it; objectives and alerts are what alerts/ records. Nothing here decides whether a number is bad: findings and
alerts do, and colours are theirs.
"""

from collections.abc import Callable

from grafana_foundation_sdk.models.dashboard import Dashboard

from resmon.assets.dashboards.board import parsed, text
from resmon.assets.dashboards.debug import debug
from resmon.assets.dashboards.executive import executive
from resmon.assets.dashboards.oncall import oncall
from resmon.assets.links import Links

BOARDS: dict[str, Callable[[Links], Dashboard]] = {"executive": executive, "oncall": oncall, "debug": debug}

__all__ = ["BOARDS", "parsed", "text"]
