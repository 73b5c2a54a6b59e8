from __future__ import annotations

import dataclasses
import inspect
import math
import re

import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from resvar.config import parse_overrides, resolve, settings_in
from resvar.errors import UnreadableError, UserError
from resvar.files import configs
from resvar.models.architecture import plan
from resvar.models.network import build_model
from resvar.reports.comparable import deviations
from resvar.roles import RECORDED
from resvar.rundir import read_settings
from resvar.settings import (
    ARCHITECTURE,
    BEFORE,
    NOT_HASHED,
    PROTOCOL_KEYS,
    REMOVED,
    ROLES,
    TRAINING_HALF,
    Settings,
    differences,
)
from resvar.strict_yaml import parse_mapping, read_yaml

V1_20 = {"variant": "original", "depth": 20}


def settings(*overrides, **options):
    return resolve(options=V1_20 | options, overrides=overrides)


def refused(*overrides, config=None, **options):
    """The sentence with which settings are refused."""
    with pytest.raises(UserError) as caught:
        resolve(config=config, options=options if config else V1_20 | options, overrides=overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence.strip()
    assert sentence.endswith((".", "?", ")"))
    return sentence


# --- what the settings are ------------------------------------------------------------------------


def test_the_names_are_those_of_the_design():
    design = """variant depth unit family stem cardinality base_width shortcut stride_on dataset
        seed protocol iterations batch_size bn_batch_size lr momentum nesterov weight_decay
        weight_decay_on normalize holdout precision deterministic eval_every checkpoint_every"""
    assert set(design.split()) <= set(Settings.model_fields)
    assert set(PROTOCOL_KEYS) <= set(Settings.model_fields)


def test_without_a_word_the_protocol_is_the_papers():
    """arXiv:1603.05027, section 4 and appendix; arXiv:1512.03385, section 4.2."""
    paper = settings()
    expected = {
        "normalize": "pixel-mean", "crop_padding": 4, "flip": True, "holdout": 0,
        "iterations": 64_000, "batch_size": 128, "bn_batch_size": 64, "schedule": "step",
        "lr": 0.1, "milestones": [32_000, 48_000], "lr_factor": 0.1, "warmup_iterations": 400,
        "warmup_lr": 0.01, "peak_at": 0.3, "momentum": 0.9, "nesterov": False,
        "weight_decay": 1e-4, "weight_decay_on": "weights",
    }  # fmt: skip
    assert {name: getattr(paper, name) for name in expected} == expected
    assert set(expected) <= set(TRAINING_HALF)
    assert (paper.protocol, paper.seed, paper.dataset) == ("paper", 0, "cifar10")
    assert (paper.unit, paper.shortcut, paper.stem) == ("basic", "pad", "cifar")
    assert str(paper.directory) == "paper/original-20/seed-0"


@pytest.mark.parametrize("protocol", ["paper", "short", "quick"])
def test_every_shipped_protocol_says_the_whole_training_half_or_leaves_the_default(protocol):
    chosen = settings(protocol=protocol)
    for key, value in read_yaml(configs() / "protocols" / f"{protocol}.yaml").items():
        assert getattr(chosen, key) == value
    assert deviations(chosen) == {}


def test_the_roles_are_the_lists_that_earlier_versions_kept_by_hand():
    """Written out once more: a role that changes by mistake would change hashes and records."""
    training = """normalize crop_padding flip holdout iterations batch_size bn_batch_size schedule
        lr milestones lr_factor warmup_iterations warmup_lr peak_at optimizer muon_lr muon_decay
        momentum nesterov weight_decay weight_decay_on"""
    execution = """precision memory_format compile capture kernels recompute deterministic
        eval_every checkpoint_every"""
    assert list(TRAINING_HALF) == training.split()
    assert list(PROTOCOL_KEYS) == training.split() + execution.split()
    assert set(NOT_HASHED) == {"tensorboard", "wandb", "probe_at", "recompute", "capture"}
    plan_arguments = list(inspect.signature(plan).parameters)
    assert set(ARCHITECTURE) == set(plan_arguments)
    before = {"optimizer": "sgd", "muon_lr": 0.02, "muon_decay": 0.0, "kernels": "plain"}
    assert before == BEFORE
    assert frozenset(training.split()) - {"optimizer", "muon_lr", "muon_decay"} == RECORDED
    recorded = {name for name, role in ROLES.items() if role.recorded}
    assert recorded == {"precision", "kernels", "num_classes"}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_sentence_of_help_and_a_default_that_its_type_allows(name):
    role, info = ROLES[name], Settings.model_fields[name]
    assert re.fullmatch(r"\S.*\.", role.help)
    if info.is_required():
        return
    given = {key: value for key, value in settings().model_dump().items() if key != name}
    again = Settings(**given, **{name: info.default})
    assert getattr(again, name) == info.default


def test_the_paper_fixes_what_its_protocol_says_and_no_other_setting():
    """Of paper.yaml, arXiv:1603.05027 and arXiv:1512.03385 are silent on these alone."""
    silent = {"nesterov", "weight_decay_on", "holdout", "eval_every", "checkpoint_every"}
    said = set(read_yaml(configs() / "protocols/paper.yaml"))
    assert {name for name, role in ROLES.items() if role.paper} == said - silent


def test_an_old_record_is_read_without_its_protocols_file_and_without_newer_settings(tmp_path):
    """Of the settings of training, it has those of the first format and no others."""
    path = tmp_path / "mine.yaml"
    protocol = "{iterations: 7, batch_size: 8, bn_batch_size: 8, schedule: step, lr: 0.2}"
    path.write_text(protocol, encoding="utf-8")
    begun = settings(protocol=str(path))
    path.unlink()
    newer = set(TRAINING_HALF) - RECORDED
    record = {key: value for key, value in begun.model_dump().items() if key not in newer}
    assert settings_in(record, "config.yaml") == begun
    del record["lr"]  # then it is a user's file, and names a protocol that is not there
    with pytest.raises(UserError, match="protocol"):
        settings_in(record, "config.yaml")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        settings().lr = 1.0


# --- layers ---------------------------------------------------------------------------------------


def test_the_later_layer_wins(tmp_path):
    """Defaults < protocol < --config < options < --set, one step at a time."""
    protocol, config = tmp_path / "mine.yaml", tmp_path / "config.yaml"
    shipped = (configs() / "protocols/paper.yaml").read_text(encoding="utf-8")
    protocol.write_text(shipped.replace("momentum: 0.9\n", "momentum: 0.5\n"), encoding="utf-8")
    config.write_text("variant: original\ndepth: 20\n", encoding="utf-8")
    assert Settings.model_fields["momentum"].default == 0.9

    def momentum(options=None, overrides=()):
        return resolve(config, {"protocol": str(protocol)} | (options or {}), overrides).momentum

    assert momentum() == 0.5
    config.write_text("variant: original\ndepth: 20\nmomentum: 0.6\n", encoding="utf-8")
    assert momentum() == 0.6
    assert momentum({"momentum": 0.7}) == 0.7
    assert momentum({"momentum": 0.7}, ["momentum=0.8"]) == 0.8
    assert momentum({"momentum": None}) == 0.6  # None: not given


def test_a_protocol_named_in_a_file_or_by_set_is_taken(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("variant: original\ndepth: 20\nprotocol: short\n", encoding="utf-8")
    assert resolve(config).iterations == 3910
    assert resolve(config, {"protocol": "quick"}).iterations == 400
    assert resolve(config, {"protocol": "quick"}, ["protocol=paper"]).iterations == 64_000
    assert resolve(config, {}, ["iterations=7"]).iterations == 7


def test_a_new_variant_over_a_config_brings_its_own_ordering(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(settings().to_yaml(), encoding="utf-8")
    changed = resolve(config, {"variant": "full-preact"})
    assert (changed.lead, changed.after_add) == (["bn", "relu"], [])
    assert changed == settings(variant="full-preact")


def test_a_protocol_of_ones_own_is_named_after_its_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "iterations: 10\nbatch_size: 8\nbn_batch_size: 4\nschedule: one-cycle\nlr: 0.1\n",
        encoding="utf-8",
    )
    tiny = settings(protocol=str(path))
    assert (tiny.protocol, tiny.iterations, tiny.bn_batch_size) == ("tiny", 10, 4)
    assert str(tiny.directory) == "tiny/original-20/seed-0"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=0.1", "--set: unknown setting 'learning_rate'"),
        ("momentun=0.9", "--set: unknown setting 'momentun'; did you mean 'momentum'"),
        ("Depth=20", "--set: unknown setting 'Depth'; did you mean 'depth'"),
        ("batchsize=20", "--set: unknown setting 'batchsize'; did you mean 'batch_size'"),
        ("qqq=1", "--set: unknown setting 'qqq'"),
        ("lr", "--set lr: write it as KEY=VALUE"),
        ("=1", "--set =1: write it as KEY=VALUE"),
        ("", "--set : write it as KEY=VALUE"),
        ("lr=", "--set: 'lr' is None"),
        ("lr='0.1'", "--set: 'lr' is '0.1'"),
        ("lr=fast", "--set: 'lr' is 'fast'"),
        ("lr=[0.1]", "--set: 'lr' is [0.1]"),
        ("lr=0", "--set: 'lr' is 0"),
        ("lr=-0.1", "--set: 'lr' is -0.1"),
        ("lr=.nan", "--set: 'lr' is nan"),
        ("lr=.inf", "--set: 'lr' is inf"),
        ("lr=1e999", "--set: 'lr' is inf"),
        ("lr=true", "--set: 'lr' is True"),
        ("warmup_lr=0", "--set: 'warmup_lr' is 0"),
        ("warmup_lr=.inf", "--set: 'warmup_lr' is inf"),
        ("weight_decay=-1e-4", "--set: 'weight_decay' is -0.0001"),
        ("weight_decay=.nan", "--set: 'weight_decay' is nan"),
        ("weight_decay=.inf", "--set: 'weight_decay' is inf"),
        ("momentum=1", "--set: 'momentum' is 1"),
        ("momentum=-0.1", "--set: 'momentum' is -0.1"),
        ("momentum=.nan", "--set: 'momentum' is nan"),
        ("lr_factor=0", "--set: 'lr_factor' is 0"),
        ("lr_factor=1.5", "--set: 'lr_factor' is 1.5"),
        ("lr_factor=.nan", "--set: 'lr_factor' is nan"),
        ("peak_at=0", "--set: 'peak_at' is 0"),
        ("peak_at=1", "--set: 'peak_at' is 1"),
        ("peak_at=.nan", "--set: 'peak_at' is nan"),
        ("iterations=0", "--set: 'iterations' is 0"),
        ("iterations=-5", "--set: 'iterations' is -5"),
        ("iterations=true", "--set: 'iterations' is True"),
        ("iterations=10.0", "--set: 'iterations' is 10.0"),
        ("iterations=1e3", "--set: 'iterations' is 1000.0"),
        ("iterations=99999999999", "--set: 'iterations' is 99999999999"),
        ("batch_size=0", "--set: 'batch_size' is 0"),
        ("bn_batch_size=-1", "--set: 'bn_batch_size' is -1"),
        ("batch_size=100", "'batch_size' 100 is not a multiple of 'bn_batch_size' 64"),
        ("bn_batch_size=256", "'batch_size' 128 is not a multiple of 'bn_batch_size' 256"),
        ("milestones=[20, 10]", "'milestones' [20, 10] must increase"),
        ("milestones=[10, 10]", "'milestones' [10, 10] must increase"),
        ("milestones=[0]", "--set: 'milestones'"),
        ("milestones=[1.5]", "--set: 'milestones'"),
        ("milestones=10", "--set: 'milestones' is 10"),
        ("warmup_iterations=-1", "--set: 'warmup_iterations' is -1"),
        ("eval_every=0", "--set: 'eval_every' is 0"),
        ("checkpoint_every=0", "--set: 'checkpoint_every' is 0"),
        ("crop_padding=-1", "--set: 'crop_padding' is -1"),
        ("crop_padding=17", "--set: 'crop_padding' is 17"),
        ("flip=1", "--set: 'flip' is 1"),
        ("flip='yes'", "--set: 'flip' is 'yes'"),
        ("holdout=-1", "--set: 'holdout' is -1"),
        ("holdout=50000", "--set: 'holdout' is 50000"),
        ("seed=-1", "--set: 'seed' is -1"),
        ("seed=true", "--set: 'seed' is True"),
        ("seed=9223372036854775808", "--set: 'seed' is 9223372036854775808"),
        ("depth='20'", "--set: 'depth' is '20'"),
        ("depth=20.0", "--set: 'depth' is 20.0"),
        ("depth=21", "--set: depth 21 fits no residual unit"),
        ("depth=38", "--set: depth 38 fits basic units"),
        ("family=mnist", "--set: 'family' is 'mnist'"),
        ("unit=wide", "--set: 'unit' is 'wide'"),
        ("shortcut=conv", "--set: 'shortcut' is 'conv'"),
        ("stride_on=last", "--set: 'stride_on' is 'last'"),
        ("dataset=mnist", "--set: 'dataset' is 'mnist'"),
        ("normalize=none", "--set: 'normalize' is 'none'"),
        ("schedule=cosine", "--set: 'schedule' is 'cosine'"),
        ("weight_decay_on=bn", "--set: 'weight_decay_on' is 'bn'"),
        ("precision=fp16", "--set: 'precision' is 'fp16'"),
        ("deterministic=1", "--set: 'deterministic' is 1"),
        ("cardinality=0", "--set: 'cardinality' is 0"),
        ("protocol=papr", "--set: unknown protocol 'papr'; did you mean 'paper'"),
        ("protocol=xyzxyz", "--set: unknown protocol 'xyzxyz'; choose from "),
        ("protocol=5", "--set: 'protocol' must be a name or a YAML file, not 5"),
        ("protocol=none.yaml", "none.yaml: cannot be read"),
        ("variant=orignal", "--set: unknown variant 'orignal'; did you mean 'original'"),
        ("variant=5", "--set: 'variant' must be a name or a YAML file, not 5"),
        ("variant=none.yaml", "none.yaml: cannot be read"),
        ("lead=[bn]", "--set: to change an ordering, write a YAML file"),
        ("after_add=[]", "--set: to change an ordering, write a YAML file"),
        ("unusual=true", "--set: to change an ordering, write a YAML file"),
        ("lr=&a 1", "--set lr, line 1: anchors and aliases are not allowed"),
        ("lr=*a", "--set lr, line 1: anchors and aliases are not allowed"),
        ("lr=!!float 1", "--set lr, line 1: tags such as"),
        ("lr=!!python/name:os.system", "--set lr, line 1: tags such as"),
        ("lr={a: 1, a: 2}", "--set lr, line 1: this is not valid YAML: the key 'a' occurs twice"),
        ("lr=[", "--set lr, line"),
    ],
)
def test_a_wrong_override_is_refused_with_its_source_and_name(override, message):
    assert message in refused(override)


