"""What made a result: the trainer's sources, and the libraries under it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import transformers

SOURCES = Path(__file__).parents[1]
# No result is made by them.
SHOWING = {f"experiments/{name}.py" for name in ("claims", "page", "pictures", "prototype", "statistics", "yardsticks")}


def provenance(sources: Path = SOURCES) -> dict[str, str]:
    """A digest of the trainer's sources, but for those that only show results, and the versions of its libraries."""
    digest = hashlib.sha256()
    for path in sorted(sources.rglob("*.py")):
        if path.relative_to(sources).as_posix() in SHOWING:
            continue
        digest.update(f"{path.relative_to(sources)}\0{path.read_text()}\0".encode())
    return {"trainer": digest.hexdigest()[:12], "torch": torch.__version__, "transformers": transformers.__version__}


PROVENANCE = provenance()  # when the process began, for sources that change later are not what runs
