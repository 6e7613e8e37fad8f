"""What Alertmanager's API v2 speaks of, as immutable values: silences, alerts, groups of alerts, the server's own status.

https://github.com/prometheus/alertmanager/blob/v0.25.0/api/v2/openapi.yaml. What a server sends is looked at as it is read:
`ValueError` says what is not as that document has it. All times are aware ones, in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from resmon.errors import ConfigurationError
from resmon.servers.alertmanager.matchers import Matcher

SilenceState = Literal["pending", "active", "expired"]
AlertState = Literal["unprocessed", "active", "suppressed"]


@dataclass(frozen=True, slots=True)
class Silence:
    """Alerts that all `matchers` match notify nobody from `starts` to `ends`."""

    id: str
    matchers: tuple[Matcher, ...]
    starts: datetime
    ends: datetime
    author: str
    comment: str
    state: SilenceState
    updated: datetime

    @classmethod
    def of(cls, content: Any) -> Silence:
        matchers = tuple(
            Matcher(_text(each, "name"), _text(each, "value"), _truth(each, "isRegex"), _truth(each, "isEqual", default=True))
            for each in _list(content, "matchers")
        )
        return cls(
            id=_text(content, "id"),
            matchers=matchers,
            starts=_time(content, "startsAt"),
            ends=_time(content, "endsAt"),
            author=_text(content, "createdBy"),
            comment=_text(content, "comment"),
            state=cast("SilenceState", _one_of(_object(content, "status"), "state", ("pending", "active", "expired"))),
            updated=_time(content, "updatedAt"),
        )


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as it is posted: without `ends` it ends by itself if nobody posts it again for the server's resolve_timeout."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    starts: datetime | None = None
    ends: datetime | None = None
    url: str = ""  # of where it comes from

    def as_json(self) -> dict[str, Any]:
        made: dict[str, Any] = {"labels": dict(self.labels), "annotations": dict(self.annotations)}
        times = {"startsAt": self.starts, "endsAt": self.ends}
        made |= {key: moment(time) for key, time in times.items() if time is not None}
        return made | ({"generatorURL": self.url} if self.url else {})


@dataclass(frozen=True, slots=True)
class KnownAlert:
    """An alert as the server has it; `silenced` and `inhibited` are the silences and the alerts that keep it from notifying."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts: datetime
    ends: datetime
    updated: datetime
    fingerprint: str
    receivers: tuple[str, ...]
    state: AlertState
    silenced: tuple[str, ...]
    inhibited: tuple[str, ...]

    @classmethod
    def of(cls, content: Any) -> KnownAlert:
        status = _object(content, "status")
        return cls(
            labels=_texts(content, "labels"),
            annotations=_texts(content, "annotations"),
            starts=_time(content, "startsAt"),
            ends=_time(content, "endsAt"),
            updated=_time(content, "updatedAt"),
            fingerprint=_text(content, "fingerprint"),
            receivers=tuple(_text(each, "name") for each in _list(content, "receivers")),
            state=cast("AlertState", _one_of(status, "state", ("unprocessed", "active", "suppressed"))),
            silenced=tuple(map(str, _list(status, "silencedBy"))),
            inhibited=tuple(map(str, _list(status, "inhibitedBy"))),
        )


@dataclass(frozen=True, slots=True)
class AlertGroup:
    """Alerts that one notification is about: those of a receiver that share `labels`."""

    labels: Mapping[str, str]
    receiver: str
    alerts: tuple[KnownAlert, ...]

    @classmethod
    def of(cls, content: Any) -> AlertGroup:
        alerts = tuple(map(KnownAlert.of, _list(content, "alerts")))
        return cls(_texts(content, "labels"), _text(_object(content, "receiver"), "name"), alerts)


@dataclass(frozen=True, slots=True)
class Status:
    """The server: its version, how its cluster is (`disabled` where it is alone), how many members that has, its configuration."""

    version: str
    cluster: str
    peers: int
    started: datetime
    configuration: str

    @classmethod
    def of(cls, content: Any) -> Status:
        cluster = _object(content, "cluster")
        return cls(
            version=_text(_object(content, "versionInfo"), "version"),
            cluster=_text(cluster, "status"),
            peers=len(_list(cluster, "peers", needed=False)),
            started=_time(content, "uptime"),
            configuration=_text(_object(content, "config"), "original"),
        )


def moment(time: datetime) -> str:
    """A time as the API writes it. Raises ConfigurationError for a naive one, of which nobody knows what it means there."""
    if time.tzinfo is None:
        raise ConfigurationError(f"{time} has no time zone. Make it an aware one: datetime.now(UTC), or with tzinfo.")
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _part(content: Any, key: str) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"there is no {key}")
    return content[key]


def _text(content: Any, key: str) -> str:
    value = _part(content, key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _truth(content: Any, key: str, *, default: bool | None = None) -> bool:
    value = content.get(key, default) if isinstance(content, dict) else None
    if not isinstance(value, bool):
        raise ValueError(f"{key} is neither true nor false")
    return value


def _object(content: Any, key: str) -> dict[str, Any]:
    value = _part(content, key)
    if not isinstance(value, dict):
        raise ValueError(f"{key} is no object")
    return value


def _list(content: Any, key: str, *, needed: bool = True) -> list[Any]:
    value = content.get(key, []) if not needed and isinstance(content, dict) else _part(content, key)
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")
    return value


def _texts(content: Any, key: str) -> dict[str, str]:
    value = _object(content, key)
    if not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f"{key} holds what is no text")
    return value


def _one_of(content: Any, key: str, choices: tuple[str, ...]) -> str:
    value = _text(content, key)
    if value not in choices:
        raise ValueError(f"{key} is {value[:40]!r}, and not one of {', '.join(choices)}")
    return value


def _time(content: Any, key: str) -> datetime:
    time = datetime.fromisoformat(_text(content, key))
    if time.tzinfo is None:
        raise ValueError(f"{key} has no time zone")
    try:
        return time.astimezone(UTC)
    except OverflowError as error:  # of the year 1 or 9999
        raise ValueError(f"{key} is no time that can be") from error
