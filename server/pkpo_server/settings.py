"""Everything that can be set, once: flags, environment variables and the documented table come from these fields.

By the standard library alone: to import what does the same takes longer than the rest of a server's start.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pkpo import __version__

PROGRAM = "pkpo-server"
ENVIRONMENT_PREFIX = "PKPO_"
# How the supervisor tells a process that it is a worker; not a setting.
WORKER_VARIABLE = "PKPO_INTERNAL_WORKER"
# What the client reads of the same environment, where both run beside each other.
CLIENT_VARIABLES = (
    "k", "variant", "scale", "k_policy", "estimate_k", "seed", "address", "fallback", "timeout", "run_id",
    "token_file", "ca_file", "certificate_file", "key_file",
)  # fmt: skip
# What Kubernetes sets for services whose names begin with pkpo, beside PKPO_PORT and the like, which are such links.
_OF_SERVICE = re.compile(r"PKPO_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_LINKS = ("tcp://", "udp://", "sctp://")
# Longer paths do not fit a socket address on Linux.
LONGEST_SOCKET_PATH = 107
_KIB, _MIB = 2**10, 2**20
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class InvalidSettings(Exception):
    """What was set cannot be used; the text says which flag or variable, its value and what it may be."""


@dataclass(frozen=True)
class Setting:
    """One thing that can be set.

    Attributes:
        kind: str, int, float, bool or Path.
        default: its value where nothing is said.
        description: its meaning.
        unit: of a number, where it has one.
        least, greatest: the bounds of a number.
        choices: the words it may be; empty where it may be any.
        pattern, form: what else a text must match, as an expression and in words.
    """

    kind: type
    default: Any
    description: str
    unit: str = ""
    least: int = 0
    greatest: int = 0
    choices: tuple[str, ...] = ()
    pattern: str = ".+"
    form: str = "an address"

    def value(self, text: str) -> Any:
        """What a text says. Raises ValueError where that cannot be."""
        if self.kind is bool:
            word = text.lower()
            if word not in (*_TRUE, *_FALSE):
                raise ValueError(text)
            return word in _TRUE
        value = self.kind(text)
        if self.kind in (int, float):
            fits = self.least <= value <= self.greatest  # so not NaN
        else:
            fits = re.fullmatch(self.pattern, text, re.DOTALL) and (not self.choices or text in self.choices)
        if not fits:
            raise ValueError(text)
        return value

    @property
    def requirement(self) -> str:
        """What its value must be."""
        if self.kind in (int, float):
            return f"{'a whole number' if self.kind is int else 'a number'} from {self.least} to {self.greatest}"
        if self.kind is bool:
            return "true or false"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return "a path" if self.kind is Path else self.form


def _address(default: str, description: str) -> Any:
    return _field(Setting(str, default, description, pattern=r"[^\[\]]+"))


def _number(default: int | None, description: str, least: int, greatest: int, unit: str = "", kind: type = int) -> Any:
    return _field(Setting(kind, default, description, unit, least, greatest))


def _path(description: str) -> dict[str, Setting]:
    return {"setting": Setting(Path, None, description)}


def _field(setting: Setting) -> Any:
    return field(default=setting.default, metadata={"setting": setting})


@dataclass(frozen=True)
class Settings:
    """Serves advantages that optimise pass@k over gRPC."""

    host: str = _address(
        "127.0.0.1", "Address to serve on. Anything but loopback is open to everyone who can reach it."
    )
    port: int = _number(50051, "TCP port to serve on; 0 picks a free one, which the log names.", 0, 65535)
    unix_socket: Path | None = field(
        default=None, metadata=_path("Serve on this unix socket instead of TCP (one worker, for a sidecar).")
    )
    unix_socket_mode: str | None = field(
        default=None,
        metadata={
            "setting": Setting(
                str,
                None,
                "Who may connect to the unix socket: its mode, such as 660. By itself, the umask says.",
                pattern="0?[0-7]{3}",
                form="three octal digits",
            )
        },
    )
    tls_certificate: Path | None = field(
        default=None,
        metadata=_path("Serve TLS with this PEM certificate chain; a changed file counts from the next connection on."),
    )
    tls_key: Path | None = field(default=None, metadata=_path("The certificate's PEM key."))
    tls_client_ca: Path | None = field(
        default=None, metadata=_path("Take only clients that show a certificate which these PEM ones signed.")
    )
    tokens: Path | None = field(
        default=None,
        metadata=_path(
            "A file of bearer tokens, one a line, or a folder of such files: every call but health needs one of them."
            " A change counts within a second."
        ),
    )
    health_host: str = _address("127.0.0.1", "Address of the health port.")
    health_port: int | None = _number(
        None,
        "TCP port on which the health service alone is served, without TLS or token, for probes; 0 picks a free one.",
        0,
        65535,
    )
    metrics_host: str = _address("127.0.0.1", "Address of the Prometheus metrics.")
    metrics_port: int = _number(9464, "TCP port of the Prometheus metrics; 0 picks a free one.", 0, 65535)
    workers: int = _number(1, "Processes that share the port.", 1, 256)
    threads: int = _number(
        0, "Threads that compute big batches, in each worker; 0 divides the CPUs among the workers.", 0, 256
    )
    max_message_bytes: int = _number(64 * _MIB, "Largest message, in and out.", _KIB, 2**31 - 1, "bytes")
    # 64 MiB hold just under this many doubles. Of floats they hold twice as many, but the work is in doubles.
    max_rewards: int = _number(2**23, "Most rewards in one request.", 1, 2**31 - 1, "rewards")
    max_group_size: int = _number(2**20, "Most rewards in one group.", 1, 2**31 - 1, "rewards")
    max_groups: int = _number(2**20, "Most groups in one request.", 1, 2**31 - 1, "groups")
    max_estimate_k: int = _number(32, "Most values of k to estimate max@k for in one request.", 1, 4096, "values")
    max_concurrent_rpcs: int = _number(
        1024,
        "Calls and streams open at once in each worker; more are refused with RESOURCE_EXHAUSTED.",
        1,
        2**20,
        "calls",
    )
    max_bytes_in_flight: int | None = _number(
        None,
        "Size of the messages in each worker that wait for a thread, are computed, or whose answers were not taken"
        " yet, and as much again of those answers, from when their batch is let in; more are refused with"
        " RESOURCE_EXHAUSTED. By itself, 8 times `max_message_bytes`; where a sixth of `max_memory_bytes` is less,"
        " that, but never less than one message.",
        _KIB,
        2**40,
        "bytes",
    )
    max_rewards_in_flight: int | None = _number(
        None, "The same in rewards, until they are computed. By itself, 8 times `max_rewards`.", 1, 2**40, "rewards"
    )
    max_memory_bytes: int | None = _number(
        None,
        "Resident size at which a worker refuses calls before it reads them, with RESOURCE_EXHAUSTED; 0 never. By"
        " itself, four fifths of what the container may take, divided among the workers.",
        0,
        2**50,
        "bytes",
    )
    stream_in_flight: int = _number(
        16,
        "Messages of one stream being answered at once; further ones are not read until an answer has left.",
        1,
        4096,
        "messages",
    )
    max_connection_age_seconds: float = _number(
        0,
        "Ask clients to reconnect after about this long, which spreads load behind a headless service; 0 never does.",
        0,
        10**7,
        "seconds",
        float,
    )
    drain_seconds: float = _number(
        30, "After the first SIGTERM or SIGINT, how long accepted work may take to finish.", 0, 3600, "seconds", float
    )
    max_run_ids: int = _number(
        64,
        "Runs with metric series of their own, in each worker, first come first served; the rest share `other`.",
        0,
        2048,
        "runs",
    )
    run_idle_seconds: float = _number(
        7200,
        "A run that sends nothing for this long gives its metric series back; longer than a training step takes.",
        1,
        10**7,
        "seconds",
        float,
    )
    reflection: bool = _field(
        Setting(bool, True, "Let clients ask which services and messages there are. Not where `tokens` is set.")
    )
    server_info: bool = _field(
        Setting(bool, True, "Let callers ask for the version, the limits and the variants (`GetServerInfo`).")
    )
    log_level: str = _field(
        Setting(str, "info", "Least severe log line to write.", choices=("debug", "info", "warning", "error"))
    )

    def __post_init__(self) -> None:
        for name, needed in (
            ("tls_certificate", "tls_key"),
            ("tls_key", "tls_certificate"),
            ("tls_client_ca", "tls_key"),
            ("unix_socket_mode", "unix_socket"),
        ):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise InvalidSettings(f"{called(name)}: {getattr(self, name)} without {called(needed)}, which it needs")
        for name, held in (("max_bytes_in_flight", "max_message_bytes"), ("max_rewards_in_flight", "max_rewards")):
            if getattr(self, name) is not None and getattr(self, name) < getattr(self, held):
                raise InvalidSettings(
                    f"{called(name)}: {getattr(self, name)}; must be at least {called(held)} = {getattr(self, held)}"
                )
        if self.health_port and self.health_port == self.port and self.unix_socket is None:
            raise InvalidSettings(
                f"--health-port (PKPO_HEALTH_PORT): {self.health_port} is --port (PKPO_PORT); must be another"
            )
        if self.unix_socket is None:
            return
        if self.workers > 1:
            raise InvalidSettings(
                f"--workers (PKPO_WORKERS): {self.workers} with --unix-socket; must be 1, since processes cannot share"
                " a unix socket"
            )
        length = len(str(self.unix_socket.absolute()).encode())
        if length > LONGEST_SOCKET_PATH:
            raise InvalidSettings(
                f"--unix-socket (PKPO_UNIX_SOCKET): the path is {length} bytes long; must be at most"
                f" {LONGEST_SOCKET_PATH}"
            )

    def texts(self) -> dict[str, str]:
        """Every setting that is set, as `settings_of` reads it."""
        return {name: str(value) for name, value in asdict(self).items() if value is not None}


SETTINGS: Mapping[str, Setting] = {each.name: each.metadata["setting"] for each in fields(Settings)}


def read_settings(arguments: Sequence[str]) -> Settings:
    """The settings given by flags, then by PKPO_* environment variables, then by their defaults.

    Raises:
        InvalidSettings: a value is not of its type, or out of its bounds.
        SystemExit: --help, --version (0), or a flag that does not exist (2).
    """
    flags = {name: str(value) for name, value in vars(_parser().parse_args(arguments)).items()}
    variables = {name: os.environ[variable(name)] for name in SETTINGS if variable(name) in os.environ}
    named = {**{name: variable(name) for name in variables}, **{name: flag(name) for name in flags}}
    return settings_of({**variables, **flags}, named)


def settings_of(texts: Mapping[str, str], named: Mapping[str, str] | None = None) -> Settings:
    """The settings that texts say, by name.

    Args:
        texts: of some settings; the others have their defaults.
        named: what complaints call them, where that is not the name.

    Raises:
        InvalidSettings: as `read_settings`.
    """
    values: dict[str, Any] = {}
    complaints: list[str] = []
    for name, text in texts.items():
        try:
            values[name] = SETTINGS[name].value(text)
        except ValueError:
            given = text if len(text) <= 80 else text[:80] + "..."
            called = (named or {}).get(name, name)
            complaints.append(f"{called}: {given!r}; must be {SETTINGS[name].requirement}{_hint(text)}")
    if complaints:
        raise InvalidSettings("\n".join(complaints))
    return Settings(**values)


def flag(name: str) -> str:
    """The command line flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return ENVIRONMENT_PREFIX + name.upper()