def test_nesterov_without_momentum_is_refused():
    sentence = refused("nesterov=true", "momentum=0")
    assert "'nesterov' needs a 'momentum' above 0" in sentence


@pytest.mark.parametrize("key", ["variant", "depth"])
def test_a_missing_variant_or_depth_is_asked_for(key):
    options = {name: value for name, value in V1_20.items() if name != key}
    with pytest.raises(UserError, match=f"--{key} is missing; an example is"):
        resolve(options=options)


def test_an_option_is_named_as_it_is_written():
    assert "--depth: depth 21" in refused(depth=21)
    assert "--protocol: unknown protocol 'papr'" in refused(protocol="papr")
    assert "--variant: unknown variant 'V3'" in refused(variant="V3")
    assert "--seed: 'seed' is -1" in refused(seed=-1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant: original\ndepth: 20\nlerning: 1\n", "unknown setting 'lerning'"),
        ("variant: original\ndepth: 20\nlr: fast\n", "'lr' is 'fast'"),
        ("variant: original\ndepth: 21\n", "depth 21 fits no"),
        ("variant: original\ndepth: 20\ndepth: 20\n", "line 3.*'depth' occurs twice"),
        ("variant: original\ndepth: &d 20\n", "line 2: anchors"),
        ("variant: original\ndepth: !!int 20\n", "line 2: tags"),
        ("- variant\n", "a mapping of names"),
        ("variant: original\ndepth: 20\nlead: [bn, relu]\n", "to change an ordering, write a YAML"),
        (
            "variant: original\ndepth: 20\nlead: []\nbetween: [bn, relu]\n"
            "trail: []\nafter_add: [bn, relu]\n",
            "differs from the ordering 'original'",
        ),
        (
            "variant: own\ndepth: 20\nlead: [bn]\nbetween: [bn, relu]\ntrail: []\nafter_add: []\n",
            "ordering 'own': relu is missing",
        ),
        (
            "variant: own\ndepth: 20\nlead: bn\nbetween: [bn, relu]\ntrail: []\nafter_add: []\n",
            "'lead' must be a list of ops",
        ),
    ],
)
def test_a_wrong_config_is_refused_with_its_file_and_name(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        resolve(path)
    assert str(path) in str(caught.value)


def test_a_wrong_protocol_file_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "iterations: 0\nbatch_size: 8\nbn_batch_size: 8\nschedule: step\nlr: 0.1\n",
        encoding="utf-8",
    )
    assert f"{path}: 'iterations' is 0" in refused(protocol=str(path))
    path.write_text(
        "iterations: 5\nbatch_size: 8\nbn_batch_size: 8\nschedule: step\n", encoding="utf-8"
    )
    assert "the protocol 'mine' lacks 'lr'" in refused(protocol=str(path))
    path.write_text("iteration: 5\n", encoding="utf-8")
    assert f"{path}: unknown setting 'iteration'; did you mean" in refused(protocol=str(path))
    for key in ("depth", "variant", "seed", "dataset"):  # no training settings
        path.write_text(f"{key}: 5\n", encoding="utf-8")
        assert f"{path}: unknown setting '{key}'" in refused(protocol=str(path))


