"""The post-mortem of a run, made when somebody wants it: by the command, in a process of its own that may take its memory along.

One at a time; the newest few are kept until their run changes.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from resmon.interpreter import printed
from resmon.page.listing import Entry, Listing

PATIENCE = 120.0  # seconds that one may take
KEPT = 4  # pages, on disk


class Postmortems:
    """Makes them into a folder of its own."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._made: OrderedDict[str, tuple[float, Path]] = OrderedDict()
        self._lock = Lock()

    def page(self, id_: str) -> bytes | str:
        """The page, or why there is none."""
        entry = self._listing.find(id_)
        if entry is None:
            return "there is no such run any more"
        with self._lock:
            known = self._made.get(entry.id)
            try:
                if known is None or known[0] != entry.changed:
                    self._made[entry.id] = entry.changed, self._make(entry)
                self._made.move_to_end(entry.id)
                while len(self._made) > KEPT:
                    self._made.popitem(last=False)[1][1].unlink(missing_ok=True)
                return self._made[entry.id][1].read_bytes()
            except subprocess.CalledProcessError as error:
                self._made.pop(entry.id, None)
                return f"no post-mortem could be made:\n{error.stdout}"
            except (OSError, subprocess.TimeoutExpired) as error:
                self._made.pop(entry.id, None)
                return f"no post-mortem could be made: {error}. By hand: resmon postmortem {entry.attempt}"

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def _make(self, entry: Entry) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="resmon-postmortems-")
        path = Path(self._folder.name) / f"{entry.id}.html"
        printed("postmortem", str(entry.attempt), "-o", str(path), "--force", columns=200, seconds=PATIENCE).check_returncode()
        return path
