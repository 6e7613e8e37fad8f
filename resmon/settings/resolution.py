"""One validated settings object: arguments, then RESMON_* environment variables, then resmon.toml, then the defaults.

Everything that is wrong is found at once, also a value that a stronger place overrides: it would be wrong there tomorrow.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from resmon.errors import ConfigurationError
from resmon.quantities import printable
from resmon.scores.targets import readable
from resmon.settings.origins import Given, Nit, Origin, in_arguments, in_environment, in_file

MIB = 1 << 20
_USER = re.compile("//[^/\\s]*@")  # and password, in an address
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?")
_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

# What is wrong within a setting's value that has the right form: the path there and a message. For settings whose right values
# other rooms know.
Check = Callable[[Any], Iterable[tuple[tuple[str, ...], str]]]
_NO_CHECKS: Mapping[str, Check] = {}


def _separated(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _words(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if meant := set(shlex.shlex(value, posix=False, punctuation_chars=True)) & set(_OPERATORS):
        raise ValueError(
            f"{min(meant)} is the shell's, and there is none around the command: write sh -c '...', or a list of words"
        )
    return tuple(shlex.split(value))


def _address(url: str) -> str:
    """A server's address, without a slash at its end."""
    if _USER.search(url):
        raise ValueError("an address holds no name and password; they are set in the environment (docs/oncall.md)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no address ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} must be http://HOST:PORT or https://HOST:PORT, with a path if the server has a prefix")
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r} must end with the path; what follows ? or # is not part of an address")
    return url.rstrip("/")


_OPERATORS = ("|", "||", "&", "&&", ";", "<", ">", ">>", ">&", "&>")


