"""`resmon agent`: from taking the seat to giving it back."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import resmon
from resmon.access.listener import Listener, bind
from resmon.agent import heap, runtime
from resmon.agent.runtime import Seat
from resmon.errors import AgentError, ConfigurationError

if TYPE_CHECKING:
    from resmon.access.web_config import WebConfig

log = logging.getLogger("resmon.agent")

# An agent that is leaving needs a second or two until its seat is free.
PATIENCE = 5.0


def main(
    listen: str,
    linger: float,
    max_series: int,
    grace: float = 0.0,
    web_config: Path | None = None,
    served_names: Collection[str] = (),
    directories: Sequence[Path] = (),
    otlp: str | None = None,
    otlp_interval: float = 15.0,
) -> None:
    """Serve until nothing is left to follow, or a signal. Returns at once where another agent serves already.

    `linger` is how many seconds the series of a run stay after its end if nobody scrapes them, and the agent after its start if
    nobody comes. A run exports at most `max_series` series (exporters/budget.py). After SIGTERM it stays for `grace` seconds at
    most, until runs have ended and their last values were scraped. `web_config` says who may read, and how it is encrypted
    (access/web_config.py); `served_names` are names that requests may be for besides the agent's own (access/door.py);
    `directories` are folders of runs for the page to list. To `otlp`, the address of an OTLP receiver, it pushes every
    `otlp_interval` seconds (push.py). Raises AgentError where the runtime folder or the address cannot be used, ConfigurationError
    where the web configuration cannot or what pushing needs is not installed.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    heap.keep_small()
    folder = runtime.folder()
    for directory in directories:  # before the question who serves: one that runs already lists them too
        runtime.remember(folder, Path(os.path.realpath(directory)))
    seat = Seat.take(folder, PATIENCE)
    if seat is None:
        now = runtime.serving(folder)
        if now is None:
            raise AgentError(f"{folder / runtime.LOCK} cannot be locked, though nobody holds it. {runtime.CHANGE_IT}")
        where = f"{now.url}/metrics (process {now.pid})" if now.url else "an address that it has not told yet"
        print(f"resmon agent: another one serves already, at {where}", flush=True)
        return
    try:
        # Imported only now, so that an agent that is not needed costs little.
        from resmon.access.door import Names
        from resmon.access.web_config import WebConfig, load
        from resmon.agent.server import Server

        web = WebConfig() if web_config is None else load(web_config)
        if otlp is not None and not runtime.can_push():
            raise ConfigurationError(f"nothing can be pushed to the OTLP receiver {otlp}: {runtime.NO_OTEL}.")
        listener = _bound(listen)
        names = Names.of(served_names, listen, listener.is_loopback)
        server = Server(folder, seat, linger, max_series, grace, web, names, otlp, otlp_interval)
        url = f"{'http' if web.tls is None else 'https'}://{listener.authority}"
        seat.announce(url, resmon.__version__, web_config, otlp or "")
        print(f"resmon agent: serving {url} for browsers, {url}/metrics for Prometheus", flush=True)
        log.info("process serves %s/metrics, at most %d series of a run; runtime folder %s", url, max_series, folder)
        if otlp is not None:
            log.info("metrics are pushed to the OTLP receiver %s every %g s, events as they come", otlp, otlp_interval)
        for said in (*web.notes, *_openness(listener, web)):
            log.warning("%s", said)
        server.run(listener)
    finally:
        seat.leave()
        log.info("the agent has left")


def _bound(listen: str) -> Listener:
    listener, is_free_one = bind(listen)
    if is_free_one:
        taken = f"{listen} is taken by another program; metrics are on port {listener.address[1]} instead"
        log.warning("%s. Prometheus finds it by file_sd in the runtime folder's %s", taken, runtime.TARGETS)
        print(f"resmon agent: {taken}", flush=True)
    return listener


def _openness(listener: Listener, web: WebConfig) -> list[str]:
    """What whoever started the agent should know of who can read what it serves."""
    if listener.is_loopback:
        return []
    host, port = listener.address
    here = f"the agent listens on {host}, port {port}, beyond this machine"
    if not web.users and (web.tls is None or web.tls.client_ca is None):
        advice = "Name users in a web configuration, --web-config FILE, or let something before it ask (docs/security.md)."
        return [
            f"{here}, and asks for no password: whoever reaches it can read names of runs, hosts and blocks, and figures. {advice}"
        ]
    if web.tls is None:
        advice = (
            f"Name a certificate in {web.path}, under tls_server_config, unless something before it encrypts (docs/security.md)."
        )
        return [f"{here}, and its passwords are sent in clear. {advice}"]
    return []
