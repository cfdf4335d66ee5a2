"""The example clients do what their page says, in every language, and conform.

Each is built and run by the commands of examples/clients/README.md, in a copy of what these need.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from conformance.conformance_pb2 import Case, Results, Suite
from faulty_proxy import FaultyProxy
from live_server import LiveServer, poll
from pages import ROOT, blocks, commands
from pkpo.v1 import reward_transform_pb2 as pb

CLIENTS = ROOT / "examples" / "clients"
PAGE = CLIENTS / "README.md"
WHAT_IT_NEEDS = ("examples/clients", "proto", "tests/conformance")
SUITE = Path("tests/conformance/suite.binpb")
RESULTS = Path("results.binpb")
# Longer than the five attempts of the clients' service config, with 0.1 s, 0.3 s, 0.9 s and 2.7 s between them.
RETRIES_SECONDS = 6
TOKEN = "a-token-for-the-example-clients"

STREAM = {
    1: [1 / 4, -1 / 12, -1 / 12, -1 / 12, -1.1 / 12, 1.7 / 12, -0.3 / 12, -0.3 / 12],
    2: [1 / 2, 0, 0, 0, 0, 1.7 / 6, 0.2 / 6, 0.2 / 6],
    4: [1, 0, 0, 0, 0, 1 / 2, 0, 0],
}
ADVANTAGES = STREAM[2]


@dataclass(frozen=True)
class Language:
    """A language with a client.

    Args:
        title: of its section on the page.
        folder: in which it is.
        programs: that build and run it.
        library: a file of the library it is built with, where its build does not fetch that.
    """

    title: str
    folder: str
    programs: tuple[str, ...]
    library: str = ""

    def missing(self) -> list[str]:
        """What of it is not there."""
        missing = [program for program in self.programs if shutil.which(program) is None]
        return missing + [file for file in [self.library] if file and not Path(file).exists()]


LANGUAGES = [
    Language("C++", "cpp", ("g++", "make", "pkg-config", "protoc", "grpc_cpp_plugin"), "/usr/include/grpcpp/grpcpp.h"),
    Language("Java", "java", ("javac", "make", "protoc", "grpc_java_plugin"), "/usr/share/java/grpc-netty.jar"),
    Language("Go", "go", ("go", "make", "protoc", "protoc-gen-go"), "/usr/share/gocode/src/google.golang.org/grpc"),
    Language("Node", "node", ("node", "npm")),
]


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    command: str
    status: int
    printed: str
    errors: str

    def told(self, name: str) -> str:
        """What it printed under a name."""
        told = re.findall(f"^{name}: (.*)$", self.printed, re.MULTILINE)
        assert len(told) == 1, self
        return str(told[0])

    def numbers(self, name: str) -> list[float]:
        """The numbers that it printed under a name."""
        return [float(number) for number in re.findall(r"[-+.\w]+", self.told(name))]

    def check(self) -> None:
        """Fails where the demonstration is not what it always is."""
        assert self.status == 0, self
        assert self.numbers("advantages") == pytest.approx(ADVANTAGES, abs=1e-6)
        for sequence, advantages in STREAM.items():
            assert self.numbers(f"stream {sequence}") == pytest.approx(advantages, abs=1e-6)
        assert self.told("refused").startswith("k[0]: is 5 for group 0 of n = 4;")
        assert self.told("deadline") == "DEADLINE_EXCEEDED"


class Checkout:
    """A copy of what the page's commands need, in which they run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in WHAT_IT_NEEDS:
            ignored = shutil.ignore_patterns("build", "node_modules", "__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)

    def run(self, command: str, address: str = "", env: Mapping[str, str] | None = None) -> Ran:
        """Runs a command of the page, with a server in the place of the page's."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PKPO_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command.replace("localhost:50051", address)],
            cwd=self.folder,
            env={**ours, "PATH": path, "no_proxy": "127.0.0.1", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        return Ran(command, done.returncode, done.stdout, done.stderr)


def page_commands(title: str) -> list[list[str]]:
    """The commands of each block in a section of the page."""
    lines = PAGE.read_text().splitlines()
    headings = {number: line.removeprefix("## ") for number, line in enumerate(lines, 1) if line.startswith("## ")}
    return [
        [*commands(block.text)]
        for block in blocks(PAGE)
        if block.language == "sh" and headings[max(number for number in headings if number < block.line)] == title
    ]


class Example:
    """The client of one language, built."""

    def __init__(self, checkout: Checkout, language: Language) -> None:
        self._checkout = checkout
        building, (self._demonstration, self._conformance) = page_commands(language.title)
        for command in building:
            built = checkout.run(command)
            assert built.status == 0, built

    def demonstration(self, address: str, env: Mapping[str, str] | None = None) -> Ran:
        """Runs what shows how it is used."""
        return self._checkout.run(self._demonstration, address, env)

    def by_default(self, seconds: int) -> Ran:
        """Runs it without an address, for so long at most."""
        return self._checkout.run(f"timeout {seconds} env {self._demonstration.removesuffix(' localhost:50051')}")

    def conformance(self, address: str, suite: Path = SUITE) -> Results:
        """What became of the calls of a suite."""
        called = self._checkout.run(self._conformance.replace(str(SUITE), str(suite)), address)
        assert called.status == 0, called
        return Results.FromString((self._checkout.folder / RESULTS).read_bytes())

    def judged(self) -> Ran:
        """What the page's command makes of that."""
        ((judging,),) = page_commands("Whether they are right")
        return self._checkout.run(judging)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("checkout") / "pkpo")


