"""The fields we write of kinds that the schemas of Kubernetes do not have, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema

from deploy.cluster import Manifest


def _fields(*required: str, **optional_too: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": [*required], "properties": optional_too}


def _list(items: Any, at_least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": at_least}


_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_TIME = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}
_SELECTOR = _fields("matchLabels", matchLabels=_TEXTS)
_ENDPOINT = _fields(
    *("port", "path"),
    port=_TEXT,
    path=_TEXT,
    interval=_TIME,
    scrapeTimeout=_TIME,
    relabelings=_list({"type": "object"}),
    metricRelabelings=_list({"type": "object"}),
)
_RULE = _fields("expr", expr=_TEXT, record=_TEXT, alert=_TEXT, labels=_TEXTS, annotations=_TEXTS, **{"for": _TIME})
_SPECS: Mapping[str, Any] = {
    "PodMonitor": _fields(
        *("selector", "podMetricsEndpoints"),
        jobLabel=_TEXT,
        selector=_SELECTOR,
        podMetricsEndpoints=_list(_ENDPOINT, at_least=1),
    ),
    "ServiceMonitor": _fields(
        *("selector", "endpoints"), jobLabel=_TEXT, selector=_SELECTOR, endpoints=_list(_ENDPOINT, at_least=1)
    ),
    "PrometheusRule": _fields(
        "groups",
        groups=_list(_fields("name", "rules", name=_TEXT, interval=_TIME, rules=_list(_RULE, at_least=1)), at_least=1),
    ),
    "Certificate": _fields(
        *("secretName", "issuerRef", "dnsNames"),
        secretName=_TEXT,
        issuerRef=_fields("name", name=_TEXT, kind=_TEXT, group=_TEXT),
        duration=_TIME,
        renewBefore=_TIME,
        privateKey=_fields(rotationPolicy={"enum": ["Always", "Never"]}),
        usages=_list(_TEXT),
        dnsNames=_list(_TEXT, at_least=1),
    ),
}


def check(manifest: Manifest) -> None:
    """Raises jsonschema.ValidationError where a field is unknown or wrong, KeyError where the kind is."""
    top = _fields(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion=_TEXT,
        kind=_TEXT,
        metadata=_fields("name", name=_TEXT, namespace=_TEXT, labels=_TEXTS, annotations=_TEXTS),
        spec=_SPECS[manifest["kind"]],
    )
    jsonschema.validate(manifest, top)
