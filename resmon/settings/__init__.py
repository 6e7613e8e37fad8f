"""Settings: `origins` reads arguments, environment and resmon.toml, `resolution` says which values are right and which hold.

`document` reads the YAML files that go with them (objectives, policies, who may read from the agent), with the line of everything.
"""

from resmon.settings.resolution import Resolved, Settings, resolve

__all__ = ["Resolved", "Settings", "resolve"]
