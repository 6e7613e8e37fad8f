"""resmon watches the residual connections of a neural network while it trains.

    monitor = resmon.watch(model, optimizer, run="digits")

is the one line. Importing resmon imports neither torch nor pandas; what needs them is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resmon.errors import (
    AgentError,
    ConfigurationError,
    DiscoveryError,
    FlightError,
    FlightVersionError,
    NonFiniteError,
    ResmonError,
    ServerError,
)
from resmon.records import Finding, Incident, ResidualSite

if TYPE_CHECKING:
    from resmon.capture.discovery.marker import residual_add
    from resmon.capture.discovery.sites import discover
    from resmon.monitor.planned import maintenance
    from resmon.monitor.watch import Monitor, watch
    from resmon.portrait.flight import Flight, load

__version__ = "0.1.0"

__all__ = [
    "AgentError",
    "ConfigurationError",
    "DiscoveryError",
    "Finding",
    "Flight",
    "FlightError",
    "FlightVersionError",
    "Incident",
    "Monitor",
    "NonFiniteError",
    "ResidualSite",
    "ResmonError",
    "ServerError",
    "discover",
    "load",
    "maintenance",
    "residual_add",
    "watch",
]

_ELSEWHERE = {
    "Flight": "resmon.portrait.flight",
    "Monitor": "resmon.monitor.watch",
    "discover": "resmon.capture.discovery.sites",
    "load": "resmon.portrait.flight",
    "maintenance": "resmon.monitor.planned",
    "residual_add": "resmon.capture.discovery.marker",
    "watch": "resmon.monitor.watch",
}


if not TYPE_CHECKING:  # whoever checks types by it would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _ELSEWHERE:
            raise AttributeError(f"module 'resmon' has no attribute {name!r}")
        value = getattr(import_module(_ELSEWHERE[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ELSEWHERE])
