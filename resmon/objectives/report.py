"""What is left of each error budget, asked of a Prometheus that has the rules."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resmon.errors import PrometheusError
from resmon.objectives import rules

PATIENCE = 10.0  # seconds that an answer may take
LARGEST = 16 << 20  # bytes of an answer

# What is asked for, and the field that it becomes.
QUERIES = {
    "objective": rules.OBJECTIVE,
    "budget": rules.BUDGET,
    "period_days": rules.PERIOD,
    "current_burn_rate": rules.CURRENT,
    "period_burn_rate": rules.BURNT,
    "budget_left": rules.LEFT,
}
FIRING = 'ALERTS{alertstate="firing",slo!="",service!=""}'

# Labels that say which alert it is and not which part of an objective.
_OF_ALERTS = ("__name__", "alertname", "alertstate", "severity", "tier")


@dataclass(frozen=True, slots=True)
class Standing:
    """How an objective stands, or one of the parts that its queries tell apart by `labels`. None is what nobody knows."""

    service: str
    slo: str
    labels: Mapping[str, str]
    objective: float | None = None
    budget: float | None = None
    period_days: float | None = None
    current_burn_rate: float | None = None
    period_burn_rate: float | None = None
    budget_left: float | None = None
    firing: tuple[str, ...] = ()  # severities, page first


@dataclass(frozen=True, slots=True)
class Server:
    """A Prometheus, and how to speak with it."""

    url: str = "http://127.0.0.1:9090"
    user: str | None = None
    password: str = field(default="", repr=False)
    authority: Path | None = None  # certificates to trust besides the system's

    @property
    def shown(self) -> str:
        """The address without a password."""
        import httpx

        return str(httpx.URL(self.url).copy_with(userinfo=b""))

    def vectors(self, queries: Mapping[str, str]) -> dict[str, list[tuple[dict[str, str], float]]]:
        """What each query gives now. Raises PrometheusError that says what to do."""
        import httpx

        try:
            base, shown = httpx.URL(self.url), self.shown
        except (httpx.InvalidURL, TypeError) as error:
            raise PrometheusError(f"--prometheus is no address ({error}); http://127.0.0.1:9090 is one.") from error
        if base.scheme not in ("http", "https") or not base.host:
            raise PrometheusError(f"--prometheus {shown!r:.200} is no address of a server; http://127.0.0.1:9090 is one.")
        auth = None if self.user is None else (self.user, self.password)
        try:
            with httpx.Client(base_url=base, auth=auth, verify=self._trusted(), timeout=PATIENCE, trust_env=False) as client:
                return {name: _vector(client, query, shown) for name, query in queries.items()}
        except httpx.TimeoutException as error:
            raise PrometheusError(f"{shown} does not answer within {PATIENCE:.0f} seconds; --prometheus names another.") from error
        except httpx.ConnectError as error:
            todo = "Is Prometheus running there? --prometheus names another."
            if "CERTIFICATE" in str(error):
                todo = "Its certificate is not trusted; --ca FILE names who signed it."
            raise PrometheusError(f"{shown} cannot be reached ({error}). {todo}") from error
        except httpx.HTTPError as error:
            raise PrometheusError(f"{shown} gives no answer ({error!r:.200}); --prometheus names another.") from error

    def _trusted(self) -> ssl.SSLContext | bool:
        if self.authority is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.authority)
        except (OSError, ssl.SSLError) as error:
            raise PrometheusError(f"--ca {self.authority} holds no certificates that can be read ({error}).") from error


def _vector(client: Any, query: str, shown: str) -> list[tuple[dict[str, str], float]]:
    raw = bytearray()
    with client.stream("POST", "api/v1/query", data={"query": query}) as response:
        for piece in response.iter_bytes():
            raw += piece
            if len(raw) > LARGEST:
                raise PrometheusError(f"{shown} gives more than {LARGEST:,} bytes for {query}; --prometheus names another.")
        status = response.status_code
    if status in (401, 403):
        raise PrometheusError(f"{shown} refuses (status {status}); --user and --password-file say who asks.")
    if status >= 500:
        raise PrometheusError(f"{shown} cannot answer now (status {status}, {_text(raw)}). Is it still starting?")
    try:
        answer = json.loads(raw)
        if answer["status"] != "success":
            raise PrometheusError(f"{shown} cannot answer {query} ({str(answer.get('error'))!r:.300}).")
        return [(dict(each["metric"]), float(each["value"][1])) for each in answer["data"]["result"]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        said = f"status {status}, {_text(raw)}"
        raise PrometheusError(f"{shown} does not answer as Prometheus does ({said}); --prometheus names another.") from error


def _text(raw: bytearray) -> str:
    return repr(raw[:80].decode("utf-8", "replace"))


def standings(server: Server) -> list[Standing]:
    """Of every objective whose rules the server has, by name. Raises PrometheusError, also where there is none."""
    answers = server.vectors({**QUERIES, "firing": FIRING})
    firing = answers.pop("firing")
    values: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for name, samples in answers.items():
        for labels, value in samples:
            if "service" in labels and "slo" in labels:
                key = tuple(sorted((label, text) for label, text in labels.items() if label != "__name__"))
                values.setdefault(key, {})[name] = value
    # What is the same for the whole objective stands without the labels that its queries tell parts apart by.
    whole = {key: found for key, found in values.items() if "objective" in found}
    parts = {key: found for key, found in values.items() if key not in whole}
    with_parts = {_name(key) for key in parts}
    made = []
    for key, found in [*((k, f) for k, f in whole.items() if _name(k) not in with_parts), *parts.items()]:
        same = next((other for of, other in whole.items() if _name(of) == _name(key)), {})
        own = set(key) - {pair for of in whole if _name(of) == _name(key) for pair in of}
        known = {name: value for name, value in (same | found).items() if math.isfinite(value)}
        alerts = {labels.get("severity", "") for labels, _ in firing if _is_of(labels, _name(key), own)}
        service, slo = _name(key)
        ordered = tuple(sorted(alerts, key=lambda severity: (severity != "page", severity)))
        made.append(Standing(service, slo, dict(sorted(own)), **known, firing=ordered))
    if not made:
        raise PrometheusError(
            f"{server.shown} has no objective. `resmon slo generate` writes the rules; name the file under rule_files in "
            "prometheus.yml, reload, and wait for a minute."
        )
    return sorted(made, key=lambda each: (each.service, each.slo, sorted(each.labels.items())))


def _name(key: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    labels = dict(key)
    return labels["service"], labels["slo"]


def _is_of(labels: Mapping[str, str], name: tuple[str, str], own: set[tuple[str, str]]) -> bool:
    return (labels.get("service"), labels.get("slo")) == name and own <= {
        pair for pair in labels.items() if pair[0] not in _OF_ALERTS
    }
