"""The agent's container as deploy/kubernetes/job.yaml has it: its command and environment, its user without any capability, a root
file system that nobody can write to, volumes as a kubelet makes them, and the training in a process namespace of its own.

The namespaces are those that an engine would make. Paths of the volumes lie in a folder of the test's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.conftest import House, get, scrape
from tests.deploy.test_kubernetes import POD, SIDECAR, environment
from tests.programs import program
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent.parent
USER = POD["securityContext"]["runAsUser"]

# Each mount is this namespace's alone, and gone with it. What another file system is mounted over the root is read-only as well.
POD_SCRIPT = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=2777,gid={user} volume {volume}
mkdir -m 2777 {volume}/runs {volume}/runtime
for place in / /tmp /var/tmp /dev/shm; do
  if mountpoint --quiet $place; then mount -o remount,bind,ro $place; fi
done
{container} {agent} &
until {container} {ready} 2>/dev/null; do sleep 0.2; done
unshare --pid --fork --kill-child {container} {training}
wait
"""


def confined(user: int, runtime: str) -> str:
    """What is put before Python's arguments: a user without any capability or way to one, and an environment of its own."""
    rights = f"--reuid={user} --regid={user} --groups={user} --no-new-privs --inh-caps=-all --bounding-set=-all"
    own = f"PYTHONPATH={shlex.quote(str(ROOT))} RESMON_RUNTIME_DIR={runtime}"
    return f"{program('setpriv')} {rights} env -i {own} {shlex.quote(sys.executable)}"


def run(container: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*shlex.split(container), *arguments], cwd="/", capture_output=True, text=True, check=False)


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder that another user may come to."""
    with tempfile.TemporaryDirectory(prefix="resmon-pod-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_it_runs_with_nothing_but_its_volumes(house: House, volume: Path, port: int) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a file system read-only for a process")
    paths = {"/runs": volume / "runs", "/run/resmon": volume / "runtime"}
    mounted = {each["mountPath"] for each in SIDECAR["volumeMounts"]}
    assert mounted == set(paths)
    given = environment(SIDECAR)["RESMON_RUNTIME_DIR"].replace("/run/resmon", str(paths["/run/resmon"]))
    words = [word.replace("0.0.0.0:9699", f"127.0.0.1:{port}") for word in SIDECAR["args"]]
    user = USER if run(confined(USER, given), "-c", "import resmon").returncode == 0 else 0
    print(f"the user is {user}" + ("" if user else ", as no other can read this Python or this checkout"))
    container = confined(user, given)
    answers = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/-/ready')"
    script = POD_SCRIPT.format(
        user=user,
        volume=volume,
        container=container,
        agent=f"-m resmon {shlex.join(words)}",
        ready=f"-c {shlex.quote(answers)}",
        training=f"-m tests.agent.trainer {paths['/runs']} digits 0 1 3 0.05 20 finished",
    )
    pod = house.start(program("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: pod.poll() is not None or get(url + "/-/ready")[0] == 200)
    assert pod.poll() is None, house.output(pod)
    now = wait_for(lambda: (page := scrape(url)).one("resmon_run_outcome", outcome="finished") and page)
    assert now.one("resmon_steps_total", run="digits") == 21 and now.one("resmon_agent_errors_total") == 0
    wanted = f"-m\0resmon\0{chr(0).join(words)}\0"
    (agent,) = [each for each in Path("/proc").glob("[0-9]*") if (each / "cmdline").read_text().endswith(wanted)]
    status = (agent / "status").read_text()
    assert f"Uid:\t{user}\t" in status
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    assert "Traceback" not in house.output(pod)
