"""Settings: from flags, then the environment, then defaults; what cannot be used is said in one line each."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

import pkpo
from pkpo_client.integrations.objective import Objective
from pkpo_server.settings import (
    CLIENT_VARIABLES,
    SETTINGS,
    InvalidSettings,
    flag,
    read_settings,
    settings_of,
    unknown_variables,
    variable,
)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PKPO_")]:
        monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = read_settings([])
    assert (settings.host, settings.port, settings.metrics_port, settings.workers) == ("127.0.0.1", 50051, 9464, 1)
    assert settings.max_message_bytes == 64 * 2**20
    assert (settings.max_group_size, settings.max_estimate_k) == (2**20, 32)


def other_value(name: str) -> Any:
    setting = SETTINGS[name]
    if name == "unix_socket":
        return "/tmp/pkpo.sock"
    if name == "unix_socket_mode":
        return "0660"
    if name == "log_level":
        return "error"
    if name in ("max_bytes_in_flight", "max_rewards_in_flight"):
        return 2**30  # no less than one request
    if setting.kind is bool:
        return not setting.default
    if setting.kind in (int, float):
        return setting.kind((setting.default or 0) + 1)
    return "192.0.2.1"


# What some settings are refused without.
COMPANIONS = {
    "unix_socket_mode": {"unix_socket": "/tmp/pkpo.sock"},
    "tls_certificate": {"tls_key": "tls.key"},
    "tls_key": {"tls_certificate": "tls.crt"},
    "tls_client_ca": {"tls_certificate": "tls.crt", "tls_key": "tls.key"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_flag_and_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = other_value(name)
    for companion, value in COMPANIONS.get(name, {}).items():
        monkeypatch.setenv(variable(companion), value)
    arguments = [flag(name), str(wanted)]
    if isinstance(wanted, bool):
        arguments = [flag(name)] if wanted else [f"--no-{flag(name)[2:]}"]
    assert str(getattr(read_settings(arguments), name)) == str(wanted)
    monkeypatch.setenv(variable(name), str(wanted))
    assert str(getattr(read_settings([]), name)) == str(wanted)


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKPO_PORT", "1111")
    assert read_settings(["--port", "2222"]).port == 2222
    assert read_settings(["--port=3333"]).port == 3333


def test_every_number_has_bounds_and_every_setting_a_description() -> None:
    for name, setting in SETTINGS.items():
        assert setting.description, name
        if setting.kind in (int, float):
            assert setting.default is None or setting.least <= setting.default <= setting.greatest, name
            assert setting.least < setting.greatest, name


@pytest.mark.parametrize(("said", "meant"), [("true", True), ("1", True), ("No", False), ("off", False)])
def test_what_is_on_or_off_may_be_said_in_several_ways(said: str, meant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKPO_REFLECTION", said)
    assert read_settings([]).reflection is meant


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_survive_the_way_to_a_worker(name: str) -> None:
    settings = settings_of({name: str(other_value(name)), **COMPANIONS.get(name, {})})
    assert settings_of(settings.texts()) == settings


BAD = [
    (["--port", "70000"], {}, ["--port", "'70000'", "0 to 65535"]),
    (["--port=-1"], {}, ["--port", "'-1'", "0 to 65535"]),
    (["--workers", "none"], {}, ["--workers", "'none'", "a whole number", "1 to 256"]),
    (["--workers", "1.5"], {}, ["--workers", "'1.5'"]),
    (["--drain-seconds", "nan"], {}, ["--drain-seconds", "'nan'", "a number from 0 to 3600"]),
    (["--drain-seconds", "inf"], {}, ["--drain-seconds", "'inf'"]),
    (["--log-level", "loud"], {}, ["--log-level", "'loud'", "debug", "error"]),
    (["--host", ""], {}, ["--host", "''"]),
    (["--host", "[::1]"], {}, ["--host", "'[::1]'", "without the brackets: ::1"]),
    ([], {"PKPO_METRICS_HOST": "[::]"}, ["PKPO_METRICS_HOST", "without the brackets: ::)"]),
    (["--unix-socket", ""], {}, ["--unix-socket", "''", "a path"]),
    ([], {"PKPO_PORT": ""}, ["PKPO_PORT", "''", "0 to 65535"]),
    ([], {"PKPO_MAX_REWARDS": "0"}, ["PKPO_MAX_REWARDS", "'0'", "from 1 to"]),
    ([], {"PKPO_REFLECTION": "perhaps"}, ["PKPO_REFLECTION", "'perhaps'", "true or false"]),
    ([], {"PKPO_PORT": "tcp://10.0.0.1:50051"}, ["PKPO_PORT", "enableServiceLinks"]),
    (["--unix-socket", "/tmp/s", "--workers", "2"], {}, ["--workers", "2", "must be 1"]),
    (["--unix-socket", "/" + "x" * 120], {}, ["--unix-socket", "121", "107"]),
    (["--unix-socket-mode", "660"], {}, ["--unix-socket-mode", "660", "without --unix-socket"]),
    (
        ["--unix-socket", "/tmp/s", "--unix-socket-mode", "rw-"],
        {},
        ["--unix-socket-mode", "'rw-'", "three octal digits"],
    ),
    (["--unix-socket", "/tmp/s", "--unix-socket-mode", "668"], {}, ["--unix-socket-mode", "'668'"]),
    (["--run-idle-seconds", "0"], {}, ["--run-idle-seconds", "'0'", "from 1 to"]),
    (["--tls-key", "k"], {}, ["--tls-key", "without --tls-certificate (PKPO_TLS_CERTIFICATE)"]),
    ([], {"PKPO_TLS_CERTIFICATE": "c"}, ["PKPO_TLS_CERTIFICATE", "without --tls-key"]),
    (["--tls-client-ca", "a"], {}, ["--tls-client-ca", "without --tls-key"]),
    (["--health-port", "9", "--port", "9"], {}, ["--health-port", "9 is --port"]),
    (["--health-port", "65536"], {}, ["--health-port", "0 to 65535"]),
    (["--port", "x" * 1000], {}, ["--port", "..."]),
]


@pytest.mark.parametrize(("arguments", "environment", "said"), BAD)
def test_bad_values_are_said(
    arguments: list[str], environment: dict[str, str], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as caught:
        read_settings(arguments)
    for words in said:
        assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_variables_that_nobody_reads_are_named_with_the_nearest_that_somebody_does() -> None:
    mistyped = {"PKPO_TOKEN": "PKPO_TOKENS", "PKPO_WORKRES": "PKPO_WORKERS", "PKPO_QQQQ": "", "PKPO_": ""}
    # Those of services named pkpo, pkpo-trainer and pkpo-metrics.
    links = {
        "PKPO_SERVICE_HOST": "10.0.0.1",
        "PKPO_SERVICE_PORT": "50051",
        "PKPO_SERVICE_PORT_GRPC": "50051",
        "PKPO_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "PKPO_PORT_50051_TCP_PROTO": "tcp",
        "PKPO_PORT_50051_TCP_PORT": "50051",
        "PKPO_PORT_50051_TCP_ADDR": "10.0.0.1",
        "PKPO_TRAINER_PORT": "tcp://10.0.0.2:80",
        "PKPO_METRICS_SERVICE_HOST": "10.0.0.3",
        "PKPO_METRICS_PORT_9464_TCP_ADDR": "10.0.0.3",
    }
    known = dict.fromkeys([*map(variable, SETTINGS), *map(variable, CLIENT_VARIABLES)], "1")
    others = {"PATH": "/bin", "PKPOTOKEN": "x", "pkpo_token": "x"}
    assert unknown_variables({**dict.fromkeys(mistyped, "x"), **links, **known, **others}) == mistyped


def test_the_client_s_variables_are_those_of_its_objective() -> None:
    assert {*CLIENT_VARIABLES} == {each.name for each in fields(Objective)}


def test_every_bad_value_is_said_at_once() -> None:
    with pytest.raises(InvalidSettings) as caught:
        read_settings(["--port", "x", "--workers", "0", "--max-groups", "-3"])
    assert len(str(caught.value).splitlines()) == 3


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pkpo_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--port", "x"], {}), (["--nothing"], {}), ([], {"PKPO_WORKERS": "0"}), (["--por", "1"], {})],
)
def test_the_command_exits_with_2_and_no_traceback(arguments: list[str], environment: dict[str, str]) -> None:
    done = run(*arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("pkpo-server: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_and_version() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in SETTINGS:
        assert flag(name) in done.stdout
    assert variable("max_rewards") in done.stdout
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"pkpo-server {pkpo.__version__}\n")


def test_settings_and_the_supervisor_load_neither_grpc_nor_the_kernels() -> None:
    code = "import sys, pkpo_server.main, pkpo_server.workers; print({'grpc', 'numba', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "set()\n"
