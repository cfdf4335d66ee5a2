"""docs/operations.md: what it says of clusters can be done."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from chart import commands
from deploy.rendering import Helm, running_helm
from pages import OF_A_CLUSTER, ROOT, blocks
from pages import commands as commands_of

PAGE = ROOT / "docs" / "operations.md"


def secret(helm: Helm, name: str) -> dict[str, str]:
    """The values of a Secret that the cluster holds."""
    data: dict[str, Any] = helm.cluster.manifests[f"/api/v1/namespaces/pkpo/secrets/{name}"]["data"]
    return {key: base64.b64decode(value).decode().strip() for key, value in data.items()}


def test_every_command_of_a_cluster_runs_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one cluster, from installing to removing; the block of yaml is the file that they name."""
    authority = trustme.CA()
    leaf = authority.issue_cert("pkpo-headless.pkpo")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    leaf.private_key_pem.write_to_path(tmp_path / "tls.key")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    ran, tokens, held, certificates = [], {}, [], []
    with running_helm("1.30") as helm:
        for block in blocks(PAGE):
            if block.language == "yaml":
                assert yaml.safe_load(block.text)
                (tmp_path / "pkpo.yaml").write_text(block.text)
            elif block.language == "sh":
                for command in commands_of(block.text):
                    if assigned := re.match(r"([A-Z]+)=(.*)", command):
                        done = subprocess.run(["bash", "-c", f"echo {assigned[2]}"], capture_output=True, check=True)
                        tokens[assigned[1]] = done.stdout.decode().strip()
                        monkeypatch.setenv(assigned[1], tokens[assigned[1]])
                    elif command.startswith(OF_A_CLUSTER):
                        commands.run(
                            re.sub(r"\b(pkpo\.yaml|tls\.crt|tls\.key|ca\.crt)\b", rf"{tmp_path}/\1", command), helm
                        )
                        ran.append(command.split()[:2])
                        if "pkpo-tokens" in command:
                            held.append(secret(helm, "pkpo-tokens"))
                        elif "pkpo-tls" in command:
                            certificates.append({*secret(helm, "pkpo-tls")})
        assert not any(path.endswith("/deployments/pkpo") for path in helm.cluster.manifests)
        assert "BEGIN CERTIFICATE" in secret(helm, "pkpo-tls")["tls.crt"]
    # By the one for mutual TLS the clients' authority is there, and stays when it is rotated.
    assert certificates == [{"tls.crt", "tls.key"}, {"tls.crt", "tls.key", "ca.crt"}]
    old, new = tokens["OLD"], tokens["NEW"]
    assert len({old, new}) == 2
    assert min(len(old), len(new)) >= 16
    assert held == [{"team": old}, {"team": old, "next": new}, {"team": new}]
    assert ["helm", "install"] in ran
    assert ran[-1] == ["helm", "uninstall"]


def test_a_certificate_made_by_hand_has_the_names_of_the_chart_s() -> None:
    """Those that the chart asks cert-manager for."""
    tls = {"enabled": True, "certManager": {"enabled": True, "issuerRef": {"name": "letters"}}}
    with running_helm("1.30") as helm:
        (certificate,) = (each for each in helm.render({"tls": tls}).manifests if each["kind"] == "Certificate")
    (told,) = re.findall(r"those are\n(.*?)\nThe server's key", PAGE.read_text(), re.DOTALL)
    names = re.findall(r"`([-a-z.]+)`", told)
    suffixes = [name for name in names if name.startswith(".")]
    qualified = [name for name in names if "." in name.lstrip(".") and name not in suffixes]
    bare = [name for name in names if "." not in name]
    with_suffixes = [name + suffix for name in qualified for suffix in suffixes]
    assert sorted(certificate["spec"]["dnsNames"]) == sorted([*bare, *qualified, *with_suffixes])
