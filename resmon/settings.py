"""One validated settings object: arguments, then RESMON_* environment variables, then resmon.toml, then the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from resmon.errors import ConfigurationError

MIB = 1 << 20

# From the environment as it is written, not as JSON.
Patterns = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """What can be set, with its default. `Settings.of(run="digits")` is how the other rooms make one."""

    model_config = SettingsConfigDict(env_prefix="RESMON_", toml_file="resmon.toml", extra="forbid", frozen=True)

    run: str | None = Field(None, description="name of the run; the time of its start where none is given")
    model_name: str | None = Field(None, description="value of the label `model`; the model's class name where none is given")
    directory: Path = Field(Path("runs"), description="folder of the runs")
    listen: str = Field("127.0.0.1:9699", description="address and port of the agent's page and metrics")
    agent: Literal["auto", "off"] = Field(
        default_factory=lambda: "off" if os.environ.get("CI") else "auto",
        description="auto finds or starts the agent; off only records (the default where the environment says CI)",
    )
    start_step: int = Field(0, ge=0, description="number of the first step, where a checkpoint is resumed")
    include: Patterns = Field(
        (),
        description="module patterns (as fnmatch; several in one string with commas); only sites in matching modules are watched",
    )
    exclude: Patterns = Field((), description="module patterns (as fnmatch); sites in matching modules are not watched")
    targets: Patterns = Field((), description="what the run is to reach, as accuracy >= 0.95 (several in one string with commas)")
    budget: int = Field(512 * MIB, ge=1 * MIB, description="bytes that one rank's flight may take before older steps are thinned")
    other_ranks: Literal["same", "own"] | None = Field(
        None,
        description="what ranks hold that neither DDP nor FSDP2 nor a DTensor accounts for: the same gradients (the loop averages "
        "them) or parameters of their own; not given, gradient norms are absent there",
    )
    sample: int = Field(
        1024, ge=16, le=8192, description="elements of a site's output that are sampled for its histogram each step"
    )

    @field_validator("include", "exclude", "targets", mode="before")
    @classmethod
    def _patterns_in_one_string(cls, value: Any) -> Any:
        return tuple(pattern.strip() for pattern in value.split(",")) if isinstance(value, str) else value

    @field_validator("listen")
    @classmethod
    def _address_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("must be HOST:PORT, such as 127.0.0.1:9699")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003, pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def of(cls, **arguments: Any) -> Settings:
        """The settings under `arguments`; those that are None count as not given.

        Raises ConfigurationError that names every wrong key and value at once.
        """
        try:
            return cls(**{name: value for name, value in arguments.items() if value is not None})
        except TOMLDecodeError as error:
            raise ConfigurationError(f"{Path.cwd() / 'resmon.toml'} is no TOML: {error}. Text stands in quotes there.") from error
        except ValidationError as error:
            nits = "; ".join(map(_nit, error.errors()))
            raise ConfigurationError(
                f"settings that cannot be used: {nits}. They come from the call's arguments, RESMON_* environment variables "
                f"or resmon.toml in {Path.cwd()}; correct them there."
            ) from error


def _nit(error: Mapping[str, Any]) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] != "extra_forbidden":
        return f"{name}: {error['msg']} (got {error['input']!r})"
    near = get_close_matches(name, Settings.model_fields, n=1)
    return f"{name}: there is no such setting" + (f", but {near[0]}" if near else "")
