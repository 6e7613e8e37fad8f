"""What the agent has counted, across its own restarts: a counter that jumps back looks like a new start of the world."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from resmon.flight import layout
from resmon.records import OUTCOMES, Outcome

# Attempts that are remembered as counted. One is asked about only while its registrations last, so the newest are enough.
REMEMBERED = 4096


@dataclass(slots=True)
class Tally:
    """Attempts that ended, by outcome, each counted once; and what is to be kept of flights that are followed no more.

    An attempt and its count reach the disk in one atomic write, so that a kill between the two is no matter. `exported` is what
    scrapers are shown of the counts; it is on disk before they are, so that no agent ever shows less than the one before it.
    """

    path: Path
    runs: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    exported: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    counted: dict[str, Outcome] = field(default_factory=dict)  # key of the attempt, oldest first
    skipped_rows: int = 0  # of flights that are gone
    errors: int = 0

    @classmethod
    def load(cls, path: Path) -> Tally:
        """The tally of the agents before; a file that is missing or damaged counts from 0."""
        tally = cls(path)
        try:
            content = json.loads(path.read_bytes())
            runs, counted = content["runs_total"], content["counted"]
            tally.runs |= {outcome: max(0, int(runs.get(outcome, 0))) for outcome in OUTCOMES}
            exported = content.get("exported", runs)  # an agent from before counts were held back showed all
            tally.exported |= {
                outcome: min(tally.runs[outcome], max(0, int(exported.get(outcome, tally.runs[outcome])))) for outcome in OUTCOMES
            }
            tally.counted = {str(key): outcome for key, outcome in counted.items() if outcome in OUTCOMES}
            tally.skipped_rows, tally.errors = max(0, int(content["skipped_rows"])), max(0, int(content["errors"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return cls(path)
        return tally

    def count(self, attempt: str, outcome: Outcome) -> None:
        """Count an attempt's outcome, unless it has been."""
        if attempt in self.counted:
            return
        self.counted[attempt] = outcome
        self.runs[outcome] += 1
        while len(self.counted) > REMEMBERED:
            del self.counted[next(iter(self.counted))]
        self.save()

    @property
    def holds_back(self) -> bool:
        """Whether there are counts that no scraper was shown."""
        return self.exported != self.runs

    def release(self) -> None:
        """Let scrapers have every count. Raises OSError where that cannot be noted; they are not shown then."""
        before, self.exported = self.exported, dict(self.runs)
        try:
            self.save()
        except OSError:
            self.exported = before
            raise

    def save(self) -> None:
        layout.write_json(
            self.path,
            {
                "runs_total": self.runs,
                "exported": self.exported,
                "counted": self.counted,
                "skipped_rows": self.skipped_rows,
                "errors": self.errors,
            },
        )
