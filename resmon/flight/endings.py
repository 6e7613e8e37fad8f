"""How a rank's attempt ended and what broke, concluded from what its process has left.

A process says itself how it ended wherever it can: with an end mark, and with an incident where an exception ended it. Where a
signal or an exit status ended it, the mark is all there is; where SIGKILL or `os._exit` did, there is none. Whoever reads next
concludes the rest, and all who read conclude the same. The agent writes down what it has concluded.

`CONCLUSIONS` are asked in order, and the first that knows answers. A process of which none knows was killed.
"""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from resmon.errors import FlightError, FlightVersionError
from resmon.flight import incidents, layout, stalls
from resmon.flight.reader import Follower, Item, read_stack, read_stopped
from resmon.records import Columns, Incident, Outcome, RunEnd, RunInfo, StepRecord, incident_id

REMOVED = "the run's folder was removed"
NO_END_MARK = (
    "the process is gone and left no end mark: it was killed by SIGKILL, which cannot be caught and which the kernel also sends "
    "when memory runs out, or it ended by os._exit, or crashed beyond saying so"
)
RESTARTED = "the process is gone and left no end mark; the machine was started anew since"

# What is known of a crash from its signal alone.
CRASHES = {
    "SIGSEGV": "it used memory that is not its own: a fault of native code, an extension's or a kernel's",
    "SIGBUS": "it used memory that is not there: a mapped file that shrank, or a full /dev/shm, through which data loaders work",
    "SIGFPE": "it divided an integer by zero in native code",
    "SIGILL": "it came to an instruction that this processor does not have",
    "SIGABRT": "it ended itself: an uncaught C++ exception or a failed assertion, with NCCL also its watchdog when a collective "
    "timed out; its own output says which",
}