@pytest.fixture(scope="session")
def examples(checkout: Checkout) -> Iterator[dict[Language, Future[Example]]]:
    """All that can be built, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {language: pool.submit(Example, checkout, language) for language in LANGUAGES if not language.missing()}


@pytest.fixture(params=LANGUAGES, ids=lambda language: language.folder)
def example(request: pytest.FixtureRequest, examples: dict[Language, Future[Example]]) -> Example:
    if request.param not in examples:
        pytest.skip(f"needs {', '.join(request.param.missing())}")
    return examples[request.param].result()


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture
def proxy(server: LiveServer) -> Iterator[FaultyProxy]:
    made = FaultyProxy(server.address)
    try:
        yield made
    finally:
        made.stop()


def refusal(code: grpc.StatusCode, attempts: list[int], pushback: str = "") -> Any:
    """A fault that refuses a call, and writes down how often it was made before."""

    def refuse(context: grpc.ServicerContext) -> None:
        attempts.append(int(dict(context.invocation_metadata()).get("grpc-previous-rpc-attempts", 0)))
        if pushback:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
        context.abort(code, "refused by a test")

    return refuse


def test_the_demonstration_prints_what_its_page_says(example: Example, server: LiveServer) -> None:
    example.demonstration(server.address).check()


def test_the_suite_is_answered_right(example: Example, server: LiveServer) -> None:
    example.conformance(server.address)
    judged = example.judged()
    assert judged.status == 0, judged
    assert judged.printed in (ROOT / "docs" / "conformance.md").read_text()


def test_a_call_waits_for_a_server_that_is_not_there_yet(example: Example) -> None:
    with ThreadPoolExecutor(1) as pool:
        with socket.socket() as nobody:  # bound, and not listening: whoever connects is refused
            nobody.bind(("127.0.0.1", 0))
            host, port = nobody.getsockname()
            demonstration = pool.submit(example.demonstration, f"{host}:{port}")
            time.sleep(RETRIES_SECONDS)
            assert not demonstration.done(), demonstration.result()
        with LiveServer("--port", str(port)):
            demonstration.result().check()


def test_without_an_address_it_looks_on_this_machine(example: Example) -> None:
    """Where, as a rule, nobody is: it waits until it is stopped."""
    assert example.by_default(seconds=3).status in (0, 124)


def test_calls_refused_for_now_are_made_again(example: Example, proxy: FaultyProxy) -> None:
    attempts: list[int] = []
    proxy.faults["Transform"] = deque(
        [
            refusal(grpc.StatusCode.UNAVAILABLE, attempts),
            refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, attempts, pushback="20"),
            refusal(grpc.StatusCode.UNAVAILABLE, attempts),
        ]
    )
    example.demonstration(proxy.address).check()
    assert attempts == [0, 1, 2]


def test_a_call_is_not_made_again_where_the_service_says_so(example: Example, proxy: FaultyProxy) -> None:
    attempts: list[int] = []
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, attempts, pushback="-1")])
    assert example.demonstration(proxy.address).status != 0
    assert proxy.calls["Transform"] == len(attempts) == 1


def test_a_large_batch_is_sent_again(example: Example, proxy: FaultyProxy, tmp_path: Path) -> None:
    rewards = pb.DoubleValues(values=[0.0, 1.0] * 100_000)
    request = pb.TransformRequest(groups=pb.RewardGroups(f64=rewards, group_size=2), k=[1])
    suite = tmp_path / "large.binpb"
    suite.write_bytes(Suite(cases=[Case(name="large", transform=request)]).SerializeToString())
    attempts: list[int] = []
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.UNAVAILABLE, attempts)])
    (result,) = example.conformance(proxy.address, suite).results
    assert result.outcome.transform.f64.values == [-0.5, 0.5] * 100_000
    assert attempts == [0]


def test_a_stream_is_made_again_until_it_is_answered(example: Example, proxy: FaultyProxy) -> None:
    def refused_at_first(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        if proxy.calls["TransformStream"] == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "refused by a test")
        yield from proxy.pass_on(requests, context)

    proxy.stream = refused_at_first
    example.demonstration(proxy.address).check()
    assert proxy.calls["TransformStream"] == 2


def test_a_stream_that_was_answered_is_not_made_again(example: Example, proxy: FaultyProxy) -> None:
    def cut(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield next(proxy.pass_on(requests, context))
        context.abort(grpc.StatusCode.UNAVAILABLE, "cut by a test")

    proxy.stream = cut
    assert example.demonstration(proxy.address).status != 0
    assert proxy.calls["TransformStream"] == 1


def test_tls_and_a_token(example: Example, tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key, tokens, ca = (tmp_path / name for name in ("tls.crt", "tls.key", "tokens", "ca.crt"))
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    tokens.write_text(f"{TOKEN}\n")
    ca.write_bytes(authority.cert_pem.bytes())
    flags = "--tls-certificate", str(certificate), "--tls-key", str(key), "--tokens", str(tokens)
    with LiveServer(*flags, wait=False) as secured:
        poll(lambda: secured.log_lines("serving"), "line with event serving", 60)
        example.demonstration(secured.address, {"PKPO_CA": str(ca), "PKPO_TOKEN": TOKEN}).check()
        nameless = example.demonstration(secured.address, {"PKPO_CA": str(ca)})
    assert nameless.status != 0


def test_stubs_for_any_other_language(checkout: Checkout) -> None:
    missing = [program for program in ("protoc", "grpc_ruby_plugin") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    ((*making_stubs,),) = page_commands("Any other language")
    for command in making_stubs:
        made = checkout.run(command)
        assert made.status == 0, made


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.folder)
def test_each_is_a_page_of_code(language: Language) -> None:
    (client,) = [
        file for file in (CLIENTS / language.folder).iterdir() if file.stem.lower() == "client" and file.is_file()
    ]
    assert len(client.read_text().splitlines()) < 120


def test_the_page_names_each_folder() -> None:
    folders = {path.name for path in CLIENTS.iterdir() if path.is_dir()} - {"protos"}
    assert folders == {language.folder for language in LANGUAGES}
