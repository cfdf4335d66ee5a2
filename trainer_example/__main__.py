"""`python -m trainer_example`, or `accelerate launch -m trainer_example` for several processes."""

from __future__ import annotations

import logging
import sys

import datasets
import transformers

from pkpo_client import DeadlineExceeded, Overloaded, PkpoError, Unavailable
from trainer_example.configuration import configuration_of
from trainer_example.train import Interrupted, train

EX_TEMPFAIL = 75  # of sysexits.h: start it again, later


def main() -> None:
    """Trains as the command line says; exits with 75 where it can be started again as it is, or with --resume true."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("trainer_example").setLevel(logging.INFO)
    # They tell of every file they read and write.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        train(configuration_of(sys.argv[1:]))
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(EX_TEMPFAIL)
    except (Unavailable, DeadlineExceeded, Overloaded) as error:
        print(error, file=sys.stderr)
        sys.exit(EX_TEMPFAIL)
    except (ValueError, FileExistsError, PkpoError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