@pytest.mark.parametrize("key", ["depth", "seed", "lr"])
@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "9" * 5000, "1." + "9" * 5000])
def test_a_number_of_thousands_of_digits_is_refused(key, number):
    assert "characters is too long" in refused(f"{key}={number}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("iterations=0400", "'iterations' is '0400', but should be a valid integer; write 400."),
        ("iterations=1_000", "'iterations' is '1_000', but should be a valid integer; write 1000."),
        ("seed=0b11", "'seed' is '0b11', but should be a valid integer; write 3."),
        ("depth=1:30", "'depth' is '1:30', but should be a valid integer."),
        ("lr=1:30", "'lr' is '1:30', but should be a valid number."),
        ("lr=1_0.5", "'lr' is '1_0.5', but should be a valid number; write 10.5."),
        ("milestones=[010]", "'milestones' is ['010'], but should be a valid integer; write 10."),
        ("flip=yes", "'flip' is 'yes', but should be a valid boolean; write true."),
        ("nesterov=Off", "'nesterov' is 'Off', but should be a valid boolean; write false."),
        ("seed=2016-03-16", "'seed' is '2016-03-16', but should be a valid integer."),
        ("variant=1e5", "'variant' must be a name or a YAML file, not 100000.0."),
        ("protocol=a b", "unknown protocol 'a b'; choose from"),
    ],
)
def test_notations_of_yaml_1_1_are_refused_and_the_usual_one_is_named(override, message):
    assert message in refused(override)


