"""Values that people may give the chart, and what of theirs is in the cluster already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    values: Mapping[str, Any]
    existing: frozenset[str] = field(default=frozenset())


def _case(*existing: str, **values: Any) -> Case:
    return Case(values, frozenset(existing))


_TLS = {"enabled": True, "existingSecret": "certificates"}
_ISSUER = {"enabled": True, "issuerRef": {"name": "letters", "kind": "ClusterIssuer"}}
_MONITOR = {
    "enabled": True,
    "interval": "15s",
    "scrapeTimeout": "10s",
    "labels": {"release": "prometheus"},
    "relabelings": [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}],
    "metricRelabelings": [{"action": "labeldrop", "regex": "pod_template_hash"}],
}
_EVERYTHING_EXTRA = {
    "commonLabels": {"team": "reinforcement-learning"},
    "image": {"registry": "my-registry:5000", "repository": "ml/pkpo", "tag": "1.2.3", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [
        {"name": "GRPC_VERBOSITY", "value": "{{ .Release.Name }}"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "{{ .Release.Name }}-extra", "key": "one"}}},
    ],
    "extraEnvFrom": [{"configMapRef": {"name": "environment"}}],
    "extraVolumes": [{"name": "extra", "configMap": {"name": "{{ .Release.Name }}-files"}}],
    "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra", "readOnly": True}],
    "extraContainers": [{"name": "extra", "image": "extra:1", "resources": {"requests": {"cpu": "10m"}}}],
    "initContainers": [{"name": "first", "image": "first:1", "command": ["true"]}],
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "{{ .Release.Name }}-files", "namespace": "pkpo"},
        },
        "{apiVersion: v1, kind: Secret, metadata: {name: '{{ .Release.Name }}-extra', namespace: pkpo}}",
    ],
    "service": {
        "type": "LoadBalancer",
        "port": 443,
        "appProtocol": "grpc",
        "annotations": {"internal": "true"},
        "headlessAnnotations": {"mesh": "false"},
        "ipFamilyPolicy": "PreferDualStack",
        "ipFamilies": ["IPv4", "IPv6"],
    },
    "serviceAccount": {"create": False, "name": "robot"},
    "deploymentAnnotations": {"reloader": "off"},
    "podAnnotations": {"mesh": "on"},
    "podLabels": {"queue": "research"},
    "resources": {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "4Gi"}},
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"queue": "research"}},
        }
    ],
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": "{{ .Release.Name }}"}},
                }
            ]
        }
    },
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "priorityClassName": "high",
    "schedulerName": "bin-packer",
    "runtimeClassName": "gvisor",
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["registry"]}],
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": "1"}]},
    "revisionHistoryLimit": 0,
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "50%"}},
    "terminationGracePeriodSeconds": 120,
    "podSecurityContext": {"runAsUser": 1000720000, "runAsGroup": None, "fsGroup": None},
}

CASES: Mapping[str, Case] = {
    "defaults": _case(),
    "one pod": _case(replicaCount=1),
    "tls": _case("Secret/certificates", tls=_TLS),
    "mutual tls": _case("Secret/certificates", tls={**_TLS, "clientAuthentication": True}),
    "mutual tls, another CA": _case(
        *("Secret/certificates", "Secret/clients"),
        tls={**_TLS, "clientAuthentication": True, "clientCaSecret": "clients"},
    ),
    "cert-manager": _case(tls={"enabled": True, "certManager": {**_ISSUER, "dnsNames": ["pkpo.example.com"]}}),
    "tokens": _case(tokens={"values": ["token-of-one-team", "token-of-another=="]}),
    "tokens, existing": _case("Secret/tokens", tokens={"existingSecret": "tokens"}),
    "autoscaling": _case(autoscaling={"enabled": True}),
    "autoscaling by open calls": _case(
        autoscaling={
            "enabled": True,
            "minReplicas": 3,
            "maxReplicas": 3,
            "targetCPUUtilizationPercentage": None,
            "targetOpenCalls": 64,
            "openCallsMetric": "pkpo_calls",
        }
    ),
    "autoscaling by all": _case(
        autoscaling={
            "enabled": True,
            "targetOpenCalls": 64,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ],
        }
    ),
    "autoscaling from one pod": _case(autoscaling={"enabled": True, "minReplicas": 1}),
    "budget at least": _case(podDisruptionBudget={"minAvailable": 1}),
    "budget in percent": _case(replicaCount=10, podDisruptionBudget={"maxUnavailable": "25%"}),
    "no budget": _case(podDisruptionBudget={"enabled": False}),
    "pod monitor": _case(monitoring={"podMonitor": _MONITOR}),
    "service monitor": _case(monitoring={"serviceMonitor": _MONITOR}),
    "rules and dashboard": _case(
        monitoring={
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Training"}},
        }
    ),
    "rules with runbooks": _case(
        monitoring={"prometheusRule": {"enabled": True, "runbookUrl": "https://docs.example.com/pkpo/alerts.html"}}
    ),
    "network": _case(
        networkPolicy={
            "grpcFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "training"}}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "ingress": [{"ports": [{"port": "grpc"}], "from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 443}]}],
        }
    ),
    "no network policy": _case(networkPolicy={"enabled": False}),
    "four workers": _case(server={"workers": 4}),
    "settings": _case(
        server={
            "host": "::",
            "metricsHost": "::",
            "healthHost": "::",
            "port": 6000,
            "metricsPort": 6001,
            "healthPort": 6002,
            "threads": 3,
            "maxMessageBytes": 2147483647,
            "drainSeconds": 0.5,
            "maxConnectionAgeSeconds": 0,
            "reflection": False,
            "serverInfo": False,
            "logLevel": "warning",
            "maxRunIds": None,
        }
    ),
    "no preStop": _case(drain={"preStopSeconds": 0, "marginSeconds": 1}, server={"drainSeconds": 0}),
    "by digest": _case(image={"digest": f"sha256:{'0' * 64}"}),
    "below another chart": _case(
        *("Secret/registry", "Secret/another"),
        **{
            "global": {
                "imageRegistry": "my-registry:5000",
                "imagePullSecrets": ["registry", {"name": "another"}],
                "storageClass": "fast",
            },
            "enabled": True,
            "image": {"registry": "overruled"},
            "imagePullSecrets": [{"name": "another"}],
        },
    ),
    "node port": _case(service={"type": "NodePort", "nodePort": 30051}),
    "no probes": _case(probes={"liveness": None}),
    "names": _case(fullnameOverride="advantages", nameOverride="advantages"),
    "everything extra": _case(
        *("Secret/registry", "ConfigMap/environment", "ServiceAccount/robot"), **_EVERYTHING_EXTRA
    ),
    # What the rules are tried on, each broken in its turn.
    "everything": _case(
        *("Secret/certificates", "Secret/registry"),
        imagePullSecrets=[{"name": "registry"}],
        service={"port": 443},
        tls={**_TLS, "clientAuthentication": True},
        tokens={"values": ["token-of-one-team"]},
        autoscaling={"enabled": True, "targetOpenCalls": 64},
        networkPolicy={"grpcFrom": [{"namespaceSelector": {"matchLabels": {"team": "training"}}}]},
        monitoring={
            "podMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "dashboard": {"enabled": True},
        },
    ),
}
