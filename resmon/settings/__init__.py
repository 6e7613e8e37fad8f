"""Settings: `origins` reads arguments, environment and resmon.toml, `resolution` says which values are right and which hold."""

from resmon.settings.resolution import Resolved, Settings, resolve

__all__ = ["Resolved", "Settings", "resolve"]
