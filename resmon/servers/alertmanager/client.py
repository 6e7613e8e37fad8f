"""A client of Alertmanager's API v2: silences, alerts, groups, receivers, status.

Times are the server's: a silence that is made begins at once and lasts as long as was said, however wrong this machine's clock
goes; `skew` is how wrong that is. A silence is made once: where its making has an uncertain outcome (no answer, or the server's own
fault) it is looked for before it is tried again, and where that cannot be told either the error says so.

https://github.com/prometheus/alertmanager/blob/v0.25.0/api/v2/openapi.yaml
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from resmon.errors import ConfigurationError, ServerError
from resmon.rules.durations import written
from resmon.servers.alertmanager.matchers import Matcher
from resmon.servers.alertmanager.scope import checked, length
from resmon.servers.alertmanager.values import Alert, AlertGroup, KnownAlert, Silence, Status, moment
from resmon.servers.connection import Access, Answer, Client, Connection

API = "/api/v2"
TRIES = 3  # to make a silence
SKEW = 5.0  # seconds that clocks may differ by without a word about it

T = TypeVar("T")


class Alertmanager(Client):
    """One Alertmanager, or the members of its cluster. Closed by `close`, or by leaving the `with` block."""

    @classmethod
    def of(cls, urls: Sequence[str], **options: Any) -> Alertmanager:
        """With the credentials of the environment; `options` are those of `Connection`. Raises ConfigurationError."""
        return cls(Connection(Access.of("alertmanager", urls), **options))

    def now(self) -> datetime:
        """The server's time, at the most a second early. Asks for it where nothing has been asked yet."""
        if self._clock is None:
            self.status()
        return self._clock.now() if self._clock is not None else datetime.now(UTC)

    # -- silences -------------------------------------------------------------------------------------------------------------

    def silences(self, *filters: Matcher) -> tuple[Silence, ...]:
        """Those whose own matchers the filters fit, also those that are over as long as the server keeps them; the newest last."""
        found = self._several("/silences", Silence.of, _filters(filters))
        return tuple(sorted(found, key=lambda silence: (silence.starts, silence.id)))

    def silence(self, identity: str) -> Silence:
        """Raises ServerError where there is none of that id."""
        return self._read(self._about(identity), Silence.of)

    def create(
        self,
        matchers: Sequence[Matcher],
        until: str | float | datetime,
        comment: str,
        *,
        author: str = "",
        starts: datetime | None = None,
    ) -> Silence:
        """A silence that begins now (or at `starts`) and lasts 2h, or some seconds, or until a time, by the server's clock.

        Raises ConfigurationError for one that names nothing, ServerError where it could not be made, or where nobody knows.
        """
        checked(matchers, comment)
        lasts = None if isinstance(until, datetime) else timedelta(seconds=length(until))
        answer = self._ask("GET", "/status")  # whose clock, and which member
        now = answer.clock.now()
        ends = until if isinstance(until, datetime) else (starts or now) + (lasts or timedelta())
        length((ends - (starts or now)).total_seconds())
        # What begins in the past begins now, the server says; a minute covers what its date does not tell.
        begins = now - timedelta(minutes=1) if starts is None else starts
        body = {
            "matchers": [_matcher(each) for each in matchers],
            "startsAt": moment(begins),
            "endsAt": moment(ends),
            "createdBy": author or default_author(),
            "comment": comment.strip(),
        }
        made = self._made_once(body, answer.url)
        return self._read(self._about(made, member=answer.url), Silence.of)

    def _made_once(self, body: dict[str, Any], member: str) -> str:
        for remaining in reversed(range(TRIES)):
            try:
                return self._identity(self._ask("POST", "/silences", body=body, repeatable=False, member=member))
            except ServerError as error:
                if not error.uncertain:
                    raise
                try:
                    twin = self._twin(body, member)
                except ServerError:
                    twin = None
                    remaining = 0
                if twin is not None:
                    return twin
                # Without an answer it may still be on its way there: a second one could become a twin.
                if error.status is None or not remaining:
                    raise ServerError(
                        f"{error} Whether the silence was made is not known: look with `resmon silence list` first.",
                        status=error.status,
                        said=error.said,
                        uncertain=True,
                        passing=True,
                    ) from error
        raise AssertionError("unreachable")

    def _twin(self, body: dict[str, Any], member: str) -> str | None:
        """The id of a silence that is the same to the millisecond of its end, and no older than what was asked for."""
        for each in self._several("/silences", Silence.of, member=member):
            same = (each.author, each.comment, moment(each.ends)) == (body["createdBy"], body["comment"], body["endsAt"])
            if same and sorted(map(str, each.matchers)) == sorted(str(_matcher_of(one)) for one in body["matchers"]):
                return each.id
        return None

    def update(self, silence: Silence) -> Silence:
        """The silence as the server has it then. It keeps its id if its matchers and its beginning are what they were."""
        checked(silence.matchers, silence.comment)
        body = {
            "id": silence.id,
            "matchers": [_matcher(each) for each in silence.matchers],
            "startsAt": moment(silence.starts),
            "endsAt": moment(silence.ends),
            "createdBy": silence.author,
            "comment": silence.comment,
        }
        # Done twice it comes to the same as long as the id stays, which another beginning or matcher would change.
        answer = self._ask("POST", "/silences", body=body)
        return self._read(self._about(self._identity(answer), member=answer.url), Silence.of)

    def extend(self, identity: str, duration: str | float) -> Silence:
        """Have a silence end `duration` from now, sooner or later than it would. Raises ConfigurationError where it is over."""
        lasts = timedelta(seconds=length(duration))
        found = self.silence(identity)
        if found.state == "expired":
            raise ConfigurationError(f"the silence {identity} was over at {_said(found.ends)}. Make a new one.")
        return self.update(replace(found, ends=max(self.now(), found.starts) + lasts))

    def expire(self, identity: str) -> Silence:
        """End a silence now; one that is over stays as it is."""
        found = self.silence(identity)
        if found.state == "expired":
            return found
        self._ask("DELETE", f"/silence/{_uuid(identity)}")
        return self.silence(identity)

    # -- alerts ---------------------------------------------------------------------------------------------------------------

    def alerts(
        self,
        *filters: Matcher,
        active: bool = True,
        silenced: bool = True,
        inhibited: bool = True,
        unprocessed: bool = True,
        receiver: str = "",
    ) -> tuple[KnownAlert, ...]:
        """The alerts that the filters fit; `receiver` is an expression for the receivers' names."""
        chosen = {"active": active, "silenced": silenced, "inhibited": inhibited, "unprocessed": unprocessed}
        return self._several("/alerts", KnownAlert.of, [*_filters(filters), *_choices(chosen, receiver)])

    def groups(
        self, *filters: Matcher, active: bool = True, silenced: bool = True, inhibited: bool = True, receiver: str = ""
    ) -> tuple[AlertGroup, ...]:
        """The alerts in the groups in which they notify."""
        chosen = {"active": active, "silenced": silenced, "inhibited": inhibited}
        return self._several("/alerts/groups", AlertGroup.of, [*_filters(filters), *_choices(chosen, receiver)])

    def post(self, alerts: Iterable[Alert]) -> None:
        """Hand alerts in, again and again while they fire. Each member of a cluster gets them, as Prometheus does it.

        Raises ServerError where no member took them all. Those that it calls wrong are named; it has taken the others.
        """
        body = [alert.as_json() for alert in alerts]
        failed: ServerError | None = None
        taken = False
        for member in self._connection.access.urls:
            try:
                self._ask("POST", "/alerts", body=body, member=member)
                taken = True
            except ServerError as error:
                if error.status == 400:
                    raise ServerError(
                        f"{error} Of the {len(body):,} alerts those that it calls wrong were left out; the others it has taken.",
                        status=error.status,
                        said=error.said,
                    ) from error
                failed = error
        if failed is not None and not taken:
            raise failed

    # -- the server -----------------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        return self._read(self._ask("GET", "/status"), Status.of)

    def receivers(self) -> tuple[str, ...]:
        return self._several("/receivers", _name)

    def _ask(self, method: str, path: str, **request: Any) -> Answer:
        answer = self._connection.ask(method, f"{API}{path}", **request)
        self._clock = answer.clock
        return answer

    def _about(self, identity: str, member: str | None = None) -> Answer:
        try:
            return self._ask("GET", f"/silence/{_uuid(identity)}", member=member)
        except ServerError as error:
            if error.status == 404 and not error.said:
                raise ServerError(
                    f"there is no silence {identity} at {self._connection.access.urls[0]}. `resmon silence list` shows all.",
                    status=404,
                ) from error
            raise

    def _several(
        self, path: str, make: Callable[[Any], T], params: Sequence[tuple[str, str]] = (), member: str | None = None
    ) -> tuple[T, ...]:
        def listed(content: Any) -> tuple[T, ...]:
            if not isinstance(content, list):
                raise ValueError("that is no list")
            return tuple(map(make, content))

        return self._read(self._ask("GET", path, params=params, member=member), listed)

    def _read(self, answer: Answer, make: Callable[[Any], T]) -> T:
        try:
            return make(answer.content)
        except (ValueError, ConfigurationError) as error:
            raise ServerError(
                f"what answers at {answer.url} does not speak as Alertmanager's API v2 does: {error}. Is the address right?"
            ) from error

    def _identity(self, answer: Answer) -> str:
        def identity(content: Any) -> str:
            if not isinstance(content, dict) or not isinstance(content.get("silenceID"), str):
                raise ValueError("there is no silenceID")
            return str(content["silenceID"])

        return self._read(answer, identity)


