"""deploy/kubernetes: the objects are what Kubernetes and Prometheus' operator take, and what they promise is so."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloudcoil.models.kubernetes.batch.v1 import Job
from cloudcoil.models.kubernetes.core.v1 import PersistentVolumeClaim
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from pydantic import BaseModel, ValidationError

from resmon.assets import kubernetes
from resmon.catalogue import CATALOGUE
from resmon.rules import durations
from tests.agent.conftest import House, get
from tests.programs import program
from tests.prometheus import Page, Server, scraped, serving
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
MODELS: dict[tuple[str, str], type[BaseModel]] = {
    ("v1", "PersistentVolumeClaim"): PersistentVolumeClaim,
    ("batch/v1", "Job"): Job,
    (kubernetes.API, "PodMonitor"): PodMonitor,
    (kubernetes.API, "PrometheusRule"): PrometheusRule,
}

Object = dict[str, Any]


def objects() -> list[Object]:
    return [each for file in sorted(FOLDER.glob("*.yaml")) for each in yaml.safe_load_all(file.read_text())]


def named(kind: str, name: str) -> Object:
    (found,) = [each for each in objects() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


JOB = named("Job", "training")
POD = JOB["spec"]["template"]["spec"]
(SIDECAR,), (TRAINING,) = POD["initContainers"], POD["containers"]


def option(name: str) -> str:
    """Of the sidecar's command."""
    return str(SIDECAR["args"][SIDECAR["args"].index(name) + 1])


