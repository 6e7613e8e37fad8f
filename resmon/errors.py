"""The errors that resmon raises, one small tree.

Every message says what happened, where, and what to do next. Errors are raised where the user stands and can act (a call of
`watch`, `discover`, `load`, a command); inside a running training loop nothing is raised, it is counted and logged once.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable


class ResmonError(Exception):
    """The root: `except resmon.ResmonError` catches everything that resmon raises on purpose."""


class ConfigurationError(ResmonError):
    """An argument, environment variable or key of resmon.toml that cannot be used."""


class DiscoveryError(ResmonError):
    """The traced forward pass did not run, so no site could be found."""


class FlightError(ResmonError):
    """A flight that cannot be read: not there, empty, or damaged beyond its last readable row."""


class FlightVersionError(FlightError):
    """A flight that a newer resmon wrote."""


class AgentError(ResmonError):
    """The agent could not be started, found or served."""


class UnobservableError(ResmonError):
    """Tensors came to be where this version cannot read them. It ends the observation of the blocks, and nothing else."""


class NonFiniteError(ResmonError):
    """A step whose gradients are NaN or infinite, where `on_nonfinite="raise"` asks for that; the message is the incident's."""


class ServerError(ResmonError):
    """Alertmanager or Prometheus cannot be reached, refused what was asked, lacks it, or is something else.

    `status` is the answer's, None where none came, and `said` the server's own words. `uncertain`: what was asked may have been
    done all the same. `passing`: it may go well a moment later, not before `wait` seconds if the server named any.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        said: str = "",
        uncertain: bool = False,
        passing: bool = False,
        wait: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.said = said
        self.uncertain = uncertain
        self.passing = passing
        self.wait = wait


def nearest(name: str, names: Iterable[str]) -> str:
    """What may have been meant by a name that is none of these, as the end of a sentence."""
    from difflib import get_close_matches  # here, for nobody who only imports resmon needs it

    names = sorted(names)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; the nearest is {near[0]}" if near else f"; there are {', '.join(names)}"


def remedy(error: Exception) -> str:
    """What is to be done about files that cannot be written."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "Free space" if full else "See that its folder is there and can be written"
