"""Bad input at scale: what Hypothesis makes of valid files is read, and nothing bad may happen.

Shared by `tests/test_fuzz.py`, in short, and `scripts/fuzz.py`, at length. Whatever comes in, a
case ends in success or in one of the package's own errors (one sentence), within five seconds of
the processor's time (the clock's would judge how busy the machine is), takes less than a gigabyte
of memory beside what was there before, and touches nothing outside its folder: an audit hook sees
every file that is opened for writing, every process and every connection.

Hypothesis alone, and no atheris: the readers under these formats are C and C++ (libyaml, torch's
zip reader, pandas, zlib) whose branches atheris cannot see without building them anew, so that it
would mutate as blindly as Hypothesis does; and Hypothesis knows the formats, shrinks what it finds
and runs wherever the tests do.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st

from resvar.api import load_run
from resvar.cli import run_command
from resvar.config import Settings, resolve
from resvar.data.cifar import Dataset
from resvar.data.obtain import obtain
from resvar.data.splits import Splits
from resvar.errors import RunError, UserError
from resvar.export.exchange import load_model, to_safetensors
from resvar.files import shipped
from resvar.models.network import build_model
from resvar.probes.findings import read_probe
from resvar.reports.agreement import read_guesses
from resvar.reports.records import read_records
from resvar.reports.render import RENDERERS as BY_FORMAT
from resvar.rundir import locked
from resvar.sweeps.grid import MANIFEST
from resvar.training.checkpoint import DamagedError, digest, load, load_newest, save
from resvar.training.loop import Trainer
from tests.probes.made import make_probe
from tests.reports.runs import write_run
from tests.support.tiny import make_cifar

SLOWEST = 5.0
"""Seconds of the processor's time that a case may take."""

LONGEST_WAIT = 600.0
"""Seconds of the clock: what waits for ever uses no processor, and what was paused does no harm."""

MOST_MEMORY = 10**9
"""Bytes that a case may take."""

EXPECTED = (UserError, RunError)

RENDERERS = sorted(BY_FORMAT)

# --- what a case may do ---------------------------------------------------------------------------


class Hang(BaseException):
    """A case took too long. No `except Exception` of the package catches it."""


class Sandbox:
    """A folder, and an audit hook that notes whatever is done outside it while a case runs.

    Python never lets go of an audit hook, so there is one for the process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.active = False
        self.violations: list[str] = []
        sys.addaudithook(self._see)

    @contextlib.contextmanager
    def case(self) -> Iterator[None]:
        self.violations.clear()
        before = [signal.signal(number, _hang) for number in (signal.SIGPROF, signal.SIGALRM)]
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)
            for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
                signal.signal(number, handler)
        assert not self.violations, list(self.violations)

    def _see(self, event: str, details: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, _, flags = details
            if (flags or 0) & _WRITES and not isinstance(path, int):
                self._check(event, path)
        elif event in _CHANGES:
            for path in details[: _CHANGES[event]]:
                self._check(event, path)
        elif event in _FORBIDDEN:
            self.violations.append(f"{event} {details!r:.200}")

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int) or os.fspath(path) in (os.devnull, os.fsencode(os.devnull)):
            return
        place = Path(os.fsdecode(path))
        if not (self.folder / place).resolve().is_relative_to(self.folder):
            self.violations.append(f"{event} {path!r}")


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1,
    "shutil.move": 2, "shutil.copyfile": 2,
}  # fmt: skip
"""Events that change a file system, and how many of their details are paths."""

_FORBIDDEN = {
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill",
    "subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request",
    "pickle.find_class", "webbrowser.open",
}  # fmt: skip


def _most_memory() -> int:
    """Bytes that this process has held at most, since that was forgotten last; 0 where it is not
    known."""
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return 0


def _forget_most_memory() -> int:
    """Begin anew with what is held now; returns that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _most_memory()


def _hang(number: int, frame: FrameType | None) -> None:
    del frame
    at_work = number == signal.SIGPROF
    raise Hang(f"over {SLOWEST:.0f} s of work" if at_work else f"over {LONGEST_WAIT:.0f} s")


# --- making bad input -----------------------------------------------------------------------------