def default_author() -> str:
    """Who asks: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # an id without a name, as in some containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def skew_sentence(ahead: float) -> str:
    """What is to be said of clocks that differ; nothing where they do not by much."""
    if abs(ahead) <= SKEW:
        return ""
    side = "ahead of" if ahead > 0 else "behind"
    return f"Alertmanager's clock is at least {written(abs(ahead))} {side} this machine's; times shown here are by Alertmanager's."


def _matcher(matcher: Matcher) -> dict[str, Any]:
    return {"name": matcher.name, "value": matcher.value, "isRegex": matcher.is_regex, "isEqual": matcher.is_equal}


def _matcher_of(content: dict[str, Any]) -> Matcher:
    return Matcher(content["name"], content["value"], content["isRegex"], content["isEqual"])


def _filters(filters: Iterable[Matcher]) -> list[tuple[str, str]]:
    return [("filter", str(each)) for each in filters]


def _choices(chosen: dict[str, bool], receiver: str) -> list[tuple[str, str]]:
    params = [(name, "true" if wanted else "false") for name, wanted in chosen.items()]
    return params + ([("receiver", receiver)] if receiver else [])


def _name(content: Any) -> str:
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise ValueError("a receiver has no name")
    return str(content["name"])


def _uuid(identity: str) -> str:
    """An id as it stands in a path. Raises ConfigurationError for what is none."""
    if len(identity) != 36 or not set(identity) <= set("0123456789abcdefABCDEF-"):
        raise ConfigurationError(f"{identity!r} is no silence's id, such as 3b1c7a70-5b0f-4c53-9d0c-1f4f4e6b0d6e.")
    return identity


def _said(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
