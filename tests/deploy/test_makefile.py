"""The environment of these tests is made by a Python that Helm's library runs on, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pages import ROOT


def test_an_older_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.version_info = (3, 11, 7, "final", 0)\n')
    made = subprocess.run(
        ["make", "test-deploy", f"VENV={tmp_path}/venv", f"PYTHON_DEPLOY={sys.executable}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode != 0
    assert "needs Python 3.12: PYTHON_DEPLOY=" in made.stderr
    assert not (tmp_path / "venv-deploy").exists()