_EXIT_STATUS = re.compile(r"exit status (\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a rank whose process is gone."""

    folder: Path
    info: RunInfo | None  # None where it cannot be read
    end: RunEnd | None  # its end mark
    newest: StepRecord | None  # its last step
    incidents: Sequence[Incident] = ()  # on file, in their newest state
    waiting: tuple[int, ...] = ()  # the ranks that live on, where somebody looks while they do
    now: float = field(default_factory=time.time)

    @property
    def step(self) -> int | None:
        """The newest that is known."""
        if self.newest is not None:
            return self.newest.step
        return self.end.step if self.end is not None else None

    @property
    def after(self) -> str:
        """When it ended, for the middle of a sentence."""
        return "before its first step" if self.step is None else f"after step {self.step}"


Ending = tuple[RunEnd, Incident | None]
Conclusion = Callable[[Remains], Ending | None]


def told(remains: Remains) -> Ending | None:
    """It left an end mark."""
    end = remains.end
    if end is None:
        return None
    status = _EXIT_STATUS.match(end.reason)
    if end.outcome in ("finished", "unknown"):
        return end, None
    if end.reason in CRASHES:
        said = f"The process crashed with {end.reason} {remains.after}: {CRASHES[end.reason]}."
        advice = "Run it again with `python -X faulthandler` (or PYTHONFAULTHANDLER=1): it prints the Python line that was running."
        return end, _incident(remains, end.outcome, said, advice, signal=end.reason)
    if end.outcome == "interrupted":
        said = f"{end.reason or 'A signal'} ended the run {remains.after}."
        advice = (
            "Somebody or something asked it to end: a scheduler that needs the machine, a launcher after another rank failed, a "
            "person. Nothing in the run is at fault; go on from the checkpoint."
        )
        return end, _incident(remains, end.outcome, said, advice, signal=end.reason)
    if status is not None:
        said = f"The process left with {end.reason} {remains.after}; no exception was seen to end it."
        advice = "Its own output says why: sys.exit() was called, after an exception that the script caught itself perhaps."
        return end, _incident(remains, end.outcome, said, advice, exit_status=int(status[1]))
    return end, _incident(remains, end.outcome, f"{end.reason or end.outcome}, {remains.after}.", "")


def conclude(remains: Remains, conclusions: Sequence[Conclusion] | None = None) -> Ending:
    """How it ended, and what broke where that is not on file yet, or the stall that it was in until then; `conclusions` are
    CONCLUSIONS unless given.
    """
    asked = CONCLUSIONS if conclusions is None else conclusions
    end, incident = next(filter(None, (conclusion(remains) for conclusion in asked)), None) or _killed(remains)
    if incident is None or any(_tells(each, end) for each in remains.incidents):
        stall = stalls.open_stall(remains.incidents)
        return end, None if stall is None or end.outcome in ("stalled", "unknown") else stalls.over(stall, end.outcome)
    incident = replace(incident, rank=layout.rank_number(remains.folder) or 0)
    return end, _with_checkpoint(incident, remains.folder.parent, _under_way(remains))


def of_attempt(attempt_folder: Path) -> list[Incident]:
    """Every incident of every rank in its newest state, in the order in which they happened; only the newest rows are read.

    Those that nobody has written down are among them: how a process ended that could not say so, and the stall that one is in.
    Raises FlightVersionError where a newer resmon wrote the flight; of a rank that cannot be read what is on file stands.
    """
    found: list[Incident] = []
    for folder in layout.ranks(attempt_folder).values():
        on_file = incidents.newest(incidents.read(folder, ended=False)[0])
        found += on_file
        try:
            follower = Follower(folder, newest=True)
        except FlightVersionError:
            raise
        except FlightError:
            continue
        alive = follower.alive()  # asked first: what a process wrote until it died is on file by then
        items = [item for item in _all(follower) if not isinstance(item, Columns)]
        newest = next((item for item in reversed(items) if isinstance(item, StepRecord)), None)
        if alive:
            quiet = time.time() - max((item.time for item in items), default=follower.info.started)
            late = quiet > stalls.patience(follower.info, newest) and follower.stopped is None
            if late and stalls.open_stall(on_file) is None:
                stall = stalls.stall(follower.info, newest, quiet, time.time(), read_stack(folder))
                stall = replace(stall, rank=layout.rank_number(folder) or 0)
                found.append(_with_checkpoint(stall, attempt_folder, incidents.first_in_doubt(stall)))
        else:
            concluded = conclude(Remains(folder, follower.info, follower.end, newest, on_file))[1]
            found += [] if concluded is None else [concluded]
        follower.close()
    return incidents.newest(found)


def _with_checkpoint(incident: Incident, attempt_folder: Path, first_in_doubt: int | None) -> Incident:
    found = None if incident.checkpoint else incidents.last_checkpoint(attempt_folder, first_in_doubt)
    return incident if found is None else replace(incident, checkpoint=found.path, checkpoint_step=found.step)


def _all(follower: Follower) -> Iterator[Item]:
    while items := follower.poll():
        yield from items


def _tells(incident: Incident, end: RunEnd) -> bool:
    return incident.kind == end.outcome and (incident.kind != "stalled" or "ended" in incident.evidence)


def _under_way(remains: Remains) -> int:
    """The step that was under way: what was noted before it is whole."""
    start = remains.info.start_step if remains.info else 0
    return start if remains.step is None else remains.step + 1


def _removed(remains: Remains) -> Ending | None:
    if remains.end is None and not remains.folder.is_dir():
        return RunEnd("unknown", _last_sign(remains), remains.step, REMOVED), None
    return None


def _stalled(remains: Remains) -> Ending | None:
    """No step came, and then something ended it from outside."""
    mark = remains.end
    if mark is not None and mark.outcome not in ("interrupted", "killed"):
        return None
    stall = stalls.open_stall(remains.incidents)
    recorded = read_stopped(remains.folder) is None  # until it ended
    if recorded and stall is None and mark is not None and mark.reason in signal.Signals.__members__ and remains.info is not None:
        quiet = mark.time - _last_sign(remains)
        if quiet > stalls.patience(remains.info, remains.newest):
            stall = stalls.stall(remains.info, remains.newest, quiet, mark.time, read_stack(remains.folder))
    if stall is None or stall.step != remains.step:
        return None
    how = f"{mark.reason} ended it" if mark is not None else "the process was killed"
    stall = stalls.ended(stall, how)
    return RunEnd("stalled", mark.time if mark else remains.now, remains.step, stall.summary), stall


def _elsewhere(remains: Remains) -> Ending | None:
    """Only another machine knows whether the process lives."""
    info = remains.info
    if info is None:
        return RunEnd("unknown", remains.now, remains.step, f"there is no end mark, and {layout.INFO} cannot be read"), None
    if info.host != socket.gethostname() and info.boot_id != layout.boot_id():
        said = f"there is no end mark, and only {info.host} knows of the process"
        return RunEnd("unknown", _last_sign(remains), remains.step, said), None
    return None


def _killed(remains: Remains) -> Ending:
    same_boot = remains.info is not None and remains.info.boot_id == layout.boot_id()
    end = RunEnd("killed", remains.now if same_boot else _last_sign(remains), remains.step, NO_END_MARK if same_boot else RESTARTED)
    if not same_boot:
        return end, _incident(remains, "killed", f"The machine went down {remains.after}.", "Go on from the checkpoint.")
    rank = layout.rank_number(remains.folder)
    lost = f"Rank {rank} was lost {remains.after}" if remains.waiting else f"The process was killed {remains.after}"
    waiting = f", while {stalls.ranks(remains.waiting)} lived on" if remains.waiting else ""
    advice = (
        "It could say nothing: `dmesg -T | grep -i -e oom -e killed` tells whether the kernel killed it for memory, the "
        "scheduler's log whether a limit did; os._exit in its own code looks the same."
    )
    more: dict[str, object] = {"waiting_ranks": list(remains.waiting)} if remains.waiting else {}
    return end, _incident(remains, "killed", f"{lost} without a word{waiting}.", advice, **more)


CONCLUSIONS: tuple[Conclusion, ...] = (_removed, _stalled, told, _elsewhere)


def _incident(remains: Remains, kind: Outcome, summary: str, advice: str, **evidence: object) -> Incident:
    when = remains.end.time if remains.end else remains.now
    name = kind.replace("_", "-")
    return Incident(
        incident_id(kind, remains.step), kind, when, remains.step, summary, advice=advice, runbook=name, evidence=evidence
    )


def _last_sign(remains: Remains) -> float:
    """When it was last known to go on."""
    if remains.newest is not None:
        return remains.newest.time
    return remains.info.started if remains.info is not None else remains.now