NASTY = [
    True, False, None, -1, 0, 10**30, 10**5000, -(10**400), 0.5, math.nan, math.inf, 1e308, "",
    "110", "x" * 10_000, "../x", "\0", "\ud800", [], {}, [1] * 10_000, ["bn"] * 10_000, [["a"]],
    {"a": 1}, [True], [1.5], ["1"], b"x", object(),
]  # fmt: skip


@pytest.mark.parametrize("name", Settings.model_fields)
def test_any_value_is_taken_or_refused_in_one_short_sentence(name):
    """Including values that YAML cannot express: Python users give them."""
    for value in NASTY:
        said, made = "", None
        try:
            made = settings(**{name: value})
        except UserError as error:
            said = str(error)
        assert len(said) < 420
        assert said.isprintable()
        assert made is None or yaml.safe_load(made.to_yaml()) == made.model_dump()


@pytest.mark.parametrize("key", ["variant", "protocol"])
def test_a_file_name_with_a_nul_is_refused(key):
    assert refused(f'{key}="\\0.yaml"')


def test_a_list_as_a_key_is_refused():
    assert refused("lr={[1]: 2}")


OWN = "depth: 20\nlead: [bn, relu]\nbetween: [bn, relu]\ntrail: []\nafter_add: []\n"


def test_unusual_in_a_config_must_be_true_or_false(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"variant: own\nunusual: 'no'\n{OWN}", encoding="utf-8")
    with pytest.raises(UserError, match="'unusual' must be true or false"):
        resolve(path)


