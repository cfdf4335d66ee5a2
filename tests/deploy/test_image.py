"""The server's image, really built and really started."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import reference
from core.samples import EXACT, kinds
from live_container import BASE, LiveContainer, LiveImage, Store, need_the_parts
from live_server import poll, sample_key
from pages import ROOT
from pkpo import __version__
from pkpo_client import Client, LocalClient
from pkpo_core import Variant

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
REVISION = "0123456789abcdef"
# In the container: a group worked by hand.
ASK = """
from pkpo_client import Client
with Client("localhost:50051") as pkpo:
    print(pkpo.transform([[1, 1, 0, 0]], k=2, variant="s")[0].tolist())
"""
# In the container: of all kernels, or of one, how many the cache had and had not.
COUNT = """
print(*(sum(sum(kernel._dispatcher.stats[at].values()) for kernel in kernels) for at in (1, 2)))
"""
COMPILE_ALL = f"""
from pkpo_core import compilation
compilation.compile_kernels()
kernels = compilation._kernels
{COUNT}
"""
COMPILE_ONE = f"""
from pkpo_core import compilation, kernels
kernels = [kernels.raise_statuses]
kernels[0].compile()
{COUNT}
"""
# In the container: the processors that kernels are kept for, which numba looks them up by.
LIST_PROCESSORS = """
import pathlib, pickle, numba.core.types
for index in pathlib.Path("/opt/pkpo/kernels").rglob("*.nbi"):
    with index.open("rb") as file:
        _, kept = pickle.load(file)
    for _, (triple, processor, features), _ in kept:
        print(processor, features)
