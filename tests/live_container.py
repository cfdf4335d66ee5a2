"""Images built by buildah from our Dockerfile, and containers started from them by runc, as nodes start them.

No registry is asked. A base made by debootstrap, of this machine's own release and from where its packages come from,
stands in for the public ones. It is kept in the cache folder, since it takes a minute.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from live_server import STOP_SECONDS, poll
from pages import ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pkpo-ci" / "image-base"
# python3-venv and python3-pip are what a Dockerfile may expect of a Python image.
IN_THE_BASE = ("ca-certificates", "python3", "python3-pip", "python3-venv")
BASE = "localhost/base"


def need_the_parts() -> None:
    """Skips the test where images cannot be built or started."""
    for part in ("buildah", "debootstrap", "runc", "apt-get"):
        if shutil.which(part) is None:
            pytest.skip(f"needs {part}")
    if os.geteuid() != 0:
        pytest.skip("needs root, to build and start containers")


def run(*command: str | Path) -> str:
    """What a command writes to stdout. Raises RuntimeError with what it wrote to stderr where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} {command[1]} ... exited with {done.returncode}:\n{done.stderr[-8000:]}")
    return done.stdout


class Store:
    """Where images and their layers are.

    Args:
        folder: the place.
        below: one whose images are seen as well, and only read.
    """

    def __init__(self, folder: Path, below: Path | None = None) -> None:
        self._folder = folder
        # Overlays where the kernel has them: the other driver copies every layer.
        driver = "overlay" if "\toverlay\n" in Path("/proc/filesystems").read_text() else "vfs"
        self._options: list[str | Path] = ["--root", folder / "root", "--runroot", folder / "run"]
        self._options += ["--storage-driver", driver]
        if below is not None:
            self._options += ["--storage-opt", f"{driver}.imagestore={below / 'root'}"]

    def buildah(self, *arguments: str | Path) -> str:
        return run("buildah", *self._options, *arguments).strip()

    def build(self, *arguments: str | Path) -> None:
        """Like `buildah bud`, and again where buildah could not make the sealed copy of itself that it runs steps by.

        The kernel refuses the seal while anything holds a page of the copy, as it does itself when it moves pages.
        """
        for last in (False, False, True):
            try:
                self.buildah("bud", *arguments)
                return
            except RuntimeError as error:
                if last or "sealing memfd copy: Device or resource busy" not in str(error):
                    raise

    def remove(self) -> None:
        self.buildah("rm", "--all")
        shutil.rmtree(self._folder)


def base_store() -> Path:
    """The folder of a store that has `BASE`."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    folder = CACHE / "-".join((suite, platform.machine(), *IN_THE_BASE))
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=CACHE, prefix="incomplete-"))
        tree = made / "tree"
        run("debootstrap", "--variant=minbase", f"--include={','.join(IN_THE_BASE)}", suite, tree, _mirror(suite))
        for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(tree / name)
        store = Store(made)
        container = store.buildah("from", "scratch")
        store.buildah("add", container, tree, "/")
        store.buildah("commit", "--rm", container, BASE)
        shutil.rmtree(tree)
        made.rename(folder)
    return folder


def _mirror(suite: str) -> str:
    """Where this machine's own packages of a release come from."""
    form = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    for line in run("apt-get", "indextargets", "--format", form, "Identifier: Packages").splitlines():
        codename, component, address = line.split()
        if (codename, component) == (suite, "main"):
            return address
    raise RuntimeError(f"apt knows no packages of {suite}")


def _pip_settings() -> tuple[str, list[Path]]:
    """This machine's settings of pip as one file, and the files that they name."""
    settings: dict[str, str] = {}
    # Those of the environment come first in the list, and win.
    for line in reversed(run(sys.executable, "-m", "pip", "config", "list").splitlines()):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = ast.literal_eval(value)
    words = itertools.chain.from_iterable(value.split() for value in settings.values())
    # The files of an index lie beside it.
    named = [Path(word[7:]).parent if word.startswith("file://") else Path(word) for word in words if "/" in word]
    text = "".join(f"{name} = {value.replace(chr(10), chr(10) + '  ')}\n" for name, value in settings.items())
    return f"[global]\n{text}", sorted({path for path in named if path.is_absolute() and path.exists()})


