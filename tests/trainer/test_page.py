"""docs/training.md does what it says: its runs are made as they are written, with fewer steps and prompts.

Blocks that begin with `# needs` want weights, a GPU or several: of those, every command of the trainer is read by the
trainer's own parser, and every file they name is there.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from live_server import LiveServer
from pages import ROOT, blocks, check_page, commands, run_command
from trainer_example.configuration import configuration_of

from .conftest import environment

PAGE = ROOT / "docs" / "training.md"
FEWER = ["--steps", "2", "--prompts_per_step", "8", "--evaluation_prompts", "8", "--warm_start_steps", "2"]


def is_of_the_trainer(command: str) -> bool:
    return "trainer_example" in shlex.split(command)


def wanting(text: str) -> bool:
    return text.startswith("# needs")


def options_of(command: str) -> list[str]:
    """What a command gives to the trainer."""
    arguments = shlex.split(command)
    return arguments[arguments.index("trainer_example") + 1 :]


def test_runs_run(server: LiveServer, tmp_path: Path) -> None:
    ran: list[str] = []

    def run(command: str, live: LiveServer) -> str:
        if not is_of_the_trainer(command):
            return run_command(command, live)
        program = shlex.split(command)[: shlex.split(command).index("trainer_example") + 1]
        options = [option.replace("runs/", f"{tmp_path}/") for option in options_of(command)]
        if "tiny-gemma2" in command or "--model" not in command:
            options += ["--warm_start_dir", str(tmp_path / "warm-starts")]
        if "--help" not in options:
            fewer = FEWER if "arc_agi_1_easy" not in command else FEWER[:-2]  # nothing demonstrates it
            options += [*fewer, "--server", live.address]
        path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        done = subprocess.run([*program, *options], cwd=ROOT, env={**environment(), **path}, capture_output=True,
                              text=True, timeout=250, check=False)  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran.append(command)
        return done.stdout

    page = tmp_path / PAGE.name
    text = PAGE.read_text()
    for block in blocks(PAGE):
        if wanting(block.text):
            text = text.replace(f"```sh\n{block.text}```", "")
    page.write_text(text)
    check_page(page, server, run)
    assert len(ran) >= 4


@pytest.mark.parametrize(
    "block", [block for block in blocks(PAGE) if wanting(block.text)], ids=lambda block: str(block.line)
)
def test_runs_that_want_more_than_this_machine_are_understood(block: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text: str = block.text  # type: ignore[attr-defined]
    for command in commands(text):
        assert shlex.split(command)[0] in {"accelerate", "python", "hf", "pip", "export", "pkpo-server", "make"}, (
            command
        )
        for file in re.findall(r"trainer_example/\S+\.yaml", command):
            assert (ROOT / file).exists()
        if is_of_the_trainer(command):
            configuration_of(options_of(command))