INTERESTING = [b"\x00" * 4, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\n", b"PK\x03\x04"]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, tokens: tuple[bytes, ...] = ()) -> bytes:
    """`whole` with a few places flipped, overwritten, cut out, doubled or filled; or cut short."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.one_of(st.integers(1, 16), st.integers(1, max(1, len(content)))))
        what = draw(st.sampled_from(("flip", "bytes", "token", "cut", "double", "zeros", "end")))
        if what == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "bytes":
            content[at : at + length] = draw(st.binary(max_size=16))
        elif what == "token":
            word = draw(st.sampled_from((*INTERESTING, *tokens)))
            content[at : at + draw(st.sampled_from((0, len(word))))] = word
        elif what == "cut":
            del content[at : at + length]
        elif what == "double":
            content[at:at] = content[at : at + min(length, 4096)]
        elif what == "zeros":
            content[at : at + length] = bytes(len(content[at : at + length]))
        else:
            del content[at:]
    return bytes(content)


_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([10**30, -1, 0, 2**63, 1e308, 1e-320, "", "..", "/etc/passwd", "\x00", "nan"]),
)  # fmt: skip
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)  # fmt: skip
"""What JSON can hold, and NaN."""


def altered(whole: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with a few values replaced by anything, or taken away, or added."""
    keys = st.sampled_from(sorted(whole)) | st.text(max_size=12)
    gone = st.lists(st.sampled_from(sorted(whole)), max_size=2)
    return st.builds(
        lambda changes, without: {
            key: value for key, value in {**whole, **changes}.items() if key not in without
        },
        st.dictionaries(keys, VALUES, min_size=1, max_size=4),
        gone,
    )


def json_of(whole: dict[str, Any]) -> st.SearchStrategy[bytes]:
    text = json.dumps(whole, indent=2).encode()
    words = (b"NaN", b"1e999", b"null", b"{", b"[" * 2000, b'"', b"-", b"9" * 5000)
    return damaged(text, words) | altered(whole).map(lambda value: json.dumps(value).encode())


YAML_WORDS = (
    b"!!python/object/apply:os.system ['touch owned']", b"&a ", b"*a", b"!!", b"? ", b"- ", b": ",
    b"{", b"[" * 300, b"'", b"\t", b"---\n", b"%YAML 9.9\n", b"<<: ", b"1e-4", b"0x", b".inf",
    b"2016-03-16", b"\xef\xbb\xbf", b"\xff\xfe", b"9" * 5000, b"../../etc/passwd", b"1:2:3",
)  # fmt: skip


def yaml_of(*files: bytes) -> st.SearchStrategy[bytes]:
    text = st.text(max_size=200).map(lambda value: value.encode("utf-8", "surrogatepass"))
    return st.one_of(text, *(damaged(file, YAML_WORDS) for file in files))


# --- the targets ----------------------------------------------------------------------------------


@dataclass
class Target:
    """A kind of bad input: how it is made, and what reads it.

    Attributes:
        read: returns a word for what became of the case, for counting; raises only what a person
            would see as one sentence.
    """

    name: str
    made: st.SearchStrategy[Any]
    read: Callable[[Any], str]


@dataclass
class Findings:
    """What became of the cases of a target."""

    cases: int = 0
    slowest: float = 0.0
    memory: int = 0  # bytes that a case took at most
    words: dict[str, int] = field(default_factory=dict)


class Fuzz:
    """The targets, with the valid files that they begin from, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "inside"
        self.folder.mkdir()
        self.sandbox = Sandbox(self.folder)
        self.run = write_run(self.folder / "runs", depth=20)
        (self.run / "metrics.csv").write_text(_metrics())
        (self.run / "environment.json").write_text(json.dumps(_NOTES))
        np.save(self.run / "predictions.npy", np.arange(20) % 10)
        self.begun = write_run(self.folder / "runs", depth=20, seed=1, test_error=None)
        self.dataset = make_cifar(folder / "tiny", train=20, test=10)
        self._command("report", str(self.run), "--format", "html")  # loads all that draws
        self.targets = {target.name: target for target in self._make_targets(folder)}

    def attack(self, name: str, examples: int, seed: int | None = None) -> Findings:
        """Try a target with so many cases; an assertion fails at the first that goes wrong.

        Args:
            seed: of Hypothesis; None makes the same cases each time.
        """
        target, findings = self.targets[name], Findings()

        def case(made: Any) -> None:
            begun, before = time.process_time(), _forget_most_memory()
            with self.sandbox.case():
                try:
                    word = target.read(made)
                except EXPECTED as error:
                    word = "refused" if str(error).strip() else ""
            assert word, "an error without a sentence"
            findings.cases += 1
            findings.slowest = max(findings.slowest, time.process_time() - begun)
            findings.memory = max(findings.memory, _most_memory() - before)
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
        yield Target("--set", _overrides(), self._set)
        result = json.loads((self.run / "result.json").read_text())
        yield Target("result.json", json_of(result), self._in_run("result.json"))
        metrics = damaged(_metrics().encode(), CSV_WORDS)
        yield Target("metrics.csv", metrics, self._in_run("metrics.csv"))
        for name in ("progress.json", "failure.json", "diverged.json"):
            yield Target(name, json_of(_NOTES), self._in_begun(name))
        yield Target("progress.json at work", json_of(_NOTES), self._at_work)
        yield Target("environment.json", json_of(_NOTES), self._in_run("environment.json"))
        probe = make_probe("original").model_dump(mode="json")
        yield Target("probe.json", json_of(probe), self._probe)
        predictions = damaged((self.run / "predictions.npy").read_bytes(), NPY_WORDS)
        yield Target("predictions.npy", predictions, self._predictions)
        yield Target("list of a sweep", json_of({"format": 1, "runs": ["a", "b/c"]}), self._listed)
        yield from self._weights_targets()
        yield from self._checkpoint_targets()
        yield from self._archive_targets(folder)

    # --- YAML and the command line ----------------------------------------------------------------

    def _command(self, *arguments: str) -> str:
        """What a command line comes to; nothing is trained, since there are no data."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(list(arguments))
        said = err.getvalue()
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
        """All that reads a run directory: status, a report, and a second start."""
        self._command("status", str(run.parent))
        self._report(run)
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
        """In one format or another, by what the directory holds."""
        whole = b"".join(path.read_bytes() for path in sorted(run.iterdir()))
        format = RENDERERS[zlib.crc32(whole) % len(RENDERERS)]
        self._command("report", str(run.parent), "--format", format)

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
        """A run that a process has in hand, so that times are worked out from what it says."""
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

    def _probe(self, content: bytes) -> str:
        """Its pictures on the report's page take a second each time, so they are drawn now and
        then."""
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
            found = read_guesses(self.run, 0, "cifar10", 50.0)
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

    # --- networks that were exported, and snapshots ---------------------------------------------

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
        settings, sets = _tiny_training(self.dataset)
        trainer = Trainer.start(settings, sets, torch.device("cpu"))
        own = copy.deepcopy(trainer.state())
        folder = self.folder / "checkpoints"
        folder.mkdir()
        state = _small_state()
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
            """Whole by its digest, as somebody can make it on purpose."""
            trainer.restore(changes)
            trainer.state()  # what was taken can be gone on with
            return "taken"

        both = damaged(whole) | damaged(_pickle_of(whole)).map(lambda bad: _with_pickle(whole, bad))
        yield Target("checkpoint.pt", both, damaged_file)
        yield Target("checkpoint's state", altered(own), foreign_state)

    # --- archives ---------------------------------------------------------------------------------

    def _archive_targets(self, folder: Path) -> Iterator[Target]:
        tars = {mode: _tar(self.dataset, folder / "tiny", mode) for mode in ("", "gz", "xz", "bz2")}

        def read(made: tuple[str, bytes]) -> str:
            suffix, content = made
            path = self._write(f"archive.tar.{suffix}", content)
            target = self.folder / "data"
            try:
                obtain(self.dataset, target, archive=path, progress=False)
                return "taken"  # the damage was in what nobody needs, or nowhere
            finally:
                left = {p.name for p in target.rglob("*")} if target.exists() else set()
                assert not any(name.startswith(".resvar-") for name in left)
                assert left <= {self.dataset.folder, *self.dataset.files}
                shutil.rmtree(target, ignore_errors=True)

        whole = st.sampled_from(sorted(tars)).flatmap(
            lambda mode: st.tuples(st.just(mode), damaged(tars[mode]))
        )
        members = _hostile_tars(self.dataset, folder / "tiny").map(lambda made: ("", made))
        yield Target("archive", whole | members, read)


# --- valid files to begin from --------------------------------------------------------------------


_NOTES = {
    "format": 1, "iteration": 3, "iterations": 400, "seconds": 1.5, "images_per_second": 70.0,
    "message": "no", "loss": "nan", "torch": "2.0", "threads": 2,
    "resumed": [{"iteration": 2, "changed": {"torch": "2.1"}}],
}  # fmt: skip
"""Something of all that the JSON files beside the result hold."""


def _metrics() -> str:
    columns = (
        "iteration,epoch,lr,train_loss,train_error,test_loss,test_error,images_per_second,seconds"
    )
    rows = [f"{i},0.{i},0.05,2.1,80.0,2.2,81.5,70.0,{i}.5" for i in range(1, 9)]
    return "\n".join([columns, *rows]) + "\n"


NPY_WORDS = (
    b"'|O'", b"'<i8'", b"(20,)", b"(10**12,)", b"(99999999999,)", b"(-1,)", b"True", b"(" * 200,
    b"[('a', 'O')]", b"\x93NUMPY",
)  # fmt: skip
CSV_WORDS = (b",,,,", b"nan", b"inf", b'"', b"\r", b"\n\n", b"1e999", b"9" * 5000, b"," * 500)


def _overrides() -> st.SearchStrategy[list[str]]:
    names = st.sampled_from(sorted(Settings.model_fields)) | st.text(max_size=10)
    values = st.one_of(
        st.text(max_size=40),
        VALUES.map(json.dumps),
        st.sampled_from([word.decode("latin1") for word in YAML_WORDS]),
    )
    one = st.builds("{}={}".format, names, values) | st.text(max_size=30)
    # What a command line can hold: no NUL, and not an option of its own.
    return st.lists(one.filter(lambda text: "\0" not in text), min_size=1, max_size=4)


def _small_state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "config_hash": "0123456789abcdef",
        "iteration": 5,
        "model": {"weight": torch.randn(8, 3, 3, 3, generator=generator)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        "rows": [{"iteration": 3, "test_loss": 1 / 3}],
    }


def _tiny_training(dataset: Dataset) -> tuple[Settings, Splits]:
    from resvar.data.cifar import Images

    options = {"variant": "original", "depth": 8}
    settings = resolve(
        options=options, overrides=["precision=fp32", "batch_size=4", "bn_batch_size=4"]
    )
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    labels = random.integers(0, 10, 8)
    images = Images(pixels, labels, pixels, labels, ("x",) * 10, dataset.checksum)
    return settings, Splits.prepare(images, settings, torch.device("cpu"))


def _pickle_of(checkpoint: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.read(name)


def _with_pickle(checkpoint: bytes, pickled: bytes) -> bytes:
    """A checkpoint whose archive is sound and whose pickle is not."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def _tar(dataset: Dataset, folder: Path, mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=f"w:{mode}") as tar:
        tar.add(folder / dataset.folder, dataset.folder)
    return made.getvalue()


def _hostile_tars(dataset: Dataset, folder: Path) -> st.SearchStrategy[bytes]:
    """All the right files, with members among them that no archive should have."""
    names = st.sampled_from(
        [
            "../out",
            "/etc/owned",
            "a/../../out",
            "C:\\out",
            "..\\out",
            *dataset.files,
            "",
            ".",
            "x" * 300,
        ]
    )
    kinds = st.sampled_from(
        [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE,
         tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, b"Z"]
    )  # fmt: skip
    links = st.sampled_from(["/etc/passwd", "../../out", "", "data_batch_1"])
    member = st.tuples(names, kinds, links, st.sampled_from([0, 5, 2**40]))

    def build(members: list[tuple[str, bytes, str, int]], first: bool) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            if not first:
                tar.add(folder / dataset.folder, dataset.folder)
            for name, kind, link, size in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, link, size
                tar.addfile(info)  # a size without content: what follows is taken for it
            if first:
                tar.add(folder / dataset.folder, dataset.folder)
        return made.getvalue()

    return st.builds(build, st.lists(member, min_size=1, max_size=3), st.booleans())
