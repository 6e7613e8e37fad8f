"""The objects of Prometheus' operator: which pods are scraped, and the rules of alerts/ as the operator takes them.

A pod is scraped at its container port `resmon`, whatever its labels are. Series have the labels that they have without Kubernetes:
`job` is resmon, and `instance`, which tells the agents apart, is the pod's namespace and name, so that an alert about an agent says
where to look. The pod's own labels are the operator's (`namespace`, `pod`, `container`); resmon has none of these names.

What the operator makes of a PodMonitor: https://github.com/prometheus-operator/prometheus-operator, pkg/prometheus/promcfg.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resmon.rules import Group

API = "monitoring.coreos.com/v1"
PORT = "resmon"  # the name of the agent's container port
JOB = "resmon"
INTERVAL = "15s"  # deploy/kubernetes/job.yaml leaves the agent the time for three of them

Object = dict[str, Any]


def _metadata(name: str) -> Object:
    return {"name": name, "labels": {"app.kubernetes.io/name": "resmon", "app.kubernetes.io/component": "monitoring"}}


def pod_monitor() -> Object:
    """All pods of its namespace that have an agent."""
    where = {"sourceLabels": ["__meta_kubernetes_namespace", "__meta_kubernetes_pod_name"], "separator": "/"}
    endpoint = {
        "port": PORT,
        "path": "/metrics",
        "interval": INTERVAL,
        "relabelings": [{"targetLabel": "job", "replacement": JOB}, where | {"targetLabel": "instance"}],
    }
    return {
        "apiVersion": API,
        "kind": "PodMonitor",
        "metadata": _metadata("resmon"),
        "spec": {"selector": {}, "podMetricsEndpoints": [endpoint]},
    }


def prometheus_rule(name: str, groups: Sequence[Group]) -> Object:
    """Rules as they are in a rule file."""
    return {
        "apiVersion": API,
        "kind": "PrometheusRule",
        "metadata": _metadata(name),
        "spec": {"groups": [group.as_dict() for group in groups]},
    }


def file(objects: Sequence[Object], header: str) -> str:
    """A YAML file of several documents."""
    from resmon.rules.yaml import document

    first, *others = objects
    return "---\n".join([document(first, header), *(document(each, "") for each in others)])
