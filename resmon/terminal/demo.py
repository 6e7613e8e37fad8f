"""`resmon demo`: the example examples/digits.py, once with a learning rate that suits it and once with one that does not.

The example runs as anybody's script runs, in a process of its own, and is watched as `resmon tail` watches any run: through its
flight. What is seen here is what a user gets, with nothing arranged.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from resmon.agent import find_or_start, runtime
from resmon.errors import AgentError, ConfigurationError, ResmonError
from resmon.flight.layout import attempts, safe_name
from resmon.page.address import address
from resmon.settings import Settings
from resmon.terminal.tail import Tail, show
from resmon.terminal.view import View

HEALTHY = "digits"
# Found by experiment: with seeds 0 to 9 the loss is no number any more after 50 to 112 steps.
TOO_HIGH = 100.0
TOO_HIGH_STEPS = 200
DOOMED = "digits-too-fast"
SCRIPT_START = 120.0  # seconds to the script's first line of resmon; importing torch from a cold disk is slow
AGENT_START = 20.0


def run_demo(console: Console, directory: Path, seconds: float) -> None:
    """Run both, show both, say what to do next. Raises ResmonError where the example cannot run."""
    script = _example()
    environment = os.environ | {"RESMON_DIRECTORY": str(directory.absolute())}
    agent = None
    if environment.get("CI") and "RESMON_AGENT" not in environment:
        # There resmon would only record; a demonstration without metrics would show half of it.
        agent = environment["RESMON_AGENT"] = "auto"
    url = _served(Settings.of(agent=agent))

    title = "A residual network learns handwritten digits"
    _say(console, title, f"{script} with one line of resmon in it, for {seconds:.0f} seconds.")
    console.print(f"Metrics while it runs: {f'{url}/metrics' if url else 'none, the agent is off'}", highlight=False)
    if url:
        console.print(f"In a browser: {address(url, directory / HEALTHY)}", highlight=False, soft_wrap=True)
    arguments = ["--run", HEALTHY, "--seconds", str(seconds)]
    _train(console, script, arguments, environment, directory, HEALTHY, goal=seconds)

    _say(console, f"The same with a learning rate of {TOO_HIGH:g}", "It will not end well. Which block goes first?")
    arguments = ["--run", DOOMED, "--learning-rate", str(TOO_HIGH), "--steps", str(TOO_HIGH_STEPS)]
    view = _train(console, script, arguments, environment, directory, DOOMED)
    _name_the_first(console, view)
    _say_what_next(console, directory, url)


def _example() -> Path:
    for package in ("torch", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigurationError(f"the demonstration needs {package}, which is not installed: pip install 'resmon[demo]'")
    package_folder = Path(__file__).parents[1]
    # In a wheel the examples lie in the package, in a checkout beside it.
    for folder in (package_folder / "examples", package_folder.parent / "examples"):
        if (folder / "digits.py").is_file():
            return folder / "digits.py"
    raise ConfigurationError(f"digits.py is not in {package_folder}: this installation of resmon is not whole; install it again.")


def _served(settings: Settings) -> str | None:
    """The agent's address. It is started now, so that the address can be told before the training begins."""
    if settings.agent == "off":
        return None
    if settings.agent == "auto":
        find_or_start(settings)
    limit = time.monotonic() + AGENT_START
    while time.monotonic() < limit:
        serving = runtime.serving(runtime.folder())
        if serving is not None and serving.url and not serving.leaving:
            return serving.url
        time.sleep(0.05)
    raise AgentError(f"the agent was started and does not answer; {runtime.folder() / runtime.LOG} may tell why.")


def _train(
    console: Console,
    script: Path,
    arguments: Sequence[str],
    environment: dict[str, str],
    directory: Path,
    run: str,
    goal: float | None = None,
) -> View:
    folder = directory / safe_name(run)
    before = max(attempts(folder), default=0)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen([sys.executable, str(script), *arguments], env=environment, stdout=output, stderr=output)
        try:
            limit = time.monotonic() + SCRIPT_START
            while max(attempts(folder), default=0) == before and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.05)
            newest, path = max(attempts(folder).items(), default=(0, folder))
            if newest == before:
                process.kill()
                process.wait()
                output.seek(0)
                raise ResmonError(f"{script} did not come to its first step. It printed:\n{output.read().strip()}")
            view = show(console, Tail(path, goal))
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        output.seek(0)
        last = output.read().strip().splitlines()[-1:]
    console.print(Text("".join(last), style="dim"))
    return view


def _name_the_first(console: Console, view: View) -> None:
    # The loss leaves its level too, perhaps earlier, and other signs come before; the question is which block broke.
    findings = sorted(
        view.findings.values(),
        key=lambda finding: (not finding.block, finding.kind != "nonfinite", finding.opened_step, finding.opened_time),
    )
    if not findings:
        console.print("This time it did not blow up; run it once more.", style="yellow")
        return
    first = findings[0]
    _say(console, f"The block that went first: {first.block or 'none, the whole run at once'}", first.summary)
    for name, text in (("expected", first.expected), ("seen", first.seen)):
        if text:
            console.print(Text.assemble((f"  {name:9} ", "dim"), text))


def _say_what_next(console: Console, directory: Path, url: str | None) -> None:
    """Commands to paste as they stand, also where this installation is not on the PATH (`make demo`)."""
    resmon, python = _command("resmon", "-m", "resmon"), _command("python")
    given = directory != Path("runs")
    commands = [
        ("the runs, and how they ended", [*resmon, "ls", *([str(directory)] if given else [])]),
        ("the last view again; of a live run it moves", [*resmon, "tail", DOOMED, *(["-d", str(directory)] if given else [])]),
        ("every step as a pandas frame", [*python, "-c", _SNIPPET.format(json.dumps(str(directory / HEALTHY)))]),
    ]
    lines = [(meaning, shlex.join(command)) for meaning, command in commands]
    if url:
        meaning = "what Prometheus scrapes, until the agent leaves, a minute and a half after the last run"
        lines.insert(2, (meaning, f"curl -s {url}/metrics | grep branch_skip_ratio"))
    _say(console, "What to do next", "")
    for meaning, line in lines:
        console.print(Text(f"  # {meaning}", style="dim"))
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print("\n  In your own script: monitor = resmon.watch(model, optimizer, run='mine')", highlight=False, soft_wrap=True)


_SNIPPET = "import resmon; print(resmon.load({}).blocks().tail(9).to_string())"


def _command(name: str, *module: str) -> list[str]:
    """How a shell here runs this installation's `name`: by that where the PATH leads to it, else by its path."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    # By folder: an environment's python is a link to the one that it was made with, which knows nothing of resmon.
    if found is not None and beside.exists() and Path(found).parent.samefile(beside.parent):
        return [name]
    if beside.exists():
        return [os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)]
    return [sys.executable, *module]


def _say(console: Console, title: str, text: str) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    if text:
        console.print(text, highlight=False)
