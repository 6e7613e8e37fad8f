"""The web configuration as it stands in its file now: read again when it changes, it or a certificate that it names.

So a certificate that was renewed is shown to the next connection, and who was taken off the list is turned away at the next
request. A file that cannot be used changes nothing: what was right before it stays, and that is told. Whether connections are
encrypted is what the agent has told Prometheus and everybody else, and stays as it was at the start.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable

from resmon.access.tls import signature
from resmon.access.web_config import TLS, WebConfig, load
from resmon.errors import ConfigurationError

log = logging.getLogger("resmon.agent")

# Seconds until a file that could not be used is tried again: what it names may have come in the meantime.
AGAIN = 5.0


class Renewal:
    """To be used from one thread. `fault` is told what cannot be used: what it is about, and what is wrong."""

    def __init__(self, config: WebConfig, fault: Callable[[str, str], None]) -> None:
        self._config = config
        self._seen = dict(config.signatures)
        self._fault = fault
        self._said = ""
        self._again: float | None = None  # monotonic

    def newest(self) -> WebConfig:
        """The newest that can be used."""
        config = self._config
        if config.path is None:
            return config
        found = {file: signature(file) for file in self._seen}
        if found == self._seen and (self._again is None or time.monotonic() < self._again):
            return config
        self._seen = found
        try:
            newest = load(config.path)
            if (newest.tls is None) != (config.tls is None):
                was = "without" if config.tls is None else "with"
                raise ConfigurationError(
                    f"{config.path}: the agent was started {was} {TLS}, and that is how it goes on. Start it again for the other."
                )
        except ConfigurationError as error:
            self._again = time.monotonic() + AGAIN
            if str(error) != self._said:
                self._said = str(error)
                self._fault(str(error), f"the web configuration of before stays in use: {error}")
            return config
        self._config, self._seen = newest, dict(newest.signatures)
        self._again, self._said = None, ""
        log.info("the web configuration %s was read again", config.path)
        return newest

    def context(self) -> ssl.SSLContext:
        """The newest, for a connection that comes."""
        context = self.newest().context
        if context is None:
            raise RuntimeError("there is no certificate")  # nobody asks where there is none
        return context
