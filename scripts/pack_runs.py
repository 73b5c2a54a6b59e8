"""Pack the runs of a machine that you must give back into a few files of limited size.

    resvar sweep table2 --protocol short --for 9m --per-gpu 4
    python scripts/pack_runs.py runs packed
    mkdir elsewhere                                                   # on another machine
    for file in packed/*.tar*; do tar -xf "$file" -C elsewhere; done

`records.tar.gz` contains everything that a report reads. Each checkpoint of an unfinished run has a
file of its own, those first that have the least left; the same command resumes them elsewhere.
Checkpoints that are too many or too large are named and left out: such a run starts over.
"""

from __future__ import annotations

import argparse
import math
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from resvar import rundir
from resvar.console import pluralize
from resvar.rundir import is_locked, read_progress

RECORDS = (
    rundir.CONFIG, rundir.ENVIRONMENT, rundir.METRICS, rundir.PREDICTIONS, rundir.RESULT,
    rundir.PROGRESS, rundir.FAILURE, rundir.DIVERGED, rundir.PROBE,
)  # fmt: skip
ARCHIVE = "records.tar.gz"
MIB = 2**20


def main() -> int:
    """Returns the exit code: 2 for wrong input, 1 if the records are too large or cannot be packed.

    Checkpoints are packed before the records: of a run that is training, the records are then at
    least as new as its checkpoint, as after a kill.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of run directories")
    parser.add_argument("out", type=Path, help="folder of the files: a new or empty one")
    parser.add_argument("--files", type=int, default=8, help="files at most; default: 8")
    parser.add_argument("--mib", type=float, default=16, help="MiB of a file at most; default: 16")
    options = parser.parse_args()
    root, out = options.runs, options.out
    if options.files < 1:
        parser.error(f"--files must be at least 1, not {options.files}.")
    if not 0 < options.mib < math.inf:
        parser.error(f"--mib must be a number above 0, not {options.mib:g}.")
    found = sorted(path.parent for path in root.rglob(rundir.CONFIG))
    if not found:
        parser.error(f"{root} contains no runs.")
    if out.is_dir() and any(out.iterdir()):
        parser.error(f"{out} is not empty; its files would be unpacked too. Name a new folder.")
    if running := sum(is_locked(run) for run in found):
        print(f"still running: {pluralize(running, 'run')}, packed as last saved", file=sys.stderr)
    try:
        return _pack_runs(found, root, out, options.files, int(options.mib * MIB))
    except OSError as error:
        print(f"{error.filename or out}: {error.strerror or error}.", file=sys.stderr)
        return 1


def _pack_runs(found: Sequence[Path], root: Path, out: Path, files: int, most: int) -> int:
    """Write at most `files` files of at most `most` bytes; returns the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    start_over = set()
    for number, run in enumerate(_resumable(found), 1):
        file, name = run / rundir.CHECKPOINT, run.relative_to(root)
        if number < files and file.stat().st_size + 20 * tarfile.BLOCKSIZE <= most:
            packed = out / f"checkpoint-{number}.tar"
            print(f"{packed}: {name}, {_pack(packed, [file], root) / MIB:.1f} MiB")
        else:
            print(f"left out: the checkpoint of {name}")
            start_over.add(run / rundir.PROGRESS)  # or a status would promise what it has reached
    candidates = [run / name for run in found for name in RECORDS]
    records = [path for path in candidates if path.is_file() and path not in start_over]
    size = _pack(out / ARCHIVE, records, root)
    print(f"{out / ARCHIVE}: {pluralize(len(found), 'run')}, {size / MIB:.1f} MiB")
    if size > most:
        print(f"{out / ARCHIVE} is larger than {most / MIB:g} MiB.", file=sys.stderr)
        return 1
    return 0


def _resumable(runs: Sequence[Path]) -> list[Path]:
    """The runs with a checkpoint that a rerun resumes, those first that have the least left."""
    settled = (rundir.RESULT, rundir.DIVERGED)
    unfinished = [run for run in runs if not any((run / name).exists() for name in settled)]
    return sorted(
        (run for run in unfinished if (run / rundir.CHECKPOINT).is_file()), key=_share_left
    )


def _share_left(run: Path) -> float:
    progress = read_progress(run)
    return 1.0 if progress is None else 1.0 - progress.share


def _pack(archive: Path, files: Sequence[Path], root: Path) -> int:
    """Write the files with their paths below `root`; returns the size of the archive in bytes.

    Each is opened before its size is read: a run may replace it meanwhile.
    """
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        for path in files:
            with path.open("rb") as file:
                tar.addfile(tar.gettarinfo(arcname=str(path.relative_to(root)), fileobj=file), file)
    return archive.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
