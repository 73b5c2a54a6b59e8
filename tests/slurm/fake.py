"""Programs of Slurm that say what a test wants, for the tests that need no Slurm."""

from __future__ import annotations

from pathlib import Path

from resvar.sweeps.submission import QUEUE_COLUMNS


def fake(folder: Path, program: str, says: str = "", code: int = 0, complains: str = "") -> None:
    """Put a program into `folder`; it notes how it was called in `<program>.calls`."""
    folder.mkdir(exist_ok=True)
    (folder / f"{program}.says").write_text(says, encoding="utf-8")
    (folder / f"{program}.complains").write_text(complains, encoding="utf-8")
    path = folder / program
    path.write_text(
        f'#!/bin/sh\necho "$@" >> "{path}.calls"\ncat "{path}.says"\n'
        f'cat "{path}.complains" >&2\nexit {code}\n',
        encoding="utf-8",
    )
    path.chmod(0o755)


def calls(folder: Path, program: str) -> list[str]:
    """How a fake program was called."""
    path = folder / f"{program}.calls"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def line(name: str, index: int, state: str, **more: str) -> str:
    """What squeue prints of a task."""
    values = {"Name": name, "ArrayJobID": "7", "ArrayTaskID": str(index), "State": state,
              "RestartCnt": "0", "NodeList": "", "Reason": "None", **more}  # fmt: skip
    return "".join(values[column].ljust(width) for column, width in QUEUE_COLUMNS.items()) + "\n"