@pytest.mark.parametrize("name", ["../../../elsewhere", "a b", "''"])
def test_a_config_cannot_name_a_variant_as_no_variant_file_may(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(f"variant: {name}\n{OWN}", encoding="utf-8")
    with pytest.raises(UserError):
        resolve(path)


@hypothesis_settings(max_examples=300)
@example("lr=!!python/object/apply:pytest.exit ['code was run']")
@example("milestones=[10, 20]")
@example("lr={a: {b: [1, 2")
@given(
    st.text(max_size=40)
    | st.builds(
        "{}={}".format,
        st.sampled_from([name for name in Settings.model_fields if name not in ("variant",)]),
        st.text(max_size=20)
        | st.text("0123456789.eE+-_xob:", max_size=10)
        | st.text("[]{},?-&*!|>'\"% \n01ea", max_size=10)
        | st.integers().map(str)
        | st.floats().map(str)
        | st.sampled_from(["true", "no", "null", "~", "basic", "all", "step", "bf16", "imagenet"])
        | st.just("!!python/object/apply:pytest.exit ['code was run']"),
    )
)
def test_no_override_fails_otherwise_than_in_words_or_runs_code(override):
    try:
        resolved = settings(override)
    except UserError:
        return
    assert resolve(options=resolved.model_dump()) == resolved


# --- written down and read back -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "overrides"),
    [
        ({}, []),
        ({"variant": "full-preact", "depth": 164, "seed": 7}, ["lr=1e-5", "milestones=[1, 2]"]),
        ({"protocol": "quick"}, ["precision=bf16", "nesterov=true", "weight_decay=0"]),
        ({"depth": 38}, ["unit=bottleneck", "shortcut=project", "stride_on=3x3", "holdout=5000"]),
        (
            {"depth": 50},
            ["family=imagenet", "stem=cifar", "cardinality=32", "base_width=4", "milestones=[]"],
        ),
    ],
)
def test_the_config_reads_back_to_the_same_settings(tmp_path, options, overrides):
    chosen = settings(*overrides, **options)
    path = tmp_path / "config.yaml"
    path.write_text(chosen.to_yaml(), encoding="utf-8")
    again = resolve(path)
    assert again == chosen
    assert (again.hash, again.to_yaml()) == (chosen.hash, chosen.to_yaml())
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.partition(":")[0] for line in lines] == list(Settings.model_fields)


