"""Pack the runs of a machine that you must give back into a few files of limited size.

    resvar sweep table2 --protocol short --for 9m --per-gpu 4
    python scripts/pack_runs.py runs packed
    for file in packed/*.tar*; do tar -xf $file -C elsewhere; done     # on another machine

`records.tar.gz` contains everything that a report reads. Then come the checkpoints of unfinished
runs, one a file, those first that have the least left; the same command resumes them elsewhere.
Checkpoints that are too many or too large are named and left out: such a run starts over.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from resvar import rundir
from resvar.console import pluralize
from resvar.rundir import read_progress

RECORDS = (
    rundir.CONFIG, rundir.ENVIRONMENT, rundir.METRICS, rundir.PREDICTIONS, rundir.RESULT,
    rundir.PROGRESS, rundir.FAILURE, rundir.DIVERGED, rundir.PROBE,
)  # fmt: skip
ARCHIVE = "records.tar.gz"
MIB = 2**20


def main() -> int:
    """Returns the exit code: 2 if there is nothing to pack, 1 if the records are too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of run directories")
    parser.add_argument("out", type=Path, help="folder of the files; created")
    parser.add_argument("--files", type=int, default=8, help="files at most; default: 8")
    parser.add_argument("--mib", type=float, default=16, help="MiB of a file at most; default: 16")
    options = parser.parse_args()
    root, out, most = options.runs, options.out, int(options.mib * MIB)
    found = sorted(path.parent for path in root.rglob(rundir.CONFIG))
    if not found:
        print(f"{root} contains no runs.", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    records = [run / name for run in found for name in RECORDS if (run / name).is_file()]
    size = _pack(out / ARCHIVE, records, root)
    print(f"{out / ARCHIVE}: {pluralize(len(found), 'run')}, {size / MIB:.1f} MiB")
    for number, run in enumerate(_resumable(found)):
        file, name = run / rundir.CHECKPOINT, run.relative_to(root)
        if number < options.files - 1 and file.stat().st_size + 20 * tarfile.BLOCKSIZE <= most:
            packed = out / f"checkpoint-{number + 1}.tar"
            print(f"{packed}: {name}, {_pack(packed, [file], root) / MIB:.1f} MiB")
        else:
            print(f"left out: the checkpoint of {name}")
    if size > most:
        print(f"{out / ARCHIVE} is larger than {options.mib:g} MiB.", file=sys.stderr)
        return 1
    return 0


def _resumable(runs: Sequence[Path]) -> list[Path]:
    """The unfinished runs with a checkpoint, those first that have the least left."""
    unfinished = [run for run in runs if not (run / rundir.RESULT).exists()]
    return sorted(
        (run for run in unfinished if (run / rundir.CHECKPOINT).is_file()), key=_share_left
    )


def _share_left(run: Path) -> float:
    progress = read_progress(run)
    return 1.0 if progress is None else 1.0 - progress.share


def _pack(archive: Path, files: Sequence[Path], root: Path) -> int:
    """Write the files with their paths below `root`; returns the size of the archive in bytes."""
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        for file in files:
            tar.add(file, file.relative_to(root))
    return archive.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
