"""The wire contract is linted, only grows, and is what the stubs were made from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from pkpo.v1 import reward_transform_pb2 as pb

ROOT = Path(__file__).parents[2]
CONTRACT = "pkpo/v1/reward_transform.proto"

BUF = shutil.which("buf", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
needs_buf = pytest.mark.skipif(BUF is None, reason="needs buf")


def buf(*arguments: str, cwd: Path = ROOT / "proto") -> subprocess.CompletedProcess[str]:
    assert BUF is not None
    return subprocess.run([BUF, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def module(folder: Path, contract: str) -> Path:
    """A buf module that holds a contract."""
    (folder / CONTRACT).parent.mkdir(parents=True)
    (folder / CONTRACT).write_text(contract)
    shutil.copy(ROOT / "proto" / "buf.yaml", folder)
    return folder


def earlier_contracts() -> list[str]:
    """Every version of the contract in history."""
    log = subprocess.run(
        ["git", "log", "--format=%H", "--", f"proto/{CONTRACT}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [
        subprocess.run(
            ["git", "show", f"{commit}:proto/{CONTRACT}"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for commit in log.stdout.split()
    ]


@needs_buf
def test_lint_is_clean() -> None:
    result = buf("lint")
    assert result.returncode == 0, result.stdout


@needs_buf
def test_nothing_in_history_is_broken(tmp_path: Path) -> None:
    contracts = earlier_contracts()
    if not contracts:
        pytest.skip("needs the project's git history")
    for number, contract in enumerate(contracts):
        earlier = module(tmp_path / str(number), contract)
        result = buf("breaking", "--against", str(earlier))
        assert result.returncode == 0, result.stdout


@needs_buf
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("uint64 seed = 7;", "uint64 seed = 17;"),
        ("uint64 seed = 7;", ""),
        ("repeated uint32 k = 3;", "uint32 k = 3;"),
        ("VARIANT_GRPO = 14;", ""),
        ("rpc Estimate(EstimateRequest) returns (EstimateResponse);", ""),
    ],
)
def test_a_breaking_change_is_seen(tmp_path: Path, before: str, after: str) -> None:
    contract = (ROOT / "proto" / CONTRACT).read_text()
    assert before in contract
    changed = module(tmp_path / "changed", contract.replace(before, after))
    result = buf("breaking", "--against", str(ROOT / "proto"), cwd=changed)
    assert result.returncode == 100, result.stdout + result.stderr


def test_the_contract_imports_nothing() -> None:
    assert list(pb.DESCRIPTOR.dependencies) == []


def test_the_stubs_hold_every_field_of_the_contract() -> None:
    """A glance that works without the generator; the gate regenerates the stubs and compares them whole."""
    contract = re.sub(r"//.*", "", (ROOT / "proto" / CONTRACT).read_text())
    stated = {(name, int(number)) for name, number in re.findall(r"(\w+) = (\d+);", contract)}
    file = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    fields = {(field.name, field.number) for message in file.message_type for field in message.field}
    values = {(value.name, value.number) for enum in file.enum_type for value in enum.value}
    assert fields | values == stated
