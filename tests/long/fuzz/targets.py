"""The kinds of bad input, and the code that reads each."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st

from resvar.api import load_run
from resvar.cli import run_command
from resvar.config import resolve
from resvar.data.obtain import obtain
from resvar.errors import RunError, UserError
from resvar.evaluation.trained import open_trained
from resvar.export.safetensors_file import load_model, to_safetensors
from resvar.files import shipped
from resvar.models.network import build_model
from resvar.probes.measurements import read_probe
from resvar.reports.agreement import scored_predictions
from resvar.reports.render import RENDERERS as BY_FORMAT
from resvar.reports.search import read_records
from resvar.rundir import locked
from resvar.sweeps.grid import MANIFEST
from resvar.training.checkpoint import DamagedError, digest, load, load_newest, save
from resvar.training.execution import Execution
from resvar.training.source import source_version
from resvar.training.trainer import Trainer
from tests.long.fuzz.damage import CSV_WORDS, NPY_WORDS, altered, damaged, json_of, yaml_of
from tests.long.fuzz.oddities import TEXTS, make_odd, odd_files, remove, write_texts
from tests.long.fuzz.originals import (
    NOTES,
    hostile_tars,
    make_tar,
    metrics_csv,
    overrides,
    pickle_of,
    small_state,
    tiny_training,
    with_pickle,
)
from tests.long.fuzz.sandbox import Sandbox, peak_memory, reset_peak_memory
from tests.probes.made import make_probe
from tests.reports.runs import write_run
from tests.support.permissions import obeyed_permissions
from tests.support.tiny import make_cifar

MOST_MEMORY = 10**9
"""Bytes that a case may take."""

EXPECTED = (UserError, RunError)

RENDERERS = sorted(BY_FORMAT)


@dataclass
class Target:
    """A kind of bad input: a strategy that makes it, and a function that reads it.

    Attributes:
        read: returns a word for the outcome of the case, which is counted; raises nothing but the
            package's own errors.
    """

    name: str
    made: st.SearchStrategy[Any]
    read: Callable[[Any], str]


@dataclass
class Findings:
    """Outcomes of the cases of a target."""

    cases: int = 0
    slowest: float = 0.0
    memory: int = 0  # bytes, the most of a case
    words: dict[str, int] = field(default_factory=dict)


class Fuzz:
    """The targets and the valid files that they start from, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "inside"
        self.folder.mkdir()
        self.sandbox = Sandbox(self.folder)
        self.run = write_run(self.folder / "runs", depth=20)
        (self.run / "metrics.csv").write_text(metrics_csv(), encoding="utf-8")
        (self.run / "environment.json").write_text(json.dumps(NOTES), encoding="utf-8")
        np.save(self.run / "predictions.npy", np.arange(20) % 10)
        self.begun = write_run(self.folder / "runs", depth=20, seed=1, test_error=None)
        self.dataset = make_cifar(folder / "tiny", train=20, test=10)
        self._command("report", str(self.run), "--format", "html")  # imports everything that draws
        source_version()  # asks git, once in a process
        self.targets = {target.name: target for target in self._make_targets(folder)}

    def attack(self, name: str, examples: int, seed: int | None = None) -> Findings:
        """Try a target with so many cases; an assertion fails at the first bad one.

        Args:
            seed: of Hypothesis; None makes the same cases each time.
        """
        target, findings = self.targets[name], Findings()

        def case(made: Any) -> None:
            begun, before = time.process_time(), reset_peak_memory()
            with self.sandbox.case():
                try:
                    word = target.read(made)
                except EXPECTED as error:
                    word = "refused" if str(error).strip() else ""
            assert word, "an error without a sentence"
            findings.cases += 1
            findings.slowest = max(findings.slowest, time.process_time() - begun)
            findings.memory = max(findings.memory, peak_memory() - before)
            assert findings.memory < MOST_MEMORY, f"{findings.memory:,} bytes of memory"
            findings.words[word] = findings.words.get(word, 0) + 1

        attempt = hypothesis.given(target.made)(case)
        if seed is not None:
            attempt = hypothesis.seed(seed)(attempt)
        hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=seed is None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(attempt)()
        return findings

    def _make_targets(self, folder: Path) -> Iterator[Target]:
        config = (self.run / "config.yaml").read_bytes()
        settings = resolve(config=self.run / "config.yaml").model_dump()
        variants = [path.read_bytes() for path in shipped("variants").values()]
        sweeps = [path.read_bytes() for path in shipped("sweeps").values()]
        protocols = [path.read_bytes() for path in shipped("protocols").values()]
        changed = altered(settings).map(lambda value: json.dumps(value).encode())  # YAML too
        yield Target("config.yaml", yaml_of(config) | changed, self._config)
        yield Target("variant YAML", yaml_of(*variants), self._as_file("--variant"))
        yield Target("protocol YAML", yaml_of(*protocols), self._as_file("--protocol"))
        yield Target("sweep YAML", yaml_of(*sweeps), self._sweep)
        yield Target("--set", overrides(), self._set)
        result = json.loads((self.run / "result.json").read_text(encoding="utf-8"))
        damaged_config = yaml_of(config) | changed
        yield Target("config.yaml of a run", damaged_config, self._in_run("config.yaml"))
        yield Target("result.json", json_of(result), self._in_run("result.json"))
        metrics = damaged(metrics_csv().encode(), CSV_WORDS)
        yield Target("metrics.csv", metrics, self._in_run("metrics.csv"))
        for name in ("progress.json", "failure.json", "diverged.json"):
            yield Target(name, json_of(NOTES), self._in_begun(name))
        yield Target("progress.json at work", json_of(NOTES), self._at_work)
        yield Target("environment.json", json_of(NOTES), self._in_run("environment.json"))
        probe = make_probe("original").model_dump(mode="json")
        yield Target("probe.json", json_of(probe), self._probe)
        predictions = damaged((self.run / "predictions.npy").read_bytes(), NPY_WORDS)
        yield Target("predictions.npy", predictions, self._predictions)
        yield Target("list of a sweep", json_of({"format": 1, "runs": ["a", "b/c"]}), self._listed)
        yield Target("odd files", odd_files(), self._odd)
        texts = st.dictionaries(st.sampled_from(("device", "commit", "precision")) | TEXTS, TEXTS)
        yield Target("texts of a run", texts, self._texts)
        yield from self._weights_targets()
        yield from self._checkpoint_targets()
        yield from self._archive_targets(folder)

    # --- YAML and the command line ----------------------------------------------------------------

    def _command(self, *arguments: str) -> str:
        """Run a command line in this process; without data, nothing is trained."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(list(arguments))
        self.printed, said = out.getvalue(), err.getvalue()
        assert code in (0, 1, 2), (code, said)
        assert "Traceback" not in said, said
        if code:
            assert said.startswith("resvar: error: ") or "Try --help" in said, said
        nowhere = "is not there" in said
        return "accepted" if nowhere or code == 0 else f"exit {code}"

    def _write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def _train(self, *arguments: str) -> str:
        out, data = self.folder / "new", self.folder / "no-data"
        word = self._command("train", *arguments, "--out", str(out), "--data", str(data))
        assert not out.exists(), "a refused run wrote something"
        return word

    def _config(self, content: bytes) -> str:
        return self._train("--config", str(self._write("config.yaml", content)))

    def _as_file(self, option: str) -> Callable[[bytes], str]:
        others = {"--variant": ("--protocol", "quick"), "--protocol": ("--variant", "original")}

        def read(content: bytes) -> str:
            path = self._write("some.yaml", content)
            return self._train(option, str(path), "--depth", "20", *others[option])

        return read

    def _sweep(self, content: bytes) -> str:
        path, out = self._write("sweep.yaml", content), self.folder / "swept"
        word = self._command("sweep", str(path), "--dry-run", "--out", str(out))
        assert not out.exists()
        return word

    def _set(self, overrides: list[str]) -> str:
        words = [word for text in overrides for word in ("--set", text)]
        return self._train("--variant", "original", "--depth", "20", *words)

    # --- run directories --------------------------------------------------------------------------

    def _look(self, run: Path) -> str:
        """Everything that reads a run directory: status, a report, a second start, `load_run`."""
        self._command("status", str(run.parent))
        self._report(run)
        assert len(read_records([run.parent])) == 2, "a run has vanished"
        word = str(read_records([run])[0].state)
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        config = str(run / "config.yaml")
        arguments = ("--config", config, "--out", str(run), "--data", str(self.folder / "none"))
        self._command("train", *arguments)
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        with contextlib.suppress(UserError):
            load_run(run)
        return word

    def _report(self, run: Path) -> None:
        """In a format that depends on the contents of the directory."""
        whole = b"".join(path.read_bytes() for path in sorted(run.iterdir()))
        format = RENDERERS[zlib.crc32(whole) % len(RENDERERS)]
        self._command("report", str(run.parent), "--format", format)
        assert {c for c in self.printed if not c.isprintable()} <= {"\n"}, self.printed

    def _in_run(self, name: str) -> Callable[[bytes], str]:
        whole = (self.run / name).read_bytes()

        def read(content: bytes) -> str:
            (self.run / name).write_bytes(content)
            try:
                return self._look(self.run)
            finally:
                (self.run / name).write_bytes(whole)

        return read

    def _in_begun(self, name: str) -> Callable[[bytes], str]:
        def read(content: bytes) -> str:
            (self.begun / name).write_bytes(content)
            try:
                return self._look(self.begun)
            finally:
                (self.begun / name).unlink()

        return read

    def _at_work(self, content: bytes) -> str:
        """A locked run: its remaining time is estimated from the file."""
        path = self.begun / "progress.json"
        path.write_bytes(content)
        try:
            with locked(self.begun):
                self._command("status", str(self.begun.parent))
                self._report(self.begun)
                record = read_records([self.begun])[0]
                return f"{record.state}, {'known' if record.progress else 'unknown'}"
        finally:
            path.unlink()

    def _odd(self, odd: dict[str, str]) -> str:
        """In a copy; without the rights of root, which reads everything."""
        copied = self.run.parent / "seed-2"
        shutil.copytree(self.run, copied)
        try:
            make_odd(copied, odd)
            with obeyed_permissions():
                self._command("status", str(copied.parent))
                format = RENDERERS[zlib.crc32(repr(odd).encode()) % len(RENDERERS)]
                self._command("report", str(copied.parent), "--format", format)
                found = {record.folder: record for record in read_records([copied.parent])}
                assert {self.run, self.begun} <= found.keys()
                with contextlib.suppress(UserError):
                    load_run(copied)
                with contextlib.suppress(UserError, RunError):
                    open_trained(copied)
        finally:
            remove(copied)
        return str(found[copied].state) if copied in found else "no run"

    def _texts(self, texts: dict[str, str]) -> str:
        copied = self.run.parent / "seed-2"
        shutil.copytree(self.run, copied)
        try:
            write_texts(copied, texts)
            self._report(copied)
            return str(read_records([copied])[0].state)
        finally:
            remove(copied)

    def _probe(self, content: bytes) -> str:
        """Its pictures on the report's page take a second: one case in sixteen draws them."""
        path = self.run / "probe.json"
        path.write_bytes(content)
        try:
            if zlib.crc32(content) % 16 == 0:
                self._command("report", str(self.run), "--format", "html")
            return "read" if read_probe(self.run) else "missing"
        finally:
            path.unlink()

    def _predictions(self, content: bytes) -> str:
        path = self.run / "predictions.npy"
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            self._command("report", str(self.run.parent), "--format", "json")
            found = scored_predictions(self.run, 0, "cifar10", 50.0)
            return found if isinstance(found, str) else "read"
        finally:
            path.write_bytes(whole)

    def _listed(self, content: bytes) -> str:
        path = self.run.parent / f"x{MANIFEST}"
        path.write_bytes(content)
        try:
            return self._command("status", str(self.run.parent))
        finally:
            path.unlink()

    # --- exported networks and snapshots --------------------------------------------------------

    def _weights_targets(self) -> Iterator[Target]:
        whole = to_safetensors(build_model("original", depth=8))
        start = 8 + int.from_bytes(whole[:8], "little")
        head, weights = json.loads(whole[8:start]), whole[start:]
        about = json.loads(head["__metadata__"]["resvar"])

        def described(changed: dict[str, Any]) -> bytes:
            text = json.dumps(head | {"__metadata__": {"resvar": json.dumps(changed)}}).encode()
            return len(text).to_bytes(8, "little") + text + weights

        def read(content: bytes) -> str:
            load_model(self._write("some.safetensors", content))
            return "read"

        anyhow = damaged(whole) | damaged(whole[:start]).map(lambda begin: begin + weights)
        networks = altered(about["network"]).map(lambda network: about | {"network": network})
        yield Target(".safetensors", anyhow | (altered(about) | networks).map(described), read)

    # --- checkpoints ------------------------------------------------------------------------------

    def _checkpoint_targets(self) -> Iterator[Target]:
        settings, sets = tiny_training(self.dataset)
        trainer = Trainer(Execution.resolve(settings, torch.device("cpu")), sets)
        own = copy.deepcopy(trainer.state())
        folder = self.folder / "checkpoints"
        folder.mkdir()
        state = small_state()
        for _ in range(2):
            save(folder, state)
        path, right = folder / "checkpoint.pt", digest(state)
        whole = path.read_bytes()

        def damaged_file(content: bytes) -> str:
            path.write_bytes(content)
            try:
                assert digest(load(path)) == right, "another state was taken for the right one"
            except DamagedError:
                warnings: list[str] = []
                found = load_newest(folder, warnings.append)
                assert digest(found) == right, "the one before it was not used"
                assert len(warnings) == 1
                return "noticed"
            return "harmless" if content != whole else "unchanged"

        def foreign_state(changes: dict[str, Any]) -> str:
            """With a valid digest, as an attacker can make it."""
            trainer.restore(changes)
            trainer.state()  # an accepted state can be continued from
            return "taken"

        both = damaged(whole) | damaged(pickle_of(whole)).map(lambda bad: with_pickle(whole, bad))
        yield Target("checkpoint.pt", both, damaged_file)
        yield Target("checkpoint's state", altered(own), foreign_state)

    # --- archives ---------------------------------------------------------------------------------

    def _archive_targets(self, folder: Path) -> Iterator[Target]:
        tars = {
            mode: make_tar(self.dataset, folder / "tiny", mode) for mode in ("", "gz", "xz", "bz2")
        }

        def read(made: tuple[str, bytes]) -> str:
            suffix, content = made
            path = self._write(f"archive.tar.{suffix}", content)
            target = self.folder / "data"
            try:
                obtain(self.dataset, target, archive=path, progress=False)
                return "taken"  # the damage was in unused bytes, or nowhere
            finally:
                left = {p.name for p in target.rglob("*")} if target.exists() else set()
                assert not any(name.startswith(".resvar-") for name in left)
                assert left <= {self.dataset.folder, *self.dataset.files}
                shutil.rmtree(target, ignore_errors=True)

        whole = st.sampled_from(sorted(tars)).flatmap(
            lambda mode: st.tuples(st.just(mode), damaged(tars[mode]))
        )
        members = hostile_tars(self.dataset, folder / "tiny").map(lambda made: ("", made))
        yield Target("archive", whole | members, read)
