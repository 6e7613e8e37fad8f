"""What resmon brings for the servers behind it, written from its own tables: alert rules, recording rules, their unit tests, and
dashboards.

A row of a table becomes a rule, the rule's unit tests and a line of docs/alerts.md, so that none of them can lack. The files are
committed; `resmon assets --check` tells those that are not as the tables have them. `OUTPUTS` in outputs.py is where a file is
added.
"""

from resmon.assets.links import Links
from resmon.assets.outputs import FOLDERS, OUTPUTS, differing, rendered, write

__all__ = ["FOLDERS", "OUTPUTS", "Links", "differing", "rendered", "write"]