def environment(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value") or each["valueFrom"] for each in container["env"]}


# ---- the objects themselves ------------------------------------------------------------------------------------------------


def is_taken(given: Object) -> bool:
    """Whether its model has all that is in it. The models pass by what they do not know, so it must come back."""
    try:
        model = MODELS[given["apiVersion"], given["kind"]].model_validate(given)
    except ValidationError:
        return False
    return bool(json.loads(model.model_dump_json(by_alias=True, exclude_unset=True)) == given)


def test_every_object_is_one_that_its_server_takes() -> None:
    assert {each["kind"] for each in objects()} == {kind for _, kind in MODELS}
    for each in objects():
        assert is_taken(each), each["metadata"]["name"]


FREE = {"labels", "annotations", "matchLabels", "requests", "limits"}  # whose keys are the user's


def keys(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all keys that have a meaning."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(node, dict) and not (path and path[-1] in FREE):
            yield (*path, key)
        yield from keys(value, (*path, key))


@pytest.mark.parametrize("kind", ["Job", "PodMonitor", "PersistentVolumeClaim"])
def test_a_misspelt_field_is_found_wherever_it_is(kind: str) -> None:
    (given,) = [each for each in objects() if each["kind"] == kind]
    paths = [path for path in keys(given) if path not in (("apiVersion",), ("kind",))]
    assert len(paths) > 5
    for path in paths:
        wrong = copy.deepcopy(given)
        node = wrong
        for part in path[:-1]:
            node = node[part]  # type: ignore[index]
        node[f"{path[-1]}x"] = node.pop(path[-1])  # type: ignore[index]
        assert not is_taken(wrong), path


def test_a_misspelt_field_of_a_rule_is_found() -> None:
    given = named("PrometheusRule", "resmon")
    alert = next(rule for group in given["spec"]["groups"] for rule in group["rules"] if "keep_firing_for" in rule)
    alert["keepFiringFor"] = alert.pop("keep_firing_for")
    assert not is_taken(given)


@pytest.mark.parametrize("name", ["resmon", "resmon-slo"])
def test_the_rules_are_those_of_the_rule_files(name: str, tmp_path: Path) -> None:
    given = named("PrometheusRule", name)["spec"]
    file = ROOT / "alerts" / {"resmon": "resmon.yaml", "resmon-slo": "slo.yaml"}[name]
    assert given == yaml.safe_load(file.read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(given))
    command = [program("promtool"), "check", "rules", "--lint=all", "--lint-fatal", str(tmp_path / "rules.yaml")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


# ---- what is scraped -------------------------------------------------------------------------------------------------------


def scrape_config(monitor: Object, targets: Path) -> Object:
    """What the operator makes of a PodMonitor in the namespace ml: generatePodMonitorConfig in pkg/prometheus/promcfg.go, 0.80."""
    spec, (endpoint,) = monitor["spec"], monitor["spec"]["podMetricsEndpoints"]
    assert spec["selector"] == {}  # so that no label of a pod is asked for
    given = [
        {{"sourceLabels": "source_labels", "targetLabel": "target_label"}.get(key, key): value for key, value in relabeling.items()}
        for relabeling in endpoint["relabelings"]
    ]
    name = monitor["metadata"]["name"]
    return {
        "job_name": f"podMonitor/ml/{name}/0",
        "honor_labels": False,
        "scrape_interval": "1s",
        "metrics_path": endpoint["path"],
        "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
        "relabel_configs": [
            {"source_labels": ["job"], "target_label": "__tmp_prometheus_job_name"},
            {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)", "action": "drop"},
            {"action": "keep", "source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": endpoint["port"]},
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": ["__meta_kubernetes_pod_container_name"], "target_label": "container"},
            {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
            {"target_label": "job", "replacement": f"ml/{name}"},
            {"target_label": "endpoint", "replacement": endpoint["port"]},
            *given,
        ],
    }


def target(page: Page, pod: str, port: str, container: str = "resmon", phase: str = "Running") -> Object:
    """A container's port, as Prometheus finds it in Kubernetes; that of a sidecar is marked as an init container's."""
    meta = {"namespace": "ml", "pod_name": pod, "pod_container_name": container, "pod_phase": phase}
    meta |= {"pod_container_port_name": port, "pod_container_init": "true"}
    return {"targets": [page.address], "labels": {f"__meta_kubernetes_{name}": value for name, value in meta.items()}}


@pytest.mark.slow
def test_what_is_scraped_has_the_labels_that_rules_and_routes_have(tmp_path: Path) -> None:
    with scraped() as page:
        page.values['resmon_run_info{run="digits",attempt="1",model="Net",host="a"}'] = 1
        page.values['resmon_run_start_timestamp_seconds{run="digits"}'] = 1000
        targets = tmp_path / "targets.json"
        (port,) = SIDECAR["ports"]
        there = [target(page, "training-x7", port["name"], SIDECAR["name"])]
        others = [target(page, "other", "http", "main"), target(page, "over", port["name"], phase="Succeeded")]
        targets.write_text(json.dumps([*there, *others]))
        monitor = named("PodMonitor", "resmon")
        # An agent that is gone is missed after a minute.
        (tmp_path / "rules.yaml").write_text((ROOT / "alerts" / "resmon.yaml").read_text().replace("for: 1m", "for: 1s"))
        given = {
            "global": {"evaluation_interval": "1s"},
            "rule_files": [str(tmp_path / "rules.yaml")],
            "scrape_configs": [scrape_config(monitor, targets)],
        }
        with serving(tmp_path / "prometheus", json.dumps(given)) as prometheus:
            (labels,) = [labels for labels, _ in wait_for(lambda: prometheus.query("up"))]
            wanted = {"__name__": "up", "job": "resmon", "instance": "ml/training-x7"}
            assert labels == wanted | {"namespace": "ml", "pod": "training-x7", "container": "resmon", "endpoint": "resmon"}
            wait_for(lambda: prometheus.query("resmon_run_info"))
            targets.write_text("[]")  # the pod is gone with its run under way
            (alert,) = gone(prometheus)
            where = {"job": "resmon", "instance": "ml/training-x7"}
            assert alert["labels"] == {"alertname": "ResmonAgentGone", "severity": "page", "run": "digits", "model": "Net"} | where


def gone(prometheus: Server) -> list[Object]:
    return wait_for(lambda: prometheus.firing("ResmonAgentGone"), 90)


def test_no_metric_has_a_label_of_the_operators() -> None:
    theirs = {"job", "instance", "namespace", "pod", "container", "endpoint"}
    assert not [metric.name for metric in CATALOGUE if theirs & set(metric.labels)]


# ---- the job ---------------------------------------------------------------------------------------------------------------


def test_the_two_containers_find_each_other() -> None:
    assert SIDECAR["restartPolicy"] == "Always"
    assert SIDECAR["volumeMounts"] == TRAINING["volumeMounts"]
    paths = {each["name"]: each["mountPath"] for each in SIDECAR["volumeMounts"]}
    volumes = {each["name"]: each for each in POD["volumes"]}
    assert paths.keys() == volumes.keys() and "emptyDir" in volumes["runtime"]
    agents, trainings = environment(SIDECAR), environment(TRAINING)
    assert agents["RESMON_RUNTIME_DIR"] == trainings["RESMON_RUNTIME_DIR"]
    assert Path(agents["RESMON_RUNTIME_DIR"]).parent == Path(paths["runtime"])  # in the volume, not the volume
    assert trainings["RESMON_DIRECTORY"] == paths["runs"] and trainings["RESMON_AGENT"] == "sidecar"
    claim = volumes["runs"]["persistentVolumeClaim"]["claimName"]
    assert named("PersistentVolumeClaim", claim)["spec"]["accessModes"] == ["ReadWriteOnce"]
    for container in (SIDECAR, TRAINING):  # one user, who is the pod's
        assert "runAsUser" not in container["securityContext"] and container["securityContext"]["allowPrivilegeEscalation"] is False
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] != 0


def test_the_port_that_is_scraped_is_the_one_that_the_agent_listens_on() -> None:
    (port,) = SIDECAR["ports"]
    assert port["name"] == kubernetes.PORT == named("PodMonitor", "resmon")["spec"]["podMetricsEndpoints"][0]["port"]
    assert option("--listen") == f"0.0.0.0:{port['containerPort']}"
    assert all(SIDECAR[each]["httpGet"]["port"] == port["name"] for each in SIDECAR if each.endswith("Probe"))


def test_there_is_time_for_the_last_values() -> None:
    """Twice after the run's end, 15 s at least (agent/roster.py), and once more for the count of runs."""
    interval = durations.seconds(kubernetes.INTERVAL)
    assert float(option("--grace")) >= 15 + 4 * interval
    assert POD["terminationGracePeriodSeconds"] >= 1.5 * float(option("--grace"))
    assert float(option("--linger")) == timedelta(days=7).total_seconds()


def test_the_probes_ask_for_what_the_agent_answers(house: House, port: int) -> None:
    house.agent(port)
    house.ready(port)
    probes = {each: SIDECAR[each]["httpGet"]["path"] for each in SIDECAR if each.endswith("Probe")}
    assert len(probes) == 3
    for path in probes.values():
        assert get(f"http://127.0.0.1:{port}{path}")[0] == 200
