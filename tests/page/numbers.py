"""Takes the pictures of docs/numbers.md, part of `make picture`: one network twice, well and with two faults, side by side.

Both are the demonstration's network on the same batches. In the second, at step 700, what `stages.1.1` adds is made eight times as
large, and the last weights of `stages.2.1` are set to zero for good. What the agent's page then shows is what is taken.
"""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resmon.page.address import address, identity
from tests.agent.serving import agent
from tests.browser import Page
from tests.demonstration import BEGINNING
from tests.page.picture import DRAWN

ROOT = Path(__file__).parents[2]
STEPS, AT = 1_200, 700
LOUD, DEAD = "stages.1.1", "stages.2.1"

TRAINING = f"""
{BEGINNING}
import sys
from torch.nn.functional import cross_entropy

faults = sys.argv[1] == "sick"
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
monitor = resmon.watch(model, optimizer, run=sys.argv[1])
for step in range({STEPS}):
    if faults and step >= {AT}:
        with torch.no_grad():
            if step == {AT}:
                model.get_submodule("{LOUD}").conv2.weight.mul_(8)
            model.get_submodule("{DEAD}").conv2.weight.zero_()
    batch = torch.randint(len(images), (64,))
    loss = cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.log(loss=loss)
monitor.close()
"""


def train(home: Path, run: str, listen: str | None = None) -> Path:
    """A run's folder; under the agent at that address, or none."""
    environment = os.environ | {"RESMON_DIRECTORY": str(home / "runs"), "RESMON_AGENT": "auto" if listen else "off"}
    environment |= {"RESMON_LISTEN": listen} if listen else {}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    (home / "train.py").write_text(TRAINING, encoding="utf-8")
    subprocess.run([sys.executable, str(home / "train.py"), run], env=environment, check=True)
    return home / "runs" / run


def cut(page: Page, keys: str, file: Path) -> None:
    """A picture of the figures of these keys, which follow on each other."""
    box = page.run(
        f"""(() => {{
        const boxes = "{keys}".split(" ").map((key) => document.querySelector(`[data-key=${{key}}]`).getBoundingClientRect());
        const [left, top, right, bottom] = [["left", Math.min], ["top", Math.min], ["right", Math.max], ["bottom", Math.max]].map(
          ([side, take]) => take(...boxes.map((box) => box[side])));
        return {{x: left + scrollX - 8, y: top + scrollY - 8, width: right - left + 16, height: bottom - top + 16, scale: 1}};
        }})()"""
    )
    taken = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=box)
    file.write_bytes(base64.b64decode(taken["data"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "docs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resmon-numbers-", ignore_cleanup_errors=True) as temporary:
        home = Path(temporary)
        os.environ["RESMON_RUNTIME_DIR"] = str(home / "runtime")
        with agent(home) as serving:
            listen = f"127.0.0.1:{serving.port}"
            well, sick = (train(home, run, listen) for run in ("well", "sick"))
            time.sleep(3)  # until the agent has told what there is to tell
            with Page("about:blank", home, 1180, 1000) as page:
                beside = f"{address(serving.url, well)}&with={identity(sick)}&at={STEPS - 1}"
                for quantity in ("branch_skip_ratio", "gradient_norm"):
                    page.open(f"{beside}&quantity={quantity}")
                    page.until(DRAWN)
                    time.sleep(1)
                    cut(page, "heat heat-2", chosen.into / f"numbers-{quantity.split('_')[0]}.png")
                cut(page, "depth", chosen.into / "numbers-depth.png")
                cut(page, "loss", chosen.into / "numbers-loss.png")
                page.open(f"{address(serving.url, sick)}&at={STEPS - 1}&block=4")
                page.until(DRAWN)
                time.sleep(1)
                cut(page, "events", chosen.into / "numbers-events.png")
                cut(page, "block magnitudes", chosen.into / "numbers-block.png")
                assert not page.complaints, page.complaints


if __name__ == "__main__":
    main()
