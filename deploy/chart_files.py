"""The parts of the chart's files that follow from something else: its version, the values and schema of the server's
settings, and the README's table of values.

Rewritten by `python -m deploy.chart_files`.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pkpo import __version__
from pkpo_server.settings import SETTINGS, Setting

CHART = Path(__file__).parent / "helm" / "pkpo"
# What a pod needs otherwise than a server by itself.
DEFAULTS = {
    "host": "0.0.0.0",
    "metrics_host": "0.0.0.0",
    "health_host": "0.0.0.0",
    "health_port": 50052,
    "max_connection_age_seconds": 300,
}
# Settings that follow from values outside `server`.
ELSEWHERE = {
    "unix_socket": "sidecar.socketPath",
    "unix_socket_mode": "sidecar.socketMode",
    "tls_certificate": "tls.enabled",
    "tls_key": "tls.enabled",
    "tls_client_ca": "tls.clientAuthentication",
    "tokens": "tokens",
}
_NOTES = {
    "threads": "In a pod the CPUs are those of its limit, or else of its request.",
    "max_run_ids": "Several workers have 2978 together, or as many as fit a volume that is mounted at /dev/shm.",
}
_START, _END = "# server: from the server's settings; each is a flag\n\n", "\n# server: end\n"
_TABLE_START, _TABLE_END = "<!-- values: generated -->\n", "<!-- values: end -->"
_COMMENT_WIDTH = 118


def files() -> dict[Path, str]:
    """The text that each file should have."""
    values, schema, readme = (CHART / name for name in ("values.yaml", "values.schema.json", "README.md"))
    documented = _values(values.read_text())
    return {
        **{path: _versioned(path.read_text()) for path in CHART.parent.glob("*/Chart.yaml")},
        values: documented,
        schema: _schema(schema.read_text()),
        readme: _readme(readme.read_text(), documented),
    }


def value_name(setting: str) -> str:
    """How the chart calls a setting: max_rewards is maxRewards."""
    first, *others = setting.split("_")
    return first + "".join(map(str.capitalize, others))


def documented_values(text: str) -> Iterator[tuple[str, Any, str]]:
    """Each value of a values.yaml that a comment stands above: its name, its default and the comment.

    Raises:
        ValueError: a value has no comment, and neither have those in it.
    """
    defaults = yaml.safe_load(text)
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    covered: int | None = None  # how deep the value is that the last comment is about
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if covered is not None and line.strip() and depth > covered:
            continue
        key = re.match(r" *(\w+):( |$)", line)
        if line.lstrip().startswith("# "):
            comment.append(line.strip()[2:])
        elif key:
            parents = [*((at, name) for at, name in parents if at < depth), (depth, key[1])]
            names = [name for _, name in parents]
            default = defaults
            for name in names:
                default = default[name]
            covered = depth if comment else None
            if comment:
                yield ".".join(names), default, " ".join(comment)
            elif not default or not isinstance(default, dict):
                raise ValueError(f"{'.'.join(names)} has no comment")
            comment = []
        else:
            comment, covered = [], None


def _versioned(text: str) -> str:
    """Chart, server, and the chart it depends on: one version."""
    return re.sub(r'(?m)^( *(?:version|appVersion): )"?[^"\n]+("?)$', rf"\g<1>{__version__}", text)


def _values(text: str) -> str:
    lines = ["server:\n"]
    for name, setting in _server_settings():
        # The README's table tells of flags beside these; here is what the values mean.
        lines += [
            f"{line}\n"
            for line in textwrap.wrap(
                _meaning(name, setting), _COMMENT_WIDTH, initial_indent="  # ", subsequent_indent="  # "
            )
        ]
        lines.append(f"  {value_name(name)}: {_default(name, setting)}\n")
    return _between(text, _START, _END, "".join(lines))


def _schema(text: str) -> str:
    schema = json.loads(text)
    schema["properties"]["server"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {value_name(name): _value_schema(name, setting) for name, setting in _server_settings()},
    }
    return json.dumps(schema, indent=2) + "\n"


def _readme(text: str, values: str) -> str:
    rows = ["| Value | Default | Meaning |\n", "| --- | --- | --- |\n"]
    for name, default, meaning in documented_values(values):
        rows.append(f"| `{name}` | `{json.dumps(default)}` | {meaning.replace('|', chr(92) + '|')} |\n")
    return _between(text, _TABLE_START, _TABLE_END, "".join(rows))


def _server_settings() -> Iterator[tuple[str, Setting]]:
    return ((name, setting) for name, setting in SETTINGS.items() if name not in ELSEWHERE)


def _meaning(name: str, setting: Setting) -> str:
    meaning = setting.description
    if name.endswith("port"):
        meaning = meaning.partition(";")[0].removesuffix(".") + "."  # 0, for any free one, is of no use to a pod
    if name in _NOTES:
        meaning += f" {_NOTES[name]}"
    if setting.choices:
        return f"{meaning} One of {', '.join(setting.choices)}."
    if setting.kind in (int, float):
        unit = f" {setting.unit}" if setting.unit else ""
        return f"{meaning} {_least(name, setting)} to {setting.greatest}{unit}."
    return meaning


def _default(name: str, setting: Setting) -> str:
    return json.dumps(DEFAULTS.get(name, setting.default))


def _least(name: str, setting: Setting) -> int:
    return max(1, setting.least) if name.endswith("port") else setting.least


def _value_schema(name: str, setting: Setting) -> dict[str, Any]:
    if setting.kind in (int, float):
        kind = "integer" if setting.kind is int else "number"
        # Of what is null by itself, the server says what it then is.
        may_be: Any = [kind, "null"] if DEFAULTS.get(name, setting.default) is None else kind
        return {"type": may_be, "minimum": _least(name, setting), "maximum": setting.greatest}
    if setting.kind is bool:
        return {"type": "boolean"}
    return {"enum": list(setting.choices)} if setting.choices else {"type": "string", "minLength": 1}


def _between(text: str, start: str, end: str, new: str) -> str:
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no {start.strip()} ... {end.strip()}")
    return f"{before}{start}{new}{end}{after}"


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
