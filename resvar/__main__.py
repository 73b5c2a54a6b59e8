"""`python -m resvar` is the command `resvar`."""

from resvar.cli import main

if __name__ == "__main__":
    main()
