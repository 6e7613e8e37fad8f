"""Takes the pictures of the page that stand in README.md and docs/page.md: `make picture`.

The demonstration is trained for a minute under an agent of its own, and once more with a learning rate that is too high; then a
browser looks at both. Nothing is arranged: the pictures are what anybody sees after `resmon demo`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resmon.page.address import address
from resmon.terminal.demo import TOO_HIGH, TOO_HIGH_STEPS
from tests.agent.serving import agent
from tests.browser import Page

ROOT = Path(__file__).parent.parent.parent
DRAWN = "document.querySelectorAll('.plot .main-svg').length > 6 && !document.querySelector('.waiting')"


def train(home: Path, listen: str, run: str, *arguments: str) -> Path:
    """A run of the example; its folder."""
    runs = home / "runs"
    environment = os.environ | {"RESMON_DIRECTORY": str(runs), "RESMON_LISTEN": listen, "RESMON_AGENT": "auto"}
    # A copy, so that the page shows no path of whoever takes the picture.
    script = Path(shutil.copy(ROOT / "examples" / "digits.py", home / "train.py"))
    command = [sys.executable, str(script), "--run", run, *arguments]
    subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, check=True)
    return runs / run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--into", type=Path, default=ROOT / "docs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resmon-picture-", ignore_cleanup_errors=True) as temporary:
        home = Path(temporary)
        os.environ["RESMON_RUNTIME_DIR"] = str(home / "runtime")
        with agent(home) as serving:
            listen = f"127.0.0.1:{serving.port}"
            well = train(home, listen, "digits", "--seconds", str(chosen.seconds))
            broken = train(home, listen, "digits-too-fast", "--learning-rate", str(TOO_HIGH), "--steps", str(TOO_HIGH_STEPS))
            time.sleep(3)  # until the agent has told what there is to tell
            with Page("about:blank", home, 1280, 1100) as page:
                page.open(address(serving.url, well))
                page.until(DRAWN)
                page.size(1280, int(page.run("document.querySelector('[data-key=depth]').getBoundingClientRect().bottom")) + 16)
                time.sleep(1)
                page.picture(chosen.into / "page.png")
                page.size(1280, 1100)
                page.media(dark=True)
                page.open(f"{address(serving.url, broken)}&quantity=gradient_norm")
                page.until(DRAWN)
                time.sleep(1)
                page.picture(chosen.into / "page-broken.png")
                page.size(390, 844, touch=True)
                page.open(address(serving.url, well))
                page.until(DRAWN)
                time.sleep(1)
                page.picture(chosen.into / "page-phone.png")
                assert not page.complaints, page.complaints


if __name__ == "__main__":
    main()
