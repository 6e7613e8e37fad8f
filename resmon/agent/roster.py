"""All attempts that the agent follows: who comes, who has ended, who may go.

An attempt comes with the registration of its first rank. When its last rank has ended it is counted, once and for all agents that
come after; its series stay until Prometheus has had the last values, and then it goes, with its registrations. Then its series
are missing from the exposition, which is how Prometheus knows that they are over.

A count is shown to scrapers once they have had the former one from this agent: Prometheus sees no increase in a series that begins
with it, and an agent that a training process starts is often scraped for the first time when that run is over. What is held back
when an agent leaves the next one shows, in the same way. Whoever scrapes for the first time after others have twice, and 15 seconds
after them, gets the counts as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from resmon.agent import runtime
from resmon.agent.attempt import Attempt, Rank, key_of
from resmon.agent.reaction import Reaction
from resmon.agent.runtime import Registration
from resmon.agent.tally import Tally
from resmon.detectors.own import load_all
from resmon.errors import FlightError
from resmon.exporters.budget import MAX_SERIES
from resmon.exporters.names import writable
from resmon.exporters.view import AgentView, Event, GpuView
from resmon.flight import layout
from resmon.flight.reader import Follower
from resmon.records import Finding, Incident, RunEnd, RunInfo, SpanRecord

log = logging.getLogger("resmon.agent")

# A run that ended has been seen when it was scraped twice (two servers may share an agent) and a usual interval has passed.
SCRAPES = 2
SETTLED = 15.0

# How long one turn may read before scrapes get their turn, in seconds.
TURN = 0.5


@dataclass(slots=True)
class _Followed:
    attempt: Attempt
    registrations: dict[Path, Registration]
    ended: float | None = None  # monotonic
    scrapes_at_end: int = 0


def nobody(event: Event) -> None:
    """Who is told of events where nobody wants to be."""


class Roster:
    """Not safe to use from two threads at once; the service holds one lock over it."""

    def __init__(
        self, folder: Path, version: str, linger: float, max_series: int = MAX_SERIES, told: Callable[[Event], None] = nobody
    ) -> None:
        self._folder = folder
        self._version = version
        self._linger = linger
        self._max_series = max_series
        self._told = told
        self._boot_id = layout.boot_id()
        self._tally = Tally.load(folder / runtime.STATE)
        self._followed: dict[Path, _Followed] = {}  # by the attempt's folder
        self._registrations: set[Path] = set()
        self._labels: dict[str, Path] = {}  # value of the label run -> the run's folder
        self._said: set[str] = set()
        self._last_error: float | None = None  # Unix seconds
        self._scrapes = 0
        self._first_scrape: float | None = None  # monotonic, as the others
        self._newest_scrape: float | None = None
        self._scrapes_at_release: int | None = None
        self._started = time.monotonic()
        self._idle_since: float | None = None
        self._scrapes_at_idle = 0
        self.ready = False  # everything that was there at the start has been read
        self.turn = 0  # how often it was looked for what is new
        runtime.put_away_bookmarks(folder)

    def poll(self) -> bool:
        """Take in what is new; False where more waits to be read."""
        self.turn += 1
        self._welcome()
        deadline = time.monotonic() + TURN
        done = True
        for followed in list(self._followed.values()):
            done &= followed.attempt.poll(deadline)
            if followed.ended is None and followed.attempt.outcome is not None:
                self._count(followed, followed.attempt)
        for folder, followed in list(self._followed.items()):
            if followed.ended is not None and self._may_go(followed, followed.ended):
                self._dismiss(folder, followed)
        if self._tally.holds_back and self._scrapers_are_known() and self._keep(self._tally.release):
            self._scrapes_at_release = self._scrapes
        if self._followed:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._scrapes_at_idle = time.monotonic(), self._scrapes
        self.ready |= done
        return done

    def is_over(self, asked: bool = False) -> bool:
        """Whether nothing is left to follow, and that has been seen. One that was asked to leave waits for nobody who may come."""
        if self._idle_since is None:
            return False
        now = time.monotonic()
        seen = self._scrapes > self._scrapes_at_idle or now - self._idle_since >= SETTLED
        owed = self._tally.holds_back or self._scrapes_at_release == self._scrapes  # counts that somebody waits for
        if owed and self._newest_scrape is not None and now - self._newest_scrape < self._linger:
            return False
        return seen and (asked or now - self._started >= self._linger)

    def leave(self) -> None:
        """Note where this agent is in each flight, for the one that comes next."""
        for followed in self._followed.values():
            followed.attempt.save()

    def register_again(self, *, with_the_past: bool = True) -> None:
        """The runtime folder was removed and made anew: have in it what an agent that comes next needs. Raises OSError.

        Where another agent has it by now (`with_the_past` is false), it is handed what goes on, and counts for itself.
        """
        for folder, followed in self._followed.items():
            if not with_the_past and followed.ended is not None:
                continue
            followed.attempt.save(anew=True)  # first: whoever finds the registration looks for the bookmark
            for file, said in followed.registrations.items():
                said.write(file)
            self._remember(folder.parent.parent)
        if with_the_past:
            self._tally.save()

    def has_newcomers(self) -> bool:
        """Whether somebody has registered since the last poll."""
        return any(file not in self._registrations for file in runtime.registrations(self._folder))

    def scraped(self) -> None:
        """Note that a scrape has had everything."""
        now = time.monotonic()
        if self._first_scrape is None:
            self._first_scrape = now
        self._newest_scrape = now
        self._scrapes += 1
        for followed in self._followed.values():
            followed.attempt.scraped(SCRAPES)

    def fault(self, about: str, message: str) -> None:
        """Count what went wrong, and say it unless it has been said of the same thing."""
        self._tally.errors += 1
        self._last_error = time.time()
        if about not in self._said:
            self._said.add(about)
            log.warning("%s", message)

    def view(
        self,
        collect_seconds: float,
        gpus: tuple[GpuView, ...] = (),
        otlp_dropped: Mapping[str, int] | None = None,
        held_seconds: float = 0.0,
    ) -> AgentView:
        """This moment."""
        attempts = [followed.attempt for followed in self._followed.values()]
        return AgentView(
            version=self._version,
            runs=tuple(attempt.view(label) for label, attempt in self._labelled(attempts)),
            runs_total=dict(self._tally.runs),
            runs_exported=dict(self._tally.exported),
            runs_active=sum(attempt.outcome is None for attempt in attempts),
            skipped_rows=self._tally.skipped_rows + sum(attempt.skipped for attempt in attempts),
            errors=self._tally.errors,
            collect_seconds=collect_seconds,
            gpus=gpus,
            last_error=self._last_error,
            otlp_dropped=otlp_dropped or {},
            held_seconds=held_seconds,
        )

    def _welcome(self) -> None:
        for file, rank_folder in runtime.registrations(self._folder).items():
            if file in self._registrations:
                continue
            self._registrations.add(file)
            try:
                if rank_folder is None:
                    raise FlightError(f"the registration {file} cannot be read")
                follower = Follower(rank_folder)
                if not self._boot_id or follower.info.boot_id != self._boot_id:
                    raise FlightError(
                        f"{rank_folder} was recorded under boot id {follower.info.boot_id or 'unknown'}, this is "
                        f"{self._boot_id or 'unknown'}: another machine, or this one before it was started again"
                    )
            except (FlightError, OSError) as error:
                self.fault(str(file), f"not followed: {error}")
                self._keep(self._tally.save)
                self._forget(file)
                continue
            folder = rank_folder.parent
            followed = self._followed.get(folder)
            if followed is not None and followed.attempt.key != key_of(folder, follower.info):  # it was deleted and made again
                if followed.ended is None:
                    self._count(followed, followed.attempt)
                self._dismiss(folder, followed)
                followed = None
            if followed is None:
                followed = self._followed[folder] = _Followed(self._attempt(folder), {})
                log.info("following run %r, attempt %d, in %s", follower.info.run, follower.info.attempt, folder)
            said = runtime.registration(file)
            own, wrong = load_all(*said.own_detectors)
            for each in wrong:
                self.fault(f"{folder} {each}", f"{folder} is watched without a detector of yours: {each}")
            followed.attempt.add(Rank(follower, Reaction.of_json(said.on_incident), own, runtime.bookmark(file)))
            followed.registrations[file] = said
            self._remember(folder.parent.parent)
            followed.ended = None  # a rank that came late

    def _attempt(self, folder: Path) -> Attempt:
        def tell(info: RunInfo, what: Finding | Incident | RunEnd, span: SpanRecord | None) -> None:
            label = next((label for label, path in self._labels.items() if path == folder.parent), writable(info.run))
            self._told(Event(label, info, what, time.time(), span))

        return Attempt(folder, self.fault, self._max_series, tell)

    def _remember(self, directory: Path) -> None:
        try:
            runtime.remember(self._folder, directory)
        except (OSError, UnicodeError) as error:  # the page will not list it later; all else goes on
            self.fault(f"remember {directory}", f"{directory} cannot be noted as a folder of runs: {error}")

    def _count(self, followed: _Followed, attempt: Attempt) -> None:
        followed.ended, followed.scrapes_at_end = time.monotonic(), self._scrapes
        if (outcome := attempt.outcome) is not None:
            self._keep(lambda: self._tally.count(attempt.key, outcome))

    def _keep(self, write: Callable[[], None]) -> bool:
        """Have the counts written; whether they could be."""
        try:
            write()
        except OSError as error:
            self.fault("tally", f"the counts cannot be kept for the agent that comes next: {error}")
            return False
        return True

    def _scrapers_are_known(self) -> bool:
        """Whether all who scrape have had the counts as they were when this agent came, as far as one can tell."""
        if self._first_scrape is None or self._scrapes < SCRAPES:
            return False
        return time.monotonic() - self._first_scrape >= min(SETTLED, self._linger)

    def _may_go(self, followed: _Followed, ended: float) -> bool:
        since = time.monotonic() - ended
        return since >= self._linger or (since >= SETTLED and self._scrapes - followed.scrapes_at_end >= SCRAPES)

    def _dismiss(self, folder: Path, followed: _Followed) -> None:
        del self._followed[folder]
        followed.attempt.close()
        self._tally.skipped_rows += followed.attempt.skipped
        self._keep(self._tally.save)
        for file in followed.registrations:
            self._forget(file)
        run_folder = folder.parent
        if not any(other.parent == run_folder for other in self._followed):
            self._labels = {label: path for label, path in self._labels.items() if path != run_folder}

    def _forget(self, file: Path) -> None:
        try:
            file.unlink(missing_ok=True)
            runtime.bookmark(file).unlink(missing_ok=True)
        except OSError as error:
            self.fault(f"forget {file}", f"{file} cannot be removed: {error.strerror}")
            return  # it stays known, so that it is not taken for a newcomer
        self._registrations.discard(file)

    def _labelled(self, attempts: list[Attempt]) -> Iterator[tuple[str, Attempt]]:
        """The attempts to export, each under its own value of the label `run`.

        Of one run, the newest attempt only: the older one's series would be the same. An attempt whose flight is still being caught
        up with is not shown: its counters would first go back and then jump. Two runs of one name in different folders are two: the
        one that came later is called `name#2`, as long as it is followed.
        """
        newest: dict[Path, Attempt] = {}
        for attempt in attempts:
            other = newest.get(attempt.folder.parent)
            if other is None or attempt.info.attempt > other.info.attempt:
                newest[attempt.folder.parent] = attempt
        for run_folder, attempt in sorted(newest.items(), key=lambda item: item[1].info.started):
            label = next((label for label, path in self._labels.items() if path == run_folder), None)
            if label is None:
                label = name = writable(attempt.info.run)
                again = 2
                while label in self._labels:
                    label = f"{name}#{again}"
                    again += 1
                self._labels[label] = run_folder
            if attempt.caught_up:
                yield label, attempt
