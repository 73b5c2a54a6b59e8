"""The package as it is installed: its wheel, its version, what `import resvar` does."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest

import resvar
from resvar import __version__
from resvar.strict_yaml import read_yaml
from scripts.lowest_versions import constraints
from tests.support.commands import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in a wheel built from this tree."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    built = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", folder, ROOT],
        capture_output=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    if "No module named pip" in built.stderr:
        pytest.skip("pip is not installed")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob(f"resvar-{__version__}-*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.heavy
@pytest.mark.parametrize(("folder", "suffix"), [("configs", ".yaml"), ("examples", ".py")])
def test_configurations_and_examples_are_inside_and_the_same(wheel, folder, suffix):
    files = list((ROOT / folder).rglob(f"*{suffix}"))
    assert files
    for path in files:
        assert wheel.read(f"resvar/{path.relative_to(ROOT)}") == path.read_bytes()
    inside = [name for name in wheel.namelist() if name.startswith(f"resvar/{folder}/")]
    assert len(inside) == len(files), "something else was packed with them"


def test_all_of_the_package_is_inside_and_nothing_else(wheel):
    kinds = (
        "*.py", "page/*.j2", "page/*.css", "page/*.js", "cifar10-sample/*.webp",
        "cifar10-sample/*.csv", "cifar10-sample/*.txt",
    )  # fmt: skip
    found = [path for kind in kinds for path in (ROOT / "resvar").rglob(kind)]
    modules = {str(path.relative_to(ROOT)) for path in found}
    assert len({path.suffix for path in found}) == len(kinds)
    names = set(wheel.namelist())
    assert modules <= names
    assert "resvar/py.typed" in names
    assert not {name for name in names if not name.startswith(("resvar/", "resvar-"))}


def test_the_command_is_declared(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "resvar = resvar.__main__:enter" in wheel.read(points).decode()


@pytest.mark.heavy
def test_the_wheel_works_alone(wheel, tmp_path):
    """Unpacked and run without the checkout: the configurations are found inside."""
    wheel.extractall(tmp_path / "unpacked")
    program = (
        "import resvar.files as f; print(f.configs()); "
        "import resvar.data.sample as s; print(s.SAMPLE_FOLDER, len(s.load_sample().test_labels)); "
        "print(*f.shipped('variants'), *f.shipped('protocols'), *f.shipped('sweeps'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, encoding="utf-8",
        check=True,
        env={"PYTHONPATH": str(tmp_path / "unpacked")}, timeout=60,
    )  # fmt: skip
    assert str(tmp_path / "unpacked" / "resvar" / "configs") in done.stdout
    assert f"{tmp_path / 'unpacked' / 'resvar' / 'data' / 'cifar10-sample'} 1000" in done.stdout
    assert {"full-preact", "paper", "table2"} <= set(done.stdout.split())


# --- one version ----------------------------------------------------------------------------------


def test_the_citation_names_this_version():
    assert str(read_yaml(ROOT / "CITATION.cff")["version"]) == __version__


def test_the_wheels_metadata_name_this_version(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    assert f"\nVersion: {__version__}\n" in wheel.read(metadata).decode()


# --- import resvar --------------------------------------------------------------------------------


def test_every_exported_name_is_there_and_shown():
    for name in resvar.__all__:
        assert getattr(resvar, name) is not None
    assert set(resvar.__all__) <= set(dir(resvar))
    assert {"build_model", "load_model", "load_run", "load_runs", "train", "sweep", "report",
            "named", "UserError"} <= set(resvar.__all__)  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = resvar.nonsense


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given, wanted):
    """Set by the import, before torch loads: OpenMP reads it then."""
    code = "import os, sys, resvar\nprint(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    clean = {key: value for key, value in os.environ.items() if "OMP" not in key}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean | given,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout == f"{wanted} False\n", done.stderr


def test_the_lowest_versions_are_the_bounds_of_the_dependencies():
    assert constraints(["a-b>=1.2", "c>=3.0.4"]) == ["a-b==1.2", "c==3.0.4"]
    assert constraints(["a>=1", "torch>=2.4"], without=["torch"]) == ["a==1"]
    with pytest.raises(ValueError, match="name>=version"):
        constraints(["a~=1.0"])
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "dependencies"
    ]
    assert len(constraints(declared)) == len(declared)
