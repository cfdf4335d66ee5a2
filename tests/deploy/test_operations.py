"""docs/operations.md: what it says of clusters can be done."""

from __future__ import annotations

from pathlib import Path

import yaml

from chart import commands
from deploy.rendering import running_helm
from pages import OF_A_CLUSTER, ROOT, blocks
from pages import commands as commands_of

PAGE = ROOT / "docs" / "operations.md"


def test_every_command_of_a_cluster_runs_in_its_order(tmp_path: Path) -> None:
    """On one cluster, from installing to removing; the block of yaml is the file that they name."""
    ran = []
    with running_helm("1.30") as helm:
        for block in blocks(PAGE):
            if block.language == "yaml":
                assert yaml.safe_load(block.text)
                (tmp_path / "pkpo.yaml").write_text(block.text)
            elif block.language == "sh":
                for command in commands_of(block.text):
                    if command.startswith(OF_A_CLUSTER):
                        commands.run(command.replace("pkpo.yaml", f"{tmp_path}/pkpo.yaml"), helm)
                        ran.append(command.split()[:2])
        assert not any(path.endswith("/deployments/pkpo") for path in helm.cluster.manifests)
    assert ["helm", "install"] in ran
    assert ran[-1] == ["helm", "uninstall"]
