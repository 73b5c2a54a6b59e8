"""`python -m resvar` is the command `resvar`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C already stops it while it is imported."""
    try:
        from resvar.cli import main as run_and_exit
    except KeyboardInterrupt:
        sys.stderr.write("resvar: stopped.\n")
        sys.exit(130)
    run_and_exit()


if __name__ == "__main__":
    main()