def _table(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be a table, in a variable or a text as JSON ({error})") from error


# Several in one string, separated by commas, or a list.
Several = Annotated[tuple[str, ...], BeforeValidator(_separated)]
# The words of a command, as a shell splits them, or a list.
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
# A table, or its JSON.
Table = Annotated[dict[str, Any], BeforeValidator(_table)]


class Settings(BaseModel):
    """What can be set, with its default. `Settings.of(run="digits")` is how the other rooms make one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    run: str | None = Field(None, min_length=1, description="name of the run; the time of its start where none is given")
    model_name: str | None = Field(None, description="value of the label `model`; the model's class name where none is given")
    directory: Path = Field(Path("runs"), description="folder of the runs")
    listen: str = Field("127.0.0.1:9699", description="address and port of the agent's page and metrics")
    web_config: Path | None = Field(
        None,
        description="web configuration of the agent: who may read what it serves, and its certificate; in the form of Prometheus' "
        "exporters (docs/security.md)",
    )
    served_names: Several = Field(
        (),
        description="names by which the agent is asked besides its address, such as a proxy's (several in one string with commas)",
    )
    agent: Literal["auto", "sidecar", "off"] = Field(
        default_factory=lambda: "off" if os.environ.get("CI") else "auto",
        description="auto finds or starts the agent; sidecar leaves starting it to others, who share the runtime folder "
        "(deploy/README.md); off only records (the default where the environment says CI)",
    )
    start_step: int = Field(0, ge=0, le=1 << 53, description="number of the first step, where a checkpoint is resumed")
    include: Several = Field(
        (),
        description="module patterns (as fnmatch; several in one string with commas); only sites in matching modules are watched",
    )
    exclude: Several = Field((), description="module patterns (as fnmatch); sites in matching modules are not watched")
    budget: int = Field(512 * MIB, ge=2 * MIB, description="bytes that one rank's flight may take before older steps are thinned")
    other_ranks: Literal["same", "own"] | None = Field(
        None,
        description="what ranks hold that neither DDP nor FSDP2 nor a DTensor accounts for: the same gradients (the loop averages "
        "them) or parameters of their own; not given, gradient norms are absent there",
    )
    on_nonfinite: Literal["record", "skip_step", "raise"] = Field(
        "record",
        description="what a step with NaN or infinite gradients does: record changes nothing; skip_step keeps the optimizer from "
        "stepping; raise raises NonFiniteError. The last two wait for a GPU once a step",
    )
    sample: int = Field(
        1024, ge=16, le=8192, description="elements of a site's output that are sampled for its histogram each step"
    )
    max_series: int = Field(
        10_000, ge=100, description="series that the agent exports of one run and machine; deeper models are folded"
    )
    targets: Several = Field(
        (), description="validation scores to reach, such as accuracy >= 0.95 (several in one string with commas)"
    )

    stall_after: float = Field(
        300.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds without a step after which a living run is stalled, if that is 10 usual steps too; 0 for never",
    )
    on_incident: Words = Field(
        (),
        description="command that is run for each incident (at most 10 of a rank) with it as JSON on standard input; without a "
        "shell, as a list or in one string with quotes as in a shell",
    )
    on_incident_timeout: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="seconds after which on_incident's command is ended"
    )
    detectors: Table = Field(
        {},
        description="what is tuned of the detectors, in tables by their names, with sites.PATTERN for some blocks only "
        "(docs/detectors.md); in a variable as JSON",
    )
    own_detectors: Several = Field(
        (), description="detectors of your own, each package.module:Class, that the agent runs too (docs/detectors.md)"
    )

    alertmanager: Several = Field(
        (),
        description="address of Alertmanager, such as http://alertmanager:9093, with its path prefix if it has one; several are "
        "the members of a cluster (in one string with commas)",
    )
    otlp: str | None = Field(
        None,
        description="address of an OTLP receiver, such as http://collector:4318, to which the agent pushes metrics and events; "
        "environment takes it from OTEL_EXPORTER_OTLP_ENDPOINT and its like (docs/opentelemetry.md; resmon[otel])",
    )
    otlp_interval: float = Field(15.0, ge=1, allow_inf_nan=False, description="seconds between two pushes of metrics")
    opentelemetry: bool = Field(
        False,
        description="whether a run's figures are handed to the MeterProvider of the program that trains (docs/opentelemetry.md)",
    )
    prometheus: str | None = Field(
        None,
        description="address of Prometheus, asked which alerts fired (post-mortem) and what is left of error budgets (slo report)",
    )

    @field_validator("listen")
    @classmethod
    def _address_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or any(sign in host for sign in "/@ ") or not port.isdecimal() or int(port) > 65535:
            raise ValueError("must be HOST:PORT, such as 127.0.0.1:9699")
        return value

    @field_validator("served_names")
    @classmethod
    def _names_of_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HOST.fullmatch(name):
                raise ValueError(f"{name!r} must be the name of a host, such as resmon.example.com, without scheme and port")
        return value

    @field_validator("directory", "web_config", mode="before")
    @classmethod
    def _no_empty_path(cls, value: object) -> object:
        if value == "":  # as a shell gives where a variable is not set; a Path of it would be this folder
            raise ValueError("must be a path, and is empty; leave it out for its default, or write . for this folder")
        return value

    @field_validator("directory", "web_config")
    @classmethod
    def _a_path(cls, value: Path | None) -> Path | None:
        if value is not None and "\0" in str(value):
            raise ValueError("must be a path, which holds no null character")
        return value

    @field_validator("on_incident")
    @classmethod
    def _a_command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("\0" in word for word in value):
            raise ValueError("a command holds no null character")
        return value

    @field_validator("detectors")
    @classmethod
    def _as_json_has_it(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            made = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"must hold numbers, texts, truths and tables ({error})") from error
        return dict(made)

    @field_validator("own_detectors")
    @classmethod
    def _module_and_class(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _CLASS.fullmatch(name):
                raise ValueError(f"{name!r} must be PACKAGE.MODULE:CLASS, such as mine.detectors:LoudBranch")
        return value

    @field_validator("alertmanager")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_address, value))

    @field_validator("prometheus")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        return None if value is None else _address(value)

    @field_validator("otlp")
    @classmethod
    def _a_receiver(cls, value: str | None) -> str | None:
        if value is None or value == "environment":
            return value
        if _USER.search(value):
            raise ValueError("an address holds no name and password; OTEL_EXPORTER_OTLP_HEADERS in the environment does")
        return _address(value)

    @field_validator("targets")
    @classmethod
    def _score_and_number(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for target in value:
            if not readable((target,)):
                raise ValueError(f"{target!r} must be NAME >= NUMBER or NAME <= NUMBER, such as accuracy >= 0.95")
        return value

    @classmethod
    def of(cls, /, **arguments: Any) -> Settings:
        """The settings under `arguments`; those that are None count as not given.

        Raises ConfigurationError that names every wrong key and value, and where each stands.
        """
        return resolve(arguments).without_nits()


TABLES = ("detectors",)  # settings that are tables in resmon.toml


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, the origin of each, and what is wrong; a wrong value is left out of the settings."""

    settings: Settings
    origins: Mapping[str, Origin]
    nits: tuple[Nit, ...]

    def without_nits(self) -> Settings:
        """The settings. Raises ConfigurationError with every nit if there is one."""
        if self.nits:
            raise ConfigurationError(
                "settings that cannot be used:\n"
                + "".join(f"  {nit}\n" for nit in self.nits)
                + "Correct each where it stands; `resmon settings` shows all there are and where their values come from."
            )
        return self.settings


def resolve(arguments: Mapping[str, Any], checks: Mapping[str, Check] = _NO_CHECKS) -> Resolved:
    """Settings from all places, the strongest for each key. What is wrong there is told, not raised."""
    known = Settings.model_fields
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, Origin("default"))
    nits: list[Nit] = []
    # The weakest place first, so that stronger ones overwrite it.
    for found in chain(in_file(known, TABLES), in_environment(known), in_arguments(arguments, known)):
        wrong = [found] if isinstance(found, Nit) else list(_nits(found, checks.get(found.setting)))
        nits += wrong
        if isinstance(found, Given) and not wrong:
            values[found.setting], origins[found.setting] = found.value, found.origin
    return Resolved(Settings(**values), origins, tuple(nits))


def _nits(given: Given, check: Check | None) -> Iterator[Nit]:
    """What is wrong with one value, looked at alone."""
    try:
        made = Settings(**{given.setting: given.value})
    except ValidationError as error:
        for each in error.errors():
            item = "".join(f"item {part + 1} " for part in each["loc"][1:] if isinstance(part, int))
            # Of "Input should be ..." and its like the subject is the key, which the origin names.
            message = re.sub(r"^(Value error,|Input|String) ", "", each["msg"])
            yield Nit(given.origin, f"{item}{message} (got {_short(each['input'])})")
        return
    for path, message in check(getattr(made, given.setting)) if check is not None else ():
        place = given.at(path)
        said = message if place != given.origin else f"{printable('.'.join(path))}: {message}"
        yield Nit(place, said)


def _short(value: Any) -> str:
    text = _USER.sub("//…@", repr(value))  # a password is nobody's to read
    return text if len(text) <= 80 else f"{text[:79]}…"