def called(name: str) -> str:
    """A setting as complaints name it: its flag and its variable."""
    return f"{flag(name)} ({variable(name)})"


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The PKPO_* variables that nobody reads, each with the nearest one of a setting; "" where none is near."""
    known = {WORKER_VARIABLE, *map(variable, SETTINGS), *map(variable, CLIENT_VARIABLES)}
    return {
        name: _nearest(name)
        for name, value in sorted(environment.items())
        if name.startswith(ENVIRONMENT_PREFIX)
        and name not in known
        and not _OF_SERVICE.fullmatch(name)
        and not value.startswith(_LINKS)
    }


def _nearest(name: str) -> str:
    # Without what all of them begin with, by which all would be near.
    near = difflib.get_close_matches(name.removeprefix(ENVIRONMENT_PREFIX).lower(), SETTINGS, n=1)
    return variable(near[0]) if near else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        description=Settings.__doc__,
        epilog=f"Each flag is an environment variable too: {flag('max_rewards')} is {variable('max_rewards')}.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    for name, setting in SETTINGS.items():
        default = "" if setting.default is None else f" (default: {str(setting.default).lower()})"
        if setting.kind is bool:
            parser.add_argument(
                flag(name), action=argparse.BooleanOptionalAction, help=f"{setting.description}{default}"
            )
        else:
            metavar = f"{{{','.join(setting.choices)}}}" if setting.choices else setting.kind.__name__
            parser.add_argument(flag(name), metavar=metavar, help=f"{setting.description}{default}")
    return parser


def _hint(given: str) -> str:
    if given.startswith("["):
        return f" (without the brackets: {given.strip('[]')})"
    if given.startswith(_LINKS):
        return (
            " (Kubernetes sets such variables for a service named pkpo: set enableServiceLinks: false on the pod,"
            " or give the flag)"
        )
    return ""