@hypothesis_settings(max_examples=60)
@given(
    lr=st.floats(1e-300, 1e300),
    momentum=st.floats(0, 0.999),
    seed=st.integers(0, 2**63 - 1),
    milestones=st.sets(st.integers(1, 10**9), max_size=4).map(sorted),
)
def test_every_number_reads_back_to_the_same_bits(tmp_path_factory, **values):
    chosen = settings().model_copy(update=values)
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(chosen.to_yaml(), encoding="utf-8")
    assert resolve(path) == chosen


def test_a_users_own_variant_and_protocol_read_back_after_their_files_are_gone(tmp_path):
    variant, protocol = tmp_path / "mine.yaml", tmp_path / "brief.yaml"
    variant.write_text("lead: [relu]\ntrail: []\nafter_add: [bn]\n", encoding="utf-8")
    protocol.write_text(
        (configs() / "protocols/quick.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    chosen = settings("iterations=9", variant=str(variant), protocol=str(protocol))
    assert (chosen.variant, chosen.protocol) == ("mine", "brief")
    assert (chosen.lead, chosen.trail, chosen.after_add) == (["relu"], [], ["bn"])
    config = tmp_path / "config.yaml"
    config.write_text(chosen.to_yaml(), encoding="utf-8")
    variant.unlink()
    protocol.unlink()
    assert resolve(config) == chosen
    assert resolve(config).ordering.after_add == ("bn",)


def test_an_unusual_variant_reads_back(tmp_path):
    variant, config = tmp_path / "bare.yaml", tmp_path / "config.yaml"
    variant.write_text(
        "lead: []\nbetween: [relu]\ntrail: []\nafter_add: []\nunusual: true\n", encoding="utf-8"
    )
    config.write_text(settings(variant=str(variant)).to_yaml(), encoding="utf-8")
    variant.unlink()
    assert resolve(config).ordering.unusual


# --- networks that cannot train -------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["original", "full-preact", "bn-after-add", "relu-only-preact"])
@pytest.mark.parametrize(
    ("family", "depth", "stem", "sizes"),
    [
        ("imagenet", 18, "imagenet", [8, 32, 33, 64]),
        ("imagenet", 18, "cifar", [8, 9, 32]),
        ("cifar", 8, "cifar", [8]),
        ("cifar", 8, "imagenet", [8, 16, 17]),
    ],
)
@pytest.mark.parametrize("images", [1, 2])
def test_a_network_is_refused_exactly_where_torch_cannot_train_it(
    variant, family, depth, stem, sizes, images
):
    """One value per channel has no variance; torch raises a ValueError in the first iteration."""
    network = build_model(variant, depth, family, 3, stem=stem).train()
    for size in sizes:
        possible = True
        try:
            network(torch.rand(images, 3, size, size))
        except ValueError:
            possible = False
        found = True
        options = {
            "variant": variant, "depth": depth, "family": family, "stem": stem,
            "dataset": "folder", "normalize": "imagenet", "image_size": size,
            "batch_size": 2, "bn_batch_size": images,
        }  # fmt: skip
        try:
            resolve(options=options)
        except UserError:
            found = False
        assert found is possible, (size, images)


def test_a_network_that_cannot_train_is_refused_but_its_record_can_be_read(tmp_path):
    overrides = ["batch_size=1", "bn_batch_size=1"]
    options = {"variant": "original", "depth": 18, "family": "imagenet"}
    said = refused(*overrides, **options)
    assert said.startswith("'bn_batch_size' is 1, and images of 32×32 pixels shrink to one")
    assert said.endswith("or --set stem=cifar.")
    possible = resolve(options=options | {"stem": "cifar"}, overrides=overrides)
    text = possible.to_yaml().replace("stem: cifar", "stem: imagenet")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert settings_in(parse_mapping(text, "x"), "x") == read_settings(tmp_path)
    with pytest.raises(UserError, match="shrink to one"):
        resolve(tmp_path / "config.yaml")


# --- records of runs ------------------------------------------------------------------------------


def test_a_record_may_hold_a_setting_that_is_gone(tmp_path):
    base = settings()
    path = tmp_path / "config.yaml"
    path.write_text(
        base.to_yaml() + "".join(f"{name}: auto\n" for name in REMOVED), encoding="utf-8"
    )
    assert resolve(path) == base
    with pytest.raises(UserError, match="unknown setting 'micro_batches'"):
        resolve(overrides=["micro_batches=auto"])


def test_a_record_with_an_unknown_setting_is_of_a_later_version_and_not_damaged(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(settings().to_yaml() + "mixup: 0.2\n", encoding="utf-8")
    with pytest.raises(UnreadableError) as caught:
        resolve(path)
    assert str(caught.value).startswith(f"{path}: unknown setting 'mixup'")
    assert "probably of a later version of resvar" in str(caught.value)


def test_a_users_own_file_with_an_unknown_setting_is_wrong(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("variant: original\ndepth: 20\nmomentun: 0.2\n", encoding="utf-8")
    sentence = refused(config=path)
    assert sentence.startswith(f"{path}: unknown setting 'momentun'; did you mean 'momentum'?")


# --- the hash -------------------------------------------------------------------------------------

OTHER = {
    "variant": "another", "lead": ["bn"], "between": ["relu", "bn"], "trail": [], "after_add": [],
    "unusual": True, "depth": 32, "family": "imagenet", "unit": "bottleneck", "stem": "imagenet",
    "cardinality": 2, "base_width": 4, "shortcut": "project", "stride_on": "3x3",
    "dataset": "cifar100", "normalize": "channel", "crop_padding": 3, "flip": False, "holdout": 1,
    "seed": 1, "protocol": "short", "num_classes": 7, "image_size": 64,
    "iterations": 1, "batch_size": 64, "bn_batch_size": 32,
    "schedule": "one-cycle", "lr": 0.2, "milestones": [1], "lr_factor": 0.5,
    "warmup_iterations": 1, "warmup_lr": 0.5, "peak_at": 0.5,
    "optimizer": "muon", "muon_lr": 0.5, "muon_decay": 0.5, "momentum": 0.5, "nesterov": True,
    "weight_decay": 0.0, "weight_decay_on": "all", "precision": "fp32", "deterministic": True,
    "memory_format": "channels_last", "compile": "unit", "kernels": "fused", "recompute": "unit",
    "capture": "none",
    "eval_every": 1, "checkpoint_every": 1, "tensorboard": True, "wandb": True, "probe_at": [0],
}  # fmt: skip


def test_the_hash_changes_with_any_setting_and_differences_name_it():
    base = settings()
    assert set(OTHER) == set(Settings.model_fields)
    hashes = {base.hash}
    for name, value in OTHER.items():
        changed = base.model_copy(update={name: value})
        if name in NOT_HASHED:  # the run computes the same
            assert changed.hash == base.hash
            assert differences(changed, base) == []
        hashes.add(changed.hash)
        if name != "precision" and name not in NOT_HASHED:
            assert differences(changed, base) == [f"{name}: {getattr(base, name)} → {value}"]
    assert len(hashes) == len(OTHER) - len(NOT_HASHED) + 1
    assert all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)


def test_the_hash_does_not_count_what_is_at_its_default():
    """So a later version may add a setting. Explicit defaults change nothing."""
    base = settings()
    said = resolve(
        options=V1_20 | {"protocol": "paper", "seed": 0, "dataset": "cifar10"},
        overrides=["momentum=0.9", "flip=true", "weight_decay=1e-4", "peak_at=0.3", "unit=basic"],
    )
    assert said.hash == base.hash
    text = base.to_yaml()
    fields = {"variant", *base.model_dump(exclude_defaults=True)}
    short = "".join(
        line for line in text.splitlines(keepends=True) if line.partition(":")[0] in fields
    )
    assert 0 < len(short) < len(text)
    again = Settings(**{k: v for k, v in base.model_dump().items() if k in fields})
    assert again.hash == base.hash


# --- differences and deviations -------------------------------------------------------------------


def test_differences_leave_out_a_precision_that_was_left_open():
    found = settings("precision=bf16")
    assert differences(settings(), found) == []
    assert differences(settings("precision=fp32"), found) == ["precision: bf16 → fp32"]
    assert differences(settings(), settings()) == []
    assert differences(settings("lr=0.2", seed=3), settings()) == ["seed: 0 → 3", "lr: 0.1 → 0.2"]


def test_deviations_are_what_leaves_the_named_protocol():
    assert deviations(settings("lr=0.1", "weight_decay=1e-4", seed=3, depth=32)) == {}
    assert deviations(settings("precision=bf16", "eval_every=7", "deterministic=true")) == {}
    assert deviations(settings("lr=0.2", "holdout=5000")) == {"lr": 0.2, "holdout": 5000}
    assert deviations(settings("iterations=10", protocol="short")) == {"iterations": 10}


def test_for_a_protocol_of_ones_own_every_training_setting_beyond_the_defaults_is_listed(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "iterations: 5\nbatch_size: 8\nbn_batch_size: 8\nschedule: step\nlr: 0.1\n",
        encoding="utf-8",
    )
    assert {"iterations", "batch_size", "bn_batch_size", "schedule", "lr"} <= set(
        deviations(settings(protocol=str(path)))
    )


# --- the cost -------------------------------------------------------------------------------------


def test_the_work_of_a_run_counts_the_images_that_are_evaluated():
    """250 iterations of 64, evaluated three times: of 120 images each counts a third."""
    chosen = settings(
        "iterations=250", "batch_size=64", "bn_batch_size=64", "eval_every=100", "holdout=20"
    )
    assert chosen.work(100) == 250 * 64 + 3 * (100 + 20) / 3
    assert chosen.work(10_000) - chosen.work(100) == pytest.approx(3 * 9_900 / 3)


# --- overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-4", {"lr": 0.0001}),
        ("lr=1E-4", {"lr": 0.0001}),
        ("lr = 0.5", {"lr": 0.5}),
        ("iterations=64000", {"iterations": 64_000}),
        ("milestones=[1, 2]", {"milestones": [1, 2]}),
        ("variant=a=b", {"variant": "a=b"}),
        ("flip=false", {"flip": False}),
    ],
)
def test_an_override_is_read_as_yaml(text, expected):
    read = parse_overrides([text])
    assert read == expected
    assert [type(value) for value in read.values()] == [type(v) for v in expected.values()]


def test_the_last_of_two_overrides_wins():
    assert settings("lr=0.2", "lr=0.3").lr == 0.3


def test_the_ordering_of_settings_is_that_of_the_variant():
    ordering = settings(variant="full-preact").ordering
    assert (ordering.name, ordering.lead) == ("full-preact", ("bn", "relu"))
    assert dataclasses.is_dataclass(ordering)
