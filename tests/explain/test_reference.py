"""`resvar settings` and `resvar list`."""

from __future__ import annotations

import json

import pytest
import yaml

from resvar.cli import run_command
from resvar.config import resolve
from resvar.files import shipped
from resvar.settings import ROLES, Settings


def printed(capsys, *arguments):
    assert run_command(list(arguments)) == 0
    return capsys.readouterr().out


def test_every_setting_is_in_the_list_with_its_protocols(capsys):
    text = printed(capsys, "settings")
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert set(ROLES) <= set(lines)
    given = text.partition("What the protocols set")[2]
    header, _, *rows = given.strip().splitlines()
    names = header.split("fixed in")[0].split()[1:]
    table = {row.split()[0]: row for row in rows if row.split()}
    for name in names:
        for setting, value in yaml.safe_load(
            shipped("protocols")[name].read_text(encoding="utf-8")
        ).items():
            assert str(value).lower() in table[setting].lower()


@pytest.mark.parametrize("name", list(ROLES))
def test_every_setting_is_explained_and_its_example_works(name, capsys):
    text = printed(capsys, "settings", name)
    assert ROLES[name].help in " ".join(text.split())
    assert (ROLES[name].paper or "type") in text
    (example,) = [line for line in text.splitlines() if line.startswith("example")] or [None]
    if example is None or ROLES[name].part in ("ordering", "architecture", "data"):
        return
    override = example.split("--set ")[1].strip("'")
    if name != "normalize" and name != "nesterov":
        resolve(options={"variant": "v2", "depth": 20}, overrides=[override])


def test_json_has_choices_limits_and_defaults(capsys):
    found = json.loads(printed(capsys, "settings", "--format", "json"))
    assert set(found) == set(ROLES)
    assert found["optimizer"]["choices"] == ["sgd", "muon"]
    assert found["momentum"]["type"] == "number, 0 or more, less than 1"
    assert found["milestones"]["type"].startswith("list: whole number, 1 or more")
    for name, field in Settings.model_fields.items():
        assert found[name]["required"] == field.is_required()
    assert found["lr"]["protocols"]["paper"] == 0.1
    assert found["lr"]["source"].startswith("arXiv:1603.05027")


def test_the_imagenet_schedule_is_that_of_the_second_paper(capsys):
    """arXiv:1603.05027, appendix: divided at epochs 30 and 60; arXiv:1512.03385: on a plateau."""
    values = yaml.safe_load(shipped("protocols")["imagenet"].read_text(encoding="utf-8"))
    epoch = -(-1_281_167 // values["batch_size"])
    assert values["milestones"] == [30 * epoch, 60 * epoch]
    assert (values["lr"], values["batch_size"], values["bn_batch_size"]) == (0.1, 256, 32)
    about = {
        row["name"]: row["about"]
        for row in json.loads(printed(capsys, "list", "protocols", "--format", "json"))["protocols"]
    }
    assert "epochs 30 and 60 (arXiv:1603.05027, appendix)" in about["imagenet"]
    assert "plateaus, for up to 600,000 iterations" in printed(capsys, "settings")


def test_a_source_about_cifar_alone_says_so():
    """Section 4.2 of arXiv:1512.03385 fixes nothing for ImageNet."""
    for role in ROLES.values():
        assert "section 4.2" not in role.paper or role.paper.endswith("section 4.2 (CIFAR-10)")


def test_an_unknown_setting_is_refused_with_the_one_that_is_meant(capsys):
    assert run_command(["settings", "learning_rate"]) == 2
    assert "did you mean 'lr'?" in capsys.readouterr().err


def test_the_list_names_everything_that_is_shipped(capsys):
    text = printed(capsys, "list")
    for kind in ("variants", "protocols", "sweeps", "launchers"):
        assert set(shipped(kind)) <= set(text.split())
    assert {"v1", "v2", "4(e)", "sample", "cifar100", "folder", "1001", "152"} <= set(text.split())


def test_a_kind_alone_and_as_json(capsys, tmp_path):
    assert "Sweeps" not in printed(capsys, "list", "protocols")
    found = json.loads(printed(capsys, "list", "sweeps", "--format", "json"))
    assert {row["name"]: row["runs"] for row in found["sweeps"]}["table2"] == 50
    assert run_command(["list", "--out", str(tmp_path / "all.json")]) == 0
    assert set(json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))) == {
        "orderings", "protocols", "sweeps", "launchers", "datasets", "depths",
    }  # fmt: skip
    capsys.readouterr()
    assert run_command(["list", "orders"]) == 2
    assert "'orderings'" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["v1", "V1", "v2", "V2"])
def test_the_short_names_mean_the_paper_s(typed):
    found = resolve(options={"variant": typed, "depth": 20})
    assert found.variant == {"1": "original", "2": "full-preact"}[typed[1]]
    assert found == resolve(options={"variant": found.variant, "depth": 20})


def test_networks_know_the_short_names():
    import resvar

    assert resvar.build_model("v2", depth=8).ordering.name == "full-preact"
