"""The light client, installed alone, against a server of another environment: light_client.py PYTHON_OF_THE_SERVER."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np

from pkpo_client import Client, LocalClient
from pkpo_client.errors import LocalComputingMissing

for heavy in ("numba", "torch", "jax", "pyarrow", "duckdb", "matplotlib", "prometheus_client"):
    assert importlib.util.find_spec(heavy) is None, f"{heavy} is here; this environment should be light"

server = subprocess.Popen(
    [sys.argv[1], "-m", "pkpo_server", "--port", "0", "--metrics-port", "0"], stderr=subprocess.PIPE, text=True
)
try:
    assert server.stderr is not None
    events = (json.loads(line) for line in server.stderr)
    address = next(event["address"] for event in events if event["event"] == "serving")
    with Client(address) as pkpo:
        advantages = pkpo.transform(np.array([[1.0, 1.0, 0.0, 0.0]]), k=2, variant="s")
        np.testing.assert_allclose(advantages, [[1 / 2, 1 / 2, 1 / 3, 1 / 3]], rtol=1e-15)
        assert len(pkpo.server_info().variants) == 14
    subprocess.run([sys.executable, "-m", "pkpo_client.command", "info", "--address", address], check=True)
    said = ""
    try:
        LocalClient().transform(np.ones((1, 2)), k=1)
    except LocalComputingMissing as error:
        said = str(error)
    assert "pkpo[local]" in said, "LocalClient computed without numba"
    done = subprocess.run([sys.executable, "-m", "pkpo_server"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "pip install 'pkpo[server]'" in done.stderr, done.stderr
finally:
    server.terminate()
    server.communicate()
print(f"light client: Python {sys.version.split()[0]}, numpy {np.__version__}")
