"""Servers with hosts of their own come, go and are cut off, and no call fails: the client alone, and behind proxies."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fleet.load import Load
from fleet.network import Host, Network, missing_part
from fleet.proxies import ENVOY, NGINX, Kind, Proxy
from fleet.servers import HostedServer, answered, running, with_a_stream
from live_server import poll

NAME = "pkpo-headless"
# Short, so that clients look for new servers while a test waits.
FLAGS = ("--max-connection-age-seconds", "3")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    missing = missing_part()
    if missing is not None:
        pytest.skip(f"needs {missing}")
    with Network(tmp_path) as made:
        yield made


def hosts_of(*servers: HostedServer) -> list[Host]:
    return [server.host for server in servers]


def goes_on(*loads: Load, number: int = 40) -> None:
    """Returns once each has made so many further calls, none of which failed."""
    reports = [load.report() for load in loads]
    for load, since in zip(loads, reports, strict=True):
        poll(functools.partial(load.has_gone_on, since, number), "further calls", 60)


def gets_calls(server: HostedServer) -> None:
    """Returns once it has answered some."""
    poll(lambda: answered(server) >= 40, f"calls at {server.address}", 60)


def test_servers_are_found_and_left_under_load(network: Network) -> None:
    one, two, three, four, five = (HostedServer(network.host(), *FLAGS) for _ in range(5))
    with ExitStack() as stack:
        stack.enter_context(running(one, two))
        network.publish(NAME, hosts_of(one, two))
        load = stack.enter_context(Load(f"dns:///{NAME}:50051", network.host().within))
        goes_on(load)

        stack.enter_context(running(three))
        network.publish(NAME, hosts_of(one, two, three))
        gets_calls(three)

        network.publish(NAME, hosts_of(two, three))
        assert one.stop() == 0
        goes_on(load)

        # All that the client knows are replaced at once, as by a rollout that is faster than names are looked up.
        stack.enter_context(running(four, five))
        network.publish(NAME, hosts_of(four, five))
        assert two.stop() == three.stop() == 0
        gets_calls(four)
        gets_calls(five)
        goes_on(load)
        load.end()


def test_a_host_that_is_cut_off_fails_no_call(network: Network, tmp_path: Path) -> None:
    """Nor does it behind the documented proxies, whose configurations are taken as they are."""
    servers = tuple(HostedServer(network.host()) for _ in range(3))
    with ExitStack() as stack:
        stack.enter_context(running(*servers))
        network.publish(NAME, hosts_of(*servers))
        for number, server in enumerate(servers, start=1):
            network.publish(f"pkpo-{number}", [server.host])

        def behind(kind: Kind) -> str:
            host = network.host()
            # As docs/proxies.md asks for; Envoy would notice without.
            host.run("sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_retries2")
            stack.enter_context(Proxy(kind, tmp_path / kind.name, kind.configuration, host.within))
            return f"{host.address}:50051"

        def load(address: str) -> Load:
            started = stack.enter_context(Load(address, network.host().within))
            goes_on(started)
            return started

        through_nginx = load(behind(NGINX))
        # It has the longest way to find out that its stream leads nowhere.
        unlucky = with_a_stream(servers)
        loads = (through_nginx, load(behind(ENVOY)), load(f"dns:///{NAME}:50051"))
        unlucky.host.cut_off()
        goes_on(*loads)
        for each in loads:
            each.end()
