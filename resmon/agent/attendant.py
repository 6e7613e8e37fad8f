"""Runs a command and sees that it ends: `python attendant.py SECONDS WHAT COMMAND...`, in a process of its own.

It stands between on_incident's command and whoever noticed the incident, which has no time to wait. It needs the standard library
only, so that it starts at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

MERCY = 5.0  # seconds between asking the command to end and ending it


def main(seconds: str, what: str, *command: str) -> None:
    """Standard input, output and error are the command's."""
    _say(what, shlex.join(command))
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        _say(what, f"could not be started: {error}")
        return
    try:
        _say(what, f"exit status {process.wait(float(seconds))}")
    except subprocess.TimeoutExpired:
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)  # with whatever it has started
            try:
                process.wait(MERCY)
                break
            except subprocess.TimeoutExpired:
                continue
        _say(what, f"ended after {float(seconds):g} s, see on_incident_timeout")


def _say(what: str, text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), f"{what}: {text}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
