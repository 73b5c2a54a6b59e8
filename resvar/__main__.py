"""`python -m resvar` is the command `resvar`."""

import os
import sys
from contextlib import suppress


def enter() -> None:
    """Run the command line; Ctrl-C already stops it while it is imported."""
    try:
        from resvar.cli import main
    except KeyboardInterrupt:
        with suppress(OSError):
            os.write(2, b"resvar: stopped.\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    enter()
