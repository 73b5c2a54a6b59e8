"""Run directories whose files are odd: of another kind, unreadable, or full of hostile text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hypothesis import strategies as st

from resvar.rundir import CONFIG, LOCK, LOG, METRICS, RUN_FILES

KINDS = ("gone", "empty", "folder", "pipe", "loop", "dangling", "closed", "huge", "another")

NAMES = (*RUN_FILES, LOCK, LOG, "snapshots", "")
"""The empty one is the folder itself."""

TEXTS = st.one_of(
    st.text(max_size=30),
    st.text("=+-@\t\r\n|`*_[]()<>#$\\{}%&~^\"'\x1b\x9b\u202e\u2028\ud800/.:", max_size=30),
    st.sampled_from(["=1+1", "\\input{x}", "[a](b:c)", "</script>", "$\\frac{$", "\x1b]0;x\x07"]),
)  # fmt: skip


def odd_files() -> st.SearchStrategy[dict[str, str]]:
    """Names of a run's files, and what each becomes."""
    kinds = st.sampled_from(KINDS)
    return st.dictionaries(st.sampled_from(NAMES), kinds, min_size=1, max_size=3)


def make_odd(run: Path, odd: Mapping[str, str]) -> None:
    """Turn files of a run into what they are not; its folder last."""
    contents = {name: (run / name).read_bytes() for name in (CONFIG, METRICS)}
    for name, kind in sorted(odd.items(), reverse=True):
        path = run / name
        if kind == "closed":
            if path.exists():
                path.chmod(0)
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        match kind:
            case "empty":
                path.touch()
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "loop":
                path.symlink_to(path.name)
            case "dangling":
                path.symlink_to("nowhere")
            case "huge":
                path.touch()
                os.truncate(path, 2**36)  # nothing on disk
            case "another":
                path.write_bytes(contents[METRICS if name == CONFIG else CONFIG])


def write_texts(run: Path, texts: Mapping[str, str]) -> None:
    """Put texts into the values of a run's JSON files."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    for key in ("device", "precision", "commit"):
        result[key] = texts.get(key, result[key])
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps(dict(texts)), encoding="utf-8")


def remove(run: Path) -> None:
    """Remove a run directory, whatever it has become."""
    if run.is_dir() and not run.is_symlink():
        run.chmod(0o700)
        shutil.rmtree(run)
    else:
        run.unlink(missing_ok=True)
