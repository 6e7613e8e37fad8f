"""A client of Prometheus' HTTP API, as far as resmon asks it: what a query gives now, and its course over a span of time.

https://prometheus.io/docs/prometheus/latest/querying/api/#expression-queries
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from resmon.errors import ServerError
from resmon.servers.connection import Access, Client, Connection

MOST = 11_000  # points of a series that the server gives, https://github.com/prometheus/prometheus/blob/v2.42.0/web/api/v1/api.go


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """A series at one moment."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Course:
    """A series over time: Unix seconds and values."""

    labels: Mapping[str, str]
    samples: tuple[tuple[float, float], ...]


class Prometheus(Client):
    """One server. Closed by `close`, or by leaving the `with` block."""

    @classmethod
    def of(cls, url: str, **options: Any) -> Prometheus:
        """With the credentials of the environment; `options` are those of `Connection`. Raises ConfigurationError."""
        return cls(Connection(Access.of("prometheus", [url]), **options))

    @property
    def url(self) -> str:
        """Where it is asked."""
        return self._connection.access.urls[0]

    def vector(self, query: str) -> tuple[Sample, ...]:
        """What a query gives now. Raises ServerError, also where the query is none, or gives no vector."""
        return self._asked("query", [("query", query)], _samples)

    def courses(self, query: str, start: float, end: float, step: float) -> tuple[Course, ...]:
        """What a query gives at `start` and every `step` seconds on. Raises ServerError, also where the query is none."""
        if not math.isfinite(end - start) or (end - start) / step >= MOST:
            raise ValueError(f"{(end - start) / step:,.0f} points are more than the {MOST:,} that a server gives")
        params = [("query", query), ("start", f"{start:.3f}"), ("end", f"{end:.3f}"), ("step", f"{step:.3f}")]
        return self._asked("query_range", params, _courses)

    def _asked(self, what: str, params: Sequence[tuple[str, str]], read: Callable[[Any], T]) -> T:
        answer = self._connection.ask("GET", f"/api/v1/{what}", params=params)
        self._clock = answer.clock
        try:
            return read(answer.content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ServerError(
                f"what answers at {answer.url} does not speak as Prometheus' API does ({error!r}). Is the address right?"
            ) from error


def quoted(text: str) -> str:
    """A text as a string in a query."""
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)


def _labels(metric: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in metric.items()}


def _samples(content: Any) -> tuple[Sample, ...]:
    if content["data"]["resultType"] != "vector":
        raise ValueError("no vector")
    made = []
    for each in content["data"]["result"]:
        _, value = each["value"]
        made.append(Sample(_labels(each["metric"]), float(value)))
    return tuple(made)


def _courses(content: Any) -> tuple[Course, ...]:
    if content["data"]["resultType"] != "matrix":
        raise ValueError("no matrix")
    made = tuple(
        Course(
            _labels(each["metric"]),
            tuple((float(time), float(value)) for time, value in each["values"]),
        )
        for each in content["data"]["result"]
    )
    if not all(math.isfinite(time) for course in made for time, _ in course.samples):
        raise ValueError("a time that is none")
    return made
