"""What the package offers: locked, light to import, typed, and the same on the three clients."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import pkpo_client
from pkpo_client import AsyncClient, Client, LocalClient, operations

CALLS = ["transform", "transform_detailed", "estimate", "server_info", "stream"]


def test_names() -> None:
    assert sorted(pkpo_client.__all__) == [
        "AsyncClient",
        "AsyncStream",
        "Cancelled",
        "Client",
        "ClientClosed",
        "DeadlineExceeded",
        "GroupStatus",
        "InvalidArgument",
        "Limits",
        "LocalClient",
        "LocalComputingMissing",
        "LocalStream",
        "MaxAtK",
        "Overloaded",
        "PermissionDenied",
        "PkpoError",
        "ServerError",
        "ServerInfo",
        "Stream",
        "TransformResult",
        "Unauthenticated",
        "Unavailable",
        "Unreachable",
        "VariantInfo",
        "Violation",
        "__version__",
        "schedules",
    ]
    assert all(hasattr(pkpo_client, name) for name in pkpo_client.__all__)
    assert pkpo_client.schedules.__all__ == ["Schedule", "constant", "cosine", "from_string", "linear", "step"]


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_members() -> None:
    assert public(Client) == {*CALLS, "close", "address"}
    assert public(AsyncClient) == public(Client)
    assert public(LocalClient) == {*CALLS, "close", "server_version"}
    for stream in (pkpo_client.Stream, pkpo_client.AsyncStream, pkpo_client.LocalStream):
        assert public(stream) == {"close"}


def test_arguments() -> None:
    options = ["variant", "scale", "k_policy", "seed", "run_id", "timeout"]
    named = {
        "transform": ["rewards", "k", "group_ids", "mask", *options],
        "transform_detailed": ["rewards", "k", "estimate_k", "group_ids", "mask", *options],
        "estimate": ["rewards", "k", "group_ids", "mask", "timeout"],
        "server_info": ["timeout"],
        "stream": ["batches", "k", "estimate_k", *options, "in_flight"],
    }
    for call, names in named.items():
        assert list(inspect.signature(getattr(Client, call)).parameters) == ["self", *names]
    of_client = ["address", "credentials", "token", "fallback", "variant", "scale", "k_policy", "run_id", "timeout"]
    assert list(inspect.signature(Client).parameters) == of_client
    assert list(inspect.signature(AsyncClient).parameters) == of_client
    assert list(inspect.signature(LocalClient).parameters) == of_client[4:]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [Client, AsyncClient, LocalClient])
def test_a_method_shows_the_signature_and_the_docstring_of_its_operation(kind: type, call: str) -> None:
    method, operation = getattr(kind, call), getattr(operations, call)
    assert method.__doc__ == operation.__doc__
    assert method.__name__ == call
    assert method.__qualname__ == f"{kind.__name__}.{call}"
    shown, written = inspect.signature(method), inspect.signature(operation)
    assert list(shown.parameters.values())[1:] == list(written.parameters.values())[1:]
    assert "Operation" not in str(shown.return_annotation)
    assert "Plan" not in str(shown.return_annotation)
    assert inspect.iscoroutinefunction(method) == (kind is AsyncClient and call != "stream")


def test_the_options_of_the_three_transforming_calls_are_the_same() -> None:
    shared = [inspect.signature(getattr(operations, call)).parameters for call in ("transform", "transform_detailed")]
    shared.append(inspect.signature(operations.stream).parameters)
    for name in ("k", "variant", "scale", "k_policy", "seed", "run_id", "timeout"):
        assert len({str(each[name]) for each in shared}) == 1
    for name in ("group_ids", "mask"):
        assert str(shared[0][name]) == str(shared[1][name])
    assert str(shared[1]["estimate_k"]) == str(shared[2]["estimate_k"])


def test_every_public_thing_is_documented() -> None:
    for name in pkpo_client.__all__:
        if name != "__version__":
            assert getattr(pkpo_client, name).__doc__, name
    for kind in (Client, AsyncClient, LocalClient):
        assert "Args:" in (kind.__doc__ or "")


def test_importing_is_light() -> None:
    script = (
        "import sys, pkpo_client\n"
        "heavy = {'numba', 'llvmlite', 'torch', 'jax', 'pandas', 'pyarrow', 'pkpo_core', 'pkpo_server', 'tqdm'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_client_without_numba_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'numba' else find(name, *rest)\n"
        "from pkpo_client import Client, LocalClient, LocalComputingMissing\n"
        "Client('localhost:1').close()\n"
        "for make in (LocalClient, lambda: Client('localhost:1', fallback='local')):\n"
        "    try:\n"
        "        make()\n"
        "    except LocalComputingMissing as error:\n"
        "        assert \"pip install 'pkpo[local]'\" in str(error)\n"
        "        assert isinstance(error, ImportError)\n"
        "    else:\n"
        "        sys.exit('made')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


CONSUMER = """
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from pkpo_client import AsyncClient, Client, LocalClient, MaxAtK, ServerInfo, Stream, TransformResult, schedules

rows: NDArray[np.float32] = np.zeros((2, 3), dtype=np.float32)


class Tensor:
    pass


def waiting(pkpo: Client, here: LocalClient, tensor: Tensor) -> None:
    assert_type(pkpo.transform(rows, k=8), NDArray[np.float32])
    assert_type(pkpo.transform(tensor, 8, variant="grpo"), Tensor)
    assert_type(here.transform([[1.0, 0.0]], 1), NDArray[np.float64])
    assert_type(here.transform([1, 0, 1], k=[1, 1], group_ids=["a", "b", "a"]), NDArray[np.float64])
    assert_type(here.transform([[1, 0]], k=[1], mask=[[True, True]]), NDArray[np.float64])
    assert_type(pkpo.transform_detailed(tensor, k=np.array([1, 2]), estimate_k=[1, 2]), TransformResult[Tensor])
    assert_type(pkpo.transform_detailed(tensor, k=schedules.constant(8)(0)).advantages, Tensor)
    assert_type(pkpo.estimate(rows, k=1), tuple[MaxAtK, ...])
    assert_type(pkpo.server_info(), ServerInfo)
    assert_type(pkpo.stream([rows], k=8), Stream[Any])
    with pkpo.stream(({"rewards": rows, "k": 2} for _ in range(3)), estimate_k=1) as stream:
        for result in stream:
            assert_type(result, TransformResult[Any])
    pkpo.transform(rows, kk=8)  # E: call-overload
    pkpo.transform(rows, variant=7)  # E: call-overload
    pkpo.estimate(rows)  # E: call-arg


async def awaiting(pkpo: AsyncClient, tensor: Tensor) -> None:
    assert_type(await pkpo.transform(tensor, k=8), Tensor)
    assert_type((await pkpo.transform_detailed([[1.0]], k=8)).advantages, NDArray[np.float64])
    async for result in pkpo.stream([tensor], k=8):
        assert_type(result, TransformResult[Any])
    await pkpo.close()
"""


def test_types_as_a_consumer_under_mypy_strict_sees_them(tmp_path: Path) -> None:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy")
    consumer = tmp_path / "consumer.py"
    consumer.write_text(CONSUMER)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(consumer)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    expected = {
        (number, line.split("# E: ")[1])
        for number, line in enumerate(CONSUMER.splitlines(), start=1)
        if "# E: " in line
    }
    found = {
        (int(line.split(":")[1]), line.rsplit("[", 1)[1].rstrip("]"))
        for line in done.stdout.splitlines()
        if ": error:" in line
    }
    assert found == expected, done.stdout + done.stderr
