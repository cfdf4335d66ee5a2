"""The command: argv in, exit status out.

0    served, was told to stop, and finished what it had accepted
1    could not start
2    wrong flags or settings
130  forced by a second SIGINT
143  forced by a second SIGTERM
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from pkpo_server import allowance, memory
from pkpo_server.settings import PROGRAM, WORKER_VARIABLE, InvalidSettings, read_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `pkpo-server` and returns its exit status."""
    # gRPC's C core writes lines of its own form to stderr, which is for one JSON object a line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Whoever started this process may have held signals back.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    allowance.open_standard_streams()
    memory.begin_loading()
    try:
        return _served(sys.argv[1:] if arguments is None else arguments)
    except InvalidSettings as error:
        print(f"{PROGRAM}: {error}", file=sys.__stderr__)  # not as a line of the log
        return 2
    except allowance.TooLittle as error:
        from pkpo_server import logs

        logs.configure("error").error("failed", message=str(error))
        return 1
    except ModuleNotFoundError as error:
        print(f"{PROGRAM}: needs {error.name}: pip install 'pkpo[server]'", file=sys.stderr)
        return 1


def _served(arguments: Sequence[str]) -> int:
    role = os.environ.pop(WORKER_VARIABLE, None)
    if role is not None:
        from pkpo_server.workers import run_worker

        return run_worker(role)
    settings = read_settings(arguments)
    allowance.require(settings)
    if settings.workers > 1:
        from pkpo_server.workers import run_supervisor

        return run_supervisor(settings)
    from pkpo_server.lifecycle import run_server

    return run_server(settings)
