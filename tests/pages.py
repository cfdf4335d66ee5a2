"""The blocks of a page of documentation, and how each is run.

Blocks of `python` run one after the other, with a real server in the place of localhost:50051; the `output` block
behind one is what it prints. Commands in `sh` blocks run too; `make` targets are run by the gate, and installing is
what got the tests here.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_server import LiveServer

ROOT = Path(__file__).parents[1]
ILLUSTRATIONS = {"text", "output", "promql"}
# tests/deploy runs these, and renders values.
OF_A_CLUSTER = ("helm ", "kubectl ")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(text: str) -> Iterator[str]:
    """The commands of a block, without comments; a line that ends in a backslash goes on."""
    for line in text.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s+)#.*", "", line).strip()
        if command:
            yield command


def run_python(source: str, namespace: dict[str, Any], server: LiveServer) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source.replace("localhost:50051", server.address), "block", "exec"), namespace)
    return printed.getvalue()


# Of make: what made the environment of these tests, and what writes down what `make bench` measures.
RUN_OTHERWISE = ("setup", "performance")


def run_command(command: str, server: LiveServer) -> str:
    program, *arguments = shlex.split(command)
    if program == "make":
        gate = re.sub("#.*", "", (ROOT / ".ci" / "run").read_text())
        assert arguments[0] in RUN_OTHERWISE or re.search(rf"(make|kept) {arguments[0]}(?![\w-])", gate)
        return ""
    if (program, *arguments[:1]) == ("pip", "install"):
        extras = set(re.findall(r"\[([\w,]+)\]", command))
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for e in extras for extra in e.split(","))
        return ""
    if program == "pkpo-server" and "--help" not in arguments:
        return started_server(arguments)
    command = command.replace("localhost:50051", server.address).replace("localhost:9464", server.metrics_address)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        env={"PATH": path, "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def started_server(arguments: list[str]) -> str:
    """Runs a server as the page does, but on free ports."""
    with LiveServer(*re.sub(r"(--(?:metrics-)?port) \d+", r"\1 0", " ".join(arguments)).split()) as live:
        assert live.health()
    assert live.process.returncode == 0
    return ""


def check_page(page: Path, server: LiveServer, run: Callable[[str, LiveServer], str] = run_command) -> None:
    """Runs every block of a page; fails where one does, or prints something else than the page says."""
    namespace: dict[str, Any] = {}
    printed = ""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            printed = run_python(block.text, namespace, server)
        elif block.language == "sh":
            printed = "".join(
                run(command, server) for command in commands(block.text) if not command.startswith(OF_A_CLUSTER)
            )
        elif block.language == "output":
            assert printed == block.text, where
        else:
            assert block.language in {*ILLUSTRATIONS, "yaml"}, (
                f"{where}: nothing runs a block of {block.language or 'no language'}"
            )
