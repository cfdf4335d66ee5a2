"""python -m fuzz: makes inputs by the million, and says which were not answered as they must be."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from fuzz import campaign
from fuzz.campaign import Report

FINE, FOUND = 0, 1
# Of the inputs of `all`, how many are of each kind. Connections and arguments are dear.
SHARES = {"wire": 0.6, "fields": 0.36, "arguments": 0.02, "calls": 0.0195, "connections": 0.0005}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 0 where nothing was found, 1 where something was."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.kind == "replay":
        for path in arguments.files:
            if not path.is_file():
                parser.error(f"files: there is no {path}; where nothing was found, nothing was kept")
        return _say("replay", campaign.replayed([_call(path) for path in arguments.files]))
    status = FINE
    for kind in SHARES if arguments.kind == "all" else (arguments.kind,):
        share = SHARES[kind] if arguments.kind == "all" else 1.0
        inputs = round(arguments.inputs * share)
        status |= _say(kind, _report(kind, inputs, arguments.seconds * share, arguments.seed, arguments.findings))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, told in {
        "wire": "changed bytes of the conformance suite, to the server's calls in this process",
        "fields": "valid messages of odd values, to the same",
        "arguments": "arguments of the client, in this process and through both codecs",
        "calls": "changed bytes and odd messages, through a connection to a server of its own",
        "connections": "connections to it that speak HTTP/2 badly",
        "all": "all of these",
    }.items():
        each = kinds.add_parser(kind, help=told)
        each.add_argument("--inputs", type=int, default=1_000_000, help="how many (default: %(default)s)")
        each.add_argument("--seconds", type=float, default=float("inf"), help="or until so much time is over")
        each.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: %(default)s)")
        each.add_argument("--findings", metavar="FOLDER", type=Path, help="keep the inputs of findings there")
    replay = kinds.add_parser("replay", help="the inputs of findings again")
    replay.add_argument("files", nargs="+", type=Path)
    return parser


def _report(kind: str, inputs: int, seconds: float, seed: int, folder: Path | None) -> Report:
    if kind in ("wire", "fields"):
        return campaign.run(kind, seed, inputs, seconds, folder)
    if kind == "arguments":
        from fuzz import arguments  # what it imports need not be there for the other kinds

        return arguments.run(seed, inputs, seconds)
    from fuzz import sockets
    from live_server import LiveServer

    with LiveServer() as server:
        address = server.address
        made = getattr(sockets, kind)(address, Random(seed), inputs, seconds)
        if server.process.poll() is None:
            made.findings += sockets.calls(address, Random(seed), 100).findings
        # Not all of them are ours: gRPC prints what it makes of a bad connection.
        made.findings += [f"the log says: {line}" for line in server.raw_log() if "internal_error" in line]
    return made


def _call(path: Path) -> campaign.Call:
    told = json.loads(path.read_text())
    return told["method"], [bytes.fromhex(raw) for raw in told["messages"]]


def _say(kind: str, report: Report) -> int:
    for line in report.lines():
        print(f"{kind}: {line}", flush=True)
    return FOUND if report.findings else FINE


if __name__ == "__main__":
    sys.exit(main())
