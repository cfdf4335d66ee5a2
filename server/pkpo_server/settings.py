"""Everything that can be set, once: flags, environment variables and the documented table come from these fields."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict

from pkpo import __version__

PROGRAM = "pkpo-server"
ENVIRONMENT_PREFIX = "PKPO_"
# How the supervisor tells a process that it is a worker; not a setting.
WORKER_VARIABLE = "PKPO_INTERNAL_WORKER"
# Longer paths do not fit a socket address on Linux.
LONGEST_SOCKET_PATH = 107
_KIB, _MIB = 2**10, 2**20


class InvalidSettings(Exception):
    """What was set cannot be used; the text says which flag or variable, its value and what it may be."""


def _setting(default: Any, description: str, unit: str = "", **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"unit": unit}, **bounds)


class Settings(BaseSettings):
    """Serves advantages that optimise pass@k over gRPC."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    host: str = _setting(
        "127.0.0.1", "Address to serve on. Anything but loopback is open to everyone who can reach it.", min_length=1
    )
    port: int = _setting(50051, "TCP port to serve on; 0 picks a free one, which the log names.", ge=0, le=65535)
    unix_socket: Path | None = _setting(None, "Serve on this unix socket instead of TCP (one worker, for a sidecar).")
    metrics_host: str = _setting("127.0.0.1", "Address of the Prometheus metrics.", min_length=1)
    metrics_port: int = _setting(9464, "TCP port of the Prometheus metrics; 0 picks a free one.", ge=0, le=65535)
    workers: int = _setting(1, "Processes that share the port.", ge=1, le=256)
    threads: int = _setting(
        0, "Threads that compute big batches, in each worker; 0 divides the CPUs among the workers.", ge=0, le=256
    )
    max_message_bytes: int = _setting(64 * _MIB, "Largest message, in and out.", "bytes", ge=_KIB, le=2**31 - 1)
    # 64 MiB hold just under this many doubles. Of floats they hold twice as many, but the work is in doubles.
    max_rewards: int = _setting(2**23, "Most rewards in one request.", "rewards", ge=1, le=2**31 - 1)
    max_group_size: int = _setting(2**20, "Most rewards in one group.", "rewards", ge=1, le=2**31 - 1)
    max_groups: int = _setting(2**20, "Most groups in one request.", "groups", ge=1, le=2**31 - 1)
    max_estimate_k: int = _setting(
        32, "Most values of k to estimate max@k for in one request.", "values", ge=1, le=4096
    )
    max_concurrent_rpcs: int = _setting(
        1024,
        "Calls and streams open at once in each worker; more are refused with RESOURCE_EXHAUSTED.",
        "calls",
        ge=1,
        le=2**20,
    )
    stream_in_flight: int = _setting(
        16,
        "Messages of one stream being answered at once; further ones are not read until an answer has left.",
        "messages",
        ge=1,
        le=4096,
    )
    max_connection_age_seconds: float = _setting(
        0,
        "Ask clients to reconnect after about this long, which spreads load behind a headless service; 0 never does.",
        "seconds",
        ge=0,
        le=10**7,
    )
    drain_seconds: float = _setting(
        30, "After the first SIGTERM or SIGINT, how long accepted work may take to finish.", "seconds", ge=0, le=3600
    )
    max_run_ids: int = _setting(
        64,
        "Runs with metric series of their own, in each worker, first come first served; the rest share `other`.",
        "runs",
        ge=0,
        le=10000,
    )
    reflection: bool = _setting(True, "Let clients ask which services and messages there are.")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "Least severe log line to write.")

    @model_validator(mode="after")
    def _one_worker_on_a_short_path(self) -> Settings:
        if self.unix_socket is not None:
            if self.workers > 1:
                raise ValueError(
                    f"--workers (PKPO_WORKERS): {self.workers} with --unix-socket; must be 1, since processes cannot"
                    " share a unix socket"
                )
            length = len(str(self.unix_socket.absolute()).encode())
            if length > LONGEST_SOCKET_PATH:
                raise ValueError(
                    f"--unix-socket (PKPO_UNIX_SOCKET): the path is {length} bytes long; must be at most"
                    f" {LONGEST_SOCKET_PATH}"
                )
        return self


def read_settings(arguments: Sequence[str]) -> Settings:
    """The settings given by flags, then by PKPO_* environment variables, then by their defaults.

    Raises:
        InvalidSettings: a value is not of its type, or out of its bounds.
        SystemExit: --help, --version (0), or a flag that does not exist (2).
    """
    parser = argparse.ArgumentParser(
        PROGRAM,
        description=Settings.__doc__,
        epilog=f"Each flag is an environment variable too: {flag('max_rewards')} is {variable('max_rewards')}.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    source: CliSettingsSource[Any] = CliSettingsSource(Settings, root_parser=parser)
    try:
        return CliApp.run(Settings, cli_args=list(arguments), cli_settings_source=source)
    except ValidationError as error:
        raise InvalidSettings("\n".join(_complaints(error, arguments))) from error


def flag(name: str) -> str:
    """The command line flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return ENVIRONMENT_PREFIX + name.upper()


def bounds(field: FieldInfo) -> tuple[Any, Any]:
    """The least and the greatest value of a setting; None where there is none."""
    least = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    greatest = next((m.le for m in field.metadata if hasattr(m, "le")), None)
    return least, greatest


def _complaints(error: ValidationError, arguments: Sequence[str]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        if not problem["loc"]:
            yield str(problem["ctx"]["error"])
            continue
        name = str(problem["loc"][0])
        by_flag = any(a.split("=", 1)[0] in (flag(name), "--no-" + flag(name)[2:]) for a in arguments)
        given = str(problem["input"])
        if len(given) > 80:
            given = given[:80] + "..."
        where = flag(name) if by_flag else variable(name)
        yield f"{where}: {given!r}; {_requirement(name, problem['msg'])}{_hint(given)}"


def _requirement(name: str, otherwise: str) -> str:
    field = Settings.model_fields[name]
    least, greatest = bounds(field)
    if least is not None:
        kind = "a whole number" if field.annotation is int else "a number"
        return f"must be {kind} from {least} to {greatest}"
    if field.annotation is bool:
        return "must be true or false"
    return otherwise[0].lower() + otherwise[1:]


def _hint(given: str) -> str:
    if given.startswith(("tcp://", "udp://")):
        return (
            " (Kubernetes sets such variables for a service named pkpo: set enableServiceLinks: false on the pod,"
            " or give the flag)"
        )
    return ""
