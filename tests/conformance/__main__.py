"""python -m conformance: runs the suite against a server, judges what a client got, shows what is in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from conformance import calls, judgement, server_info, suite
from conformance.conformance_pb2 import Results, Suite

CONFORMS, DIFFERS, NOT_RUN = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 0 where all conforms, 1 where something differs, 2 otherwise."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (OSError, DecodeError, _NotRun) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return NOT_RUN
    return status


class _NotRun(Exception):
    """Nothing could be judged."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    server = verbs.add_parser("server", help="run the suite against a server")
    server.add_argument("address", help="a gRPC target, such as localhost:50051")
    server.add_argument("--only", metavar="PATTERN", default="*", help="run cases of these names, such as 'stream/*'")
    server.add_argument("--timeout", metavar="SECONDS", type=float, default=30.0, help="of each call (default: 30)")
    server.add_argument("--tls", action="store_true", help="trust what this machine trusts")
    server.add_argument("--tls-ca", metavar="FILE", type=Path, help="trust this PEM certificate instead; implies --tls")
    server.add_argument("--tls-cert", metavar="FILE", type=Path, help="show this PEM certificate, with --tls-key")
    server.add_argument("--tls-key", metavar="FILE", type=Path, help="its PEM key")
    server.add_argument("--token-file", metavar="FILE", type=Path, help="send the token that is in it; needs TLS")
    server.set_defaults(run=_server)

    judge = verbs.add_parser("judge", help="judge what a client got")
    judge.add_argument("suite", type=Path, help="the suite that the client was given")
    judge.add_argument("results", type=Path, help="a pkpo.conformance.v1.Results that it wrote")
    judge.set_defaults(run=_judge)

    listed = verbs.add_parser("list", help="print the names of the cases")
    listed.add_argument("pattern", nargs="?", default="*", help="such as 'refusal/*'")
    listed.set_defaults(run=_list)

    show = verbs.add_parser("show", help="print cases as JSON")
    show.add_argument("pattern", help="a name, or a pattern of names")
    show.set_defaults(run=_show)

    generate = verbs.add_parser("generate", help="write the suite anew, from exact arithmetic")
    generate.set_defaults(run=_generate)
    return parser


def _server(arguments: argparse.Namespace) -> int:
    token = arguments.token_file and arguments.token_file.read_text().strip()
    options = {
        "timeout": arguments.timeout,
        "metadata": (("authorization", f"Bearer {token}"),) if token else (),
    }
    found = []
    with _channel(arguments) as channel:
        try:
            grpc.channel_ready_future(channel).result(arguments.timeout)
            info = calls.server_info(channel, **options)
        except grpc.FutureTimeoutError as error:
            raise _NotRun(f"no server at {arguments.address} within {arguments.timeout:g} s") from error
        except grpc.RpcError as error:
            raise _NotRun(f"GetServerInfo ends with {error.code().name}: {error.details()}") from error
        cases = {case.name: case for case in (*suite.committed().cases, *server_info.cases_over(info.limits))}
        names = _matching(arguments.only, [server_info.NAME, *cases])
        for name in names:
            if name == server_info.NAME:
                differences = [*server_info.differences(info)]
            else:
                got = calls.outcome(channel, cases[name], **options)
                differences = judgement.of_case(cases[name], got)
            found += [f"{name}: {difference}" for difference in differences]
    return _report(found, names)


def _judge(arguments: argparse.Namespace) -> int:
    given = Suite.FromString(arguments.suite.read_bytes())
    results = Results.FromString(arguments.results.read_bytes())
    made = {result.name for result in results.results}
    judged = [case.name for case in given.cases if case.name in made or judgement.needed(case)]
    return _report(judgement.of_client(given, results), judged)


def _list(arguments: argparse.Namespace) -> int:
    print(*_matching(arguments.pattern, [case.name for case in suite.committed().cases]), sep="\n")
    return CONFORMS


def _show(arguments: argparse.Namespace) -> int:
    cases = {case.name: case for case in suite.committed().cases}
    for name in _matching(arguments.pattern, [*cases]):
        print(json_format.MessageToJson(cases[name], indent=2, preserving_proto_field_name=True))
    return CONFORMS


def _generate(arguments: argparse.Namespace) -> int:
    from conformance import generator  # what it imports need not be there for the other verbs

    suite.PATH.write_bytes(generator.generated())
    return CONFORMS


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise _NotRun(f"no case is named {pattern!r}")
    return found


def _channel(arguments: argparse.Namespace) -> grpc.Channel:
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise _NotRun("--tls-cert and --tls-key need each other")
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
    if not (arguments.tls or arguments.tls_ca):
        if arguments.token_file or arguments.tls_cert:
            raise _NotRun("a token or a certificate travels over TLS only: --tls, or --tls-ca FILE")
        return grpc.insecure_channel(arguments.address, options)
    ca, key, certificate = (
        path and path.read_bytes() for path in (arguments.tls_ca, arguments.tls_key, arguments.tls_cert)
    )
    return grpc.secure_channel(arguments.address, grpc.ssl_channel_credentials(ca, key, certificate), options)


def _report(found: Sequence[str], names: Sequence[str]) -> int:
    for line in found:
        print(line)
    differing = {name for name in names if any(line.startswith(f"{name}: ") for line in found)}
    print(f"{len(names) - len(differing)} of {len(names)} cases conform")
    return DIFFERS if found else CONFORMS


if __name__ == "__main__":
    sys.exit(main())
