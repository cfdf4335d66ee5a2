"""The example runs as it is, and its figures are those of the file."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_replay_prints_what_the_file_holds() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "replay.py"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    with gzip.open(ROOT / "examples" / "rollouts" / "tiny-gemma2-rules.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    first = [record["correct"] for record in records if record["step"] < 25]
    assert f"{sum(first) / len(first):8.3f}" in done.stdout  # pass@1 of the first phase
    assert re.search(r"rewards transformed +38400 +38400$", done.stdout, re.MULTILINE)
    assert re.search(r"groups transformed +2400 +2400$", done.stdout, re.MULTILINE)
    rewards: dict[tuple[int, str], list[float]] = {}
    for record in records:
        rewards.setdefault((record["step"], record["prompt_id"]), []).append(record["reward"])
    silent = sum(without_signal(values, 8 if step < 100 else 1) for (step, _), values in rewards.items())
    assert silent > sum(len(set(values)) == 1 for values in rewards.values()) > 0
    assert re.search(rf"groups without signal +{silent} +{silent}$", done.stdout, re.MULTILINE)


def without_signal(rewards: list[float], k: int) -> bool:
    """C(i, k-1) is 0 for every i up to the number of rewards below the largest: no k-subset misses it."""
    return sum(reward < max(rewards) for reward in rewards) < max(k - 1, 1)
