"""Where the pages are that alerts lead to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from resmon.errors import ConfigurationError

RUNBOOKS = "https://github.com/resmon/resmon/blob/main/runbooks"
DASHBOARDS = "http://localhost:3000/d"


@dataclass(frozen=True, slots=True)
class Places:
    """The addresses below which runbooks and dashboards are; without a slash at the end."""

    runbooks: str = RUNBOOKS
    dashboards: str = DASHBOARDS

    @classmethod
    def of(cls, runbooks: str | None, dashboards: str | None) -> Self:
        """As the options of these names say it, the usual ones where they say nothing. Raises ConfigurationError."""
        given = {"runbooks": runbooks, "dashboards": dashboards}
        for name, url in given.items():
            if url is not None and not url.startswith(("http://", "https://")):
                raise ConfigurationError(f"--{name} {url!r} is no address; it begins with http:// or https://.")
        return cls(**{name: url.rstrip("/") for name, url in given.items() if url is not None})