"""
# In the place of a module of the trainer: who it is, what it may write, and what it finds.
REPORT = """
import importlib.metadata, json, os, sys
import pkpo_client, torch, trainer_example
writable = [place for place in ("/", "/opt/pkpo", "/runs", "/tmp") if os.access(place, os.W_OK)]
versions = {name: importlib.metadata.version(name) for name in ("pkpo", "torch")}
print(json.dumps({"user": os.getuid(), "writable": writable, "versions": versions, "arguments": sys.argv[1:]}))
sys.exit()
"""
READ_METRICS = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/metrics').read().decode())"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveImage]:
    need_the_parts()
    arguments = {"VERSION": __version__, "REVISION": REVISION}
    with LiveImage(tmp_path_factory.mktemp("image"), arguments) as built:
        yield built


@pytest.fixture(scope="module")
def trainer_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveImage]:
    """The trainer's, with next to nothing in the place of torch and of all else that it alone wants: gigabytes."""
    need_the_parts()
    folder = tmp_path_factory.mktemp("trainer")
    stand_ins, index = folder / "stand-ins", folder / "stand-ins" / "index" / "torch"
    index.mkdir(parents=True)
    wanted = [each for each in importlib.metadata.requires("pkpo") or [] if re.search("extra == .trainer.$", each)]
    for name in (re.split(r"[^\w-]", each)[0].replace("-", "_") for each in wanted):
        if name == "torch":
            wheel = write_wheel(index, name, re.search(r"torch==([\d.]+)", DOCKERFILE)[1])  # type: ignore[index]
            (index / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
        elif name != "pkpo":
            # The first that the trainer imports tells how far it came.
            write_wheel(stand_ins, name, "9999", REPORT if name == "datasets" else "")
    arguments = {"FULL_BASE": BASE, "TORCH_INDEX": f"file://{index.parent}"}
    with LiveImage(folder, arguments, "trainer", stand_ins) as built:
        yield built


def write_wheel(folder: Path, name: str, version: str, source: str = "") -> str:
    """A distribution of one module: its file's name."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    described = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", source)
        archive.writestr(f"{described}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{described}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{described}/RECORD", "")
    return wheel.name


@pytest.fixture
def container(image: LiveImage, tmp_path: Path) -> Iterator[LiveContainer]:
    """One as it is by default, that serves."""
    env = {"PKPO_LOG_LEVEL": "debug", "NUMBA_DEBUG_CACHE": "1", "PYTHONUNBUFFERED": "1"}
    with LiveContainer(image, tmp_path, env=env) as started:
        started.wait_for("serving")
        yield started


def metrics(container: LiveContainer) -> dict[str, float]:
    """The samples now, by `sample_key`."""
    families = text_string_to_metric_families(container.execute("python3", "-c", READ_METRICS).stdout)
    return {sample_key(sample.name, sample.labels): sample.value for family in families for sample in family.samples}


def test_the_linter_has_no_complaint() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("needs hadolint")
    linted = subprocess.run(["hadolint", ROOT / "deploy/Dockerfile"], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_build_is_sent_what_it_needs_and_nothing_else(tmp_path: Path) -> None:
    need_the_parts()
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    store = Store(tmp_path / "store")
    store.buildah("bud", "--file", tmp_path / "Dockerfile", "--tag", "context", ROOT)
    root = Path(store.buildah("mount", store.buildah("from", "--pull-never", "context")))
    sent = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    store.remove()
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    ours = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = ("proto/pkpo", "pkpo_core", "server/pkpo_server", "client/pkpo_client", "trainer_example")
    wanted = ("LICENSE", "README.md", "pyproject.toml", "deploy/requirements/", *(f"{folder}/" for folder in folders))
    assert sent == {path for path in ours if path.startswith(wanted)}


def test_what_the_image_says_of_itself(image: LiveImage) -> None:
    said = image.configuration
    assert said["User"] == "10001:10001"
    assert said["Entrypoint"] == ["pkpo-server"]  # without a shell, so that signals arrive
    assert not said["Cmd"]
    assert said["StopSignal"] == "SIGTERM"
    assert set(said["ExposedPorts"]) == {"50051/tcp", "50052/tcp", "9464/tcp"}
    assert said["Labels"]["org.opencontainers.image.version"] == __version__
    assert said["Labels"]["org.opencontainers.image.revision"] == REVISION
    assert said["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_nothing_is_in_it_that_only_building_needs(image: LiveImage) -> None:
    packages = next((image.root / "opt/pkpo/venv/lib").glob("python3*/site-packages"))
    names = {path.name for path in packages.iterdir()}
    assert "pkpo_server" in names
    assert not names & {"pip", "setuptools", "hatchling", "pytest"}
    assert not [path for path in packages.rglob("*") if path.name in ("tests", "__pycache__")]
    assert not list((image.root / "tmp").iterdir())
    print(f"\nthe image is {image.bytes / 1e6:.0f} MB larger than its base")


def test_a_container_serves(image: LiveImage, container: LiveContainer) -> None:
    """As it is, by its own health check; it answers, counts, and goes when told."""
    check = image.configuration["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    healthy = container.execute(*check[1:])
    assert (healthy.returncode, healthy.stderr) == (0, "")
    assert json.loads(container.execute("python3", "-c", ASK).stdout) == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3])
    assert metrics(container)['pkpo_rewards_total{run="none",variant="S"}'] == 4
    container.signal(image.configuration["StopSignal"].removeprefix("SIG"))
    assert container.wait() == 0
    assert container.log_lines("draining")
    assert container.log_lines("stopped")


def test_a_container_is_nobody_and_can_write_nothing(container: LiveContainer) -> None:
    """What the tests here start is confined as the chart confines it, or they would show little."""
    assert container.execute("id", "-u").stdout == "10001\n"
    assert "CapBnd:\t0000000000000000" in container.execute("cat", "/proc/1/status").stdout.splitlines()
    for place in ("/", "/tmp", "/opt/pkpo", "/opt/pkpo/kernels"):
        assert "Read-only file system" in container.execute("touch", f"{place}/new").stderr


def test_kernels_are_those_of_the_image(container: LiveContainer) -> None:
    """Compiled when it was built, for any processor of the architecture; otherwise every start would compile them."""
    hits, misses = map(int, container.execute("python3", "-c", COMPILE_ALL).stdout.splitlines()[-1].split())
    assert hits > 0
    assert misses == 0
    assert set(container.execute("python3", "-c", LIST_PROCESSORS).stdout.splitlines()) == {"generic "}
    prepared = container.log_lines("prepared")[0]["seconds"]
    print(f"\nserving after {container.seconds_until('serving'):.2f} s, of which {prepared} for kernels")


def test_kernels_for_another_processor_are_compiled_anew(container: LiveContainer) -> None:
    """A read-only cache that has them not is no error."""
    counted = container.execute("env", "NUMBA_CPU_FEATURES=+sse3", "python3", "-c", COMPILE_ONE)
    assert counted.returncode == 0
    assert "compiled kernels are not kept" in counted.stderr
    assert counted.stdout.splitlines()[-1] == "0 1"


def test_bytecode_is_that_of_the_image(image: LiveImage, tmp_path: Path) -> None:
    """Of all that is imported, but for the module that is started."""
    with LiveContainer(image, tmp_path, env={"PYTHONVERBOSE": "1"}) as container:
        poll(lambda: container.execute("python3", "-m", "pkpo_server.probe").returncode == 0, "SERVING")
        told = (tmp_path / "stderr").read_text().splitlines()
    assert [line for line in told if line.startswith("# /opt/pkpo/bytecode/") and " matches " in line]
    assert not [line for line in told if "stale" in line]
    compiled = [line for line in told if line.startswith("# code object from /")]
    assert not compiled


def test_answers_are_exact_and_have_the_bits_of_any_other_machine(image: LiveImage, tmp_path: Path) -> None:
    """Here kernels are compiled for this very processor, there for any; as a sidecar, over a socket of its own."""
    shared = tmp_path / "run"
    shared.mkdir()
    shared.chmod(0o777)
    env = {"PKPO_UNIX_SOCKET": "/run/pkpo/pkpo.sock"}
    with LiveContainer(image, tmp_path, env=env, shared={shared: "/run/pkpo"}) as container:
        container.wait_for("serving")
        with Client(f"unix:{shared}/pkpo.sock") as there, LocalClient() as here:
            for variant, n in itertools.product(Variant, (2, 3, 8, 17, 65, 257)):
                ks = reference.legal_ks(variant.value, n)
                rng = np.random.default_rng([n, *variant.value.encode()])
                for sample in kinds(variant).values() if ks else ():
                    rewards = np.array([sample(rng, n) for _ in ks])
                    asked: dict[str, Any] = {"k": ks, "variant": variant.value, "seed": n}
                    answered = there.transform(rewards, **asked)
                    assert answered.tobytes() == here.transform(rewards, **asked).tobytes(), (variant, n)
                    if variant is not Variant.PASSK_BOOTSTRAP and n < 65:
                        for group, k, advantages in zip(rewards.tolist(), ks, answered, strict=True):
                            assert reference.error(variant.value, group, k, advantages) < EXACT, (variant, group, k)


def test_the_trainer_s_image_starts_the_trainer(trainer_image: LiveImage, tmp_path: Path) -> None:
    """But for the libraries that others stand in for, of which the tests of the trainer have the real ones."""
    runs, scratch = tmp_path / "runs", tmp_path / "scratch"
    assert (trainer_image.root / "runs").stat().st_uid == 10001
    for folder in (runs, scratch):
        folder.mkdir()
        folder.chmod(0o777)
    with LiveContainer(
        trainer_image, tmp_path, "--server=server:50051", shared={runs: "/runs", scratch: "/tmp"}
    ) as container:
        assert container.wait() == 0, (tmp_path / "stderr").read_text()
    assert json.loads(container.output) == {
        "user": 10001,
        "writable": ["/runs", "/tmp"],
        "versions": {"pkpo": __version__, "torch": "2.13.0"},
        "arguments": ["--server=server:50051"],
    }


def test_several_workers_need_nothing_to_write_to_either(image: LiveImage, tmp_path: Path) -> None:
    with LiveContainer(image, tmp_path, "--workers", "2") as container:
        container.wait_for("serving")
        poll(lambda: len(container.log_lines("worker_serving")) == 2, "two workers")
        assert container.execute("python3", "-m", "pkpo_server.probe").returncode == 0
        assert metrics(container)["pkpo_workers"] == 2
        container.signal("TERM")
        assert container.wait() == 0


def test_a_setting_that_cannot_be_used_ends_it(image: LiveImage, tmp_path: Path) -> None:
    """With the status and the words of the command, so that a pod's last message says what to mend."""
    with LiveContainer(image, tmp_path, env={"PKPO_PORT": "tcp://10.0.0.1:50051"}) as container:
        assert container.wait() == 2
        assert "enableServiceLinks" in (tmp_path / "stderr").read_text()