class LiveImage:
    """An image of the Dockerfile, with a store of its own.

    Args:
        folder: for the store and the containers.
        arguments: build arguments.
        target: the stage that is built; the last unless it is named.
        stand_ins: a folder of wheels that are installed before those of the same names which pip would find.
    """

    def __init__(
        self, folder: Path, arguments: Mapping[str, str], target: str = "", stand_ins: Path | None = None
    ) -> None:
        self._folder = folder
        self._arguments = arguments
        self._target = target
        self._stand_ins = stand_ins
        self._store: Store
        self.root: Path

    def __enter__(self) -> LiveImage:
        self._store = Store(self._folder / "store", base_store())
        settings, files = _pip_settings()
        if self._stand_ins is not None:
            settings += f"[install]\nfind-links = {self._stand_ins}\n"
            files.append(self._stand_ins)
        secret = self._folder / "pip.conf"
        secret.write_text(settings)
        options: list[str | Path] = ["--isolation", "chroot", "--format", "docker", "--secret", f"id=pip,src={secret}"]
        for path in files:
            options += ["--volume", f"{path}:{path}:ro"]
        for name, value in {"BASE": BASE, **self._arguments}.items():
            options += ["--build-arg", f"{name}={value}"]
        if self._target:
            options += ["--target", self._target]
        self._store.build(*options, "--file", ROOT / "deploy/Dockerfile", "--tag", "pkpo", ROOT)
        container = self._store.buildah("from", "--pull-never", "pkpo")
        self.root = Path(self._store.buildah("mount", container))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.remove()

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """What the image says of itself."""
        said: dict[str, Any] = json.loads(self._store.buildah("inspect", "--type", "image", "pkpo"))
        found: dict[str, Any] = said["Docker"]["config"]
        return found

    @property
    def bytes(self) -> int:
        """What it is larger than its base."""
        return sum(path.lstat().st_size for path in (self.root / "opt/pkpo").rglob("*"))


class LiveContainer:
    """A container as a careful cluster would start it: nobody, without a capability, from a root file system that can
    only be read. It has a network of its own, where there is nothing else.

    Args:
        image: what is started.
        folder: for its files; a new one.
        arguments: added to the entrypoint.
        env: added to the image's environment.
        shared: folders of this machine that it may write to, and where it has them.
    """

    def __init__(
        self,
        image: LiveImage,
        folder: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        shared: Mapping[Path, str] | None = None,
    ) -> None:
        self._folder = folder
        self._runc = ["runc", "--root", str(folder / "runc")]
        self._name = f"pkpo-{os.getpid()}-{folder.name}"
        run("runc", "spec", "--bundle", folder)
        bundle = json.loads((folder / "config.json").read_text())
        said = image.configuration
        uid, _, gid = said["User"].partition(":")
        bundle["root"] = {"path": str(image.root), "readonly": True}
        bundle["process"] |= {
            "args": [*said["Entrypoint"], *arguments],
            "env": [*said["Env"], *(f"{name}={value}" for name, value in (env or {}).items())],
            "user": {"uid": int(uid), "gid": int(gid)},
            "cwd": said.get("WorkingDir") or "/",
            "capabilities": {},
            "terminal": False,
        }
        for path, place in (shared or {}).items():
            bind = {"destination": place, "type": "bind", "source": str(path), "options": ["bind", "rw"]}
            bundle["mounts"].append(bind)
        (folder / "config.json").write_text(json.dumps(bundle))
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> LiveContainer:
        with (self._folder / "stdout").open("wb") as out, (self._folder / "stderr").open("wb") as err:
            command = [*self._runc, "run", "--bundle", str(self._folder), self._name]
            self._started = datetime.now(timezone.utc)
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            run(*self._runc, "delete", "--force", self._name)
            self._process.wait(STOP_SECONDS)

    @property
    def output(self) -> str:
        """What it wrote to stdout so far."""
        return (self._folder / "stdout").read_text()

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log so far that tell of an event."""
        written = (self._folder / "stderr").read_text().splitlines(keepends=True)
        lines = [json.loads(line) for line in written if line.endswith("\n")]
        return [line for line in lines if line["event"] == event]

    def wait_for(self, event: str) -> dict[str, Any]:
        """The line of an event, once it is there."""
        line: dict[str, Any] = poll(lambda: self.log_lines(event) or self._gone(), f"line of event {event}")[0]
        return line

    def seconds_until(self, event: str) -> float:
        """From its start to the line of an event, which is there."""
        return (datetime.fromisoformat(self.log_lines(event)[0]["timestamp"]) - self._started).total_seconds()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command within it, as probes and people run one."""
        whole = [*self._runc, "exec", self._name, *command]
        return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=STOP_SECONDS)

    def signal(self, name: str) -> None:
        run(*self._runc, "kill", self._name, name)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        return self._process.wait(STOP_SECONDS)

    def _gone(self) -> Sequence[dict[str, Any]]:
        if self._process.poll() is not None:
            said = (self._folder / "stderr").read_text()
            raise RuntimeError(f"the container exited with {self._process.returncode}:\n{said}")
        return []
