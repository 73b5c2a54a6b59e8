from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from resvar.config import resolve
from resvar.data.cifar import Images
from resvar.data.memory import MemoryEvalLoader, MemoryTrainLoader, Normalization
from resvar.data.splits import Splits
from resvar.errors import RunError, Stopped, UserError
from resvar.settings import ROLES
from resvar.training import trainer as module
from resvar.training.checkpoint import load_newest
from resvar.training.evaluate import evaluate
from resvar.training.execution import Execution
from resvar.training.job import run_training as train
from resvar.training.optim import build_optimizer
from resvar.training.step import Meters, Updater, build_network
from resvar.training.trainer import Callback, DivergedError
from resvar.training.writer import Writer
from tests.support.commands import contents
from tests.support.tiny import install, make_cifar
from tests.training.stepping import trainer_of

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def make_settings(*overrides, variant="original"):
    return resolve(
        options={"variant": variant, "depth": 8},
        overrides=[
            "precision=fp32", "kernels=plain", "iterations=6", "batch_size=8", "bn_batch_size=4",
            "eval_every=3",
            "milestones=[4]", "warmup_iterations=0", "checkpoint_every=100", *overrides,
        ],
    )  # fmt: skip


def make_images(train=20, test=13, side=8, seed=0):
    random = np.random.default_rng(seed)

    def part(count):
        return (
            random.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
            random.integers(0, 10, count),
        )

    return Images(*part(train), *part(test), tuple("abcdefghij"), "none")


def plan_of(settings):
    return Execution.resolve(settings, CPU)


class Recorder:
    """Stands for an optimizer: keeps the gradients and changes nothing."""

    def __init__(self, network):
        self.network, self.param_groups, self.gradients = network, [{}], []

    def step(self):
        self.gradients.append([p.grad.clone() for p in self.network.parameters()])

    def zero_grad(self):
        self.network.zero_grad()


def recorded(settings, network, batch):
    """One update that changes no weight: its gradients, and the meters."""
    updater = Updater(plan_of(settings), network)
    updater.optimizer = recorder = Recorder(updater.network)
    updater(*batch)
    return recorder.gradients[0], updater.meters


class Note(Callback):
    """Records its calls."""

    def __init__(self):
        self.done, self.rows, self.saved, self.kept = [], [], [], []

    def on_update(self, trainer):
        self.done.append(trainer.iteration)

    def on_evaluation_batch(self, share):
        assert 0 <= share < 1

    def on_evaluation(self, _trainer, row):
        self.rows.append(row)

    def on_checkpoint(self, trainer):
        self.saved.append(trainer.iteration)

    def on_snapshot(self, trainer):
        self.kept.append(trainer.iteration)


# --- micro-batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_in_evaluation_mode_micro_batches_sum_up_to_the_whole_batchs_gradient(micro):
    settings = make_settings(f"bn_batch_size={micro}")
    sets = Splits.prepare(make_images(), settings, CPU)
    network = build_network(settings).eval()
    network.train = lambda *_: network  # an update calls it; BN stays in evaluation mode
    images, labels = sets.training.batch(3)
    gradients, meters = recorded(settings, network, (images, labels))

    logits = network(images.contiguous())
    loss = F.cross_entropy(logits, labels)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert float(meters.loss) == pytest.approx(8 * loss.item(), rel=1e-5)
    assert int(meters.wrong) == int((logits.argmax(1) != labels).sum())


@pytest.mark.parametrize("variant", ["original", "full-preact"])
def test_in_training_mode_each_micro_batch_has_a_bn_of_its_own(variant):
    settings = make_settings(variant=variant)
    sets = Splits.prepare(make_images(), settings, CPU)
    network = build_network(settings)
    twin = copy.deepcopy(network)
    gradients, _ = recorded(settings, network, sets.training.batch(0))

    twin.train()
    images, labels = sets.training.batch(0)
    for half in (slice(0, 4), slice(4, 8)):
        logits = twin(images[half].contiguous())
        losses = [F.cross_entropy(logits[i : i + 1], labels[half][i : i + 1]) for i in range(4)]
        (sum(losses) / 8).backward()
    for got, parameter in zip(gradients, twin.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)
    for (name, got), wanted in zip(network.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, wanted, msg=name)
    counts = {int(b) for name, b in network.named_buffers() if name.endswith("batches_tracked")}
    assert counts == {2}


# --- the optimizer --------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["weights", "all"])
def test_weight_decay_shrinks_only_what_it_should(on):
    """One step with gradients of zero moves a parameter by lr times its decay, and nothing else."""
    settings = make_settings("weight_decay=0.5", f"weight_decay_on={on}", "lr=0.1")
    network = build_network(settings)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
            p.grad = torch.zeros_like(p)
    before = {name: p.clone() for name, p in network.named_parameters()}
    build_optimizer(network, settings).step()
    decayed = set()
    for part_name, part in network.named_modules():
        for name, p in part.named_parameters(part_name, recurse=False):
            weight = isinstance(part, nn.Conv2d | nn.Linear) and name.endswith(".weight")
            factor = 0.95 if weight or on == "all" else 1.0
            torch.testing.assert_close(p, before[name] * factor, rtol=1e-6, atol=0)
            decayed |= {name} if factor < 1 else set()
    assert len(decayed) == (len(before) if on == "all" else 1 + 6 + 1)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_sgd_is_momentum_worked_out_by_hand(momentum, nesterov):
    settings = make_settings(
        f"momentum={momentum}", f"nesterov={str(nesterov).lower()}", "weight_decay=0.01"
    )
    network = nn.Linear(3, 2).double()
    optimizer = build_optimizer(network, settings)
    values = [p.detach().numpy().copy() for p in network.parameters()]
    speeds = [np.zeros_like(v) for v in values]
    random = np.random.default_rng(0)
    for step, lr in enumerate((0.01, 0.1, 0.1, 0.02)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for index, (parameter, decay) in enumerate(
            zip(network.parameters(), (0.01, 0.0), strict=True)
        ):
            gradient = random.normal(size=parameter.shape)
            parameter.grad = torch.from_numpy(gradient.copy())
            full = gradient + decay * values[index]
            speeds[index] = full if step == 0 else momentum * speeds[index] + full
            move = full + momentum * speeds[index] if nesterov else speeds[index]
            values[index] = values[index] - lr * move
        optimizer.step()
        for parameter, value in zip(network.parameters(), values, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-12)


def test_the_modules_are_walked_after_an_evaluation_and_not_in_each_update(monkeypatch):
    settings = make_settings()
    trainer = trainer_of(settings, Splits.prepare(make_images(), settings, CPU))
    walks, walk = [], trainer.network.train
    monkeypatch.setattr(
        trainer.network, "train", lambda mode=True: (walks.append(trainer.iteration), walk(mode))
    )
    trainer.fit([Note()], stop=False)  # evaluations, by `eval`, after iterations 3 and 6
    assert walks == [3, 3, 6]  # eval() is train(False)
    assert not any(module.training for module in trainer.network.modules())
    trainer.step()
    assert all(module.training for module in trainer.network.modules())


def test_every_update_takes_the_rate_of_its_iteration():
    settings = make_settings("lr=0.2", "warmup_iterations=2", "warmup_lr=0.05", "iterations=6")
    trainer = trainer_of(settings, Splits.prepare(make_images(), settings, CPU))
    rates = []
    trainer.updater.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    trainer.fit([Note()], stop=False)
    assert rates == [[rate] * 2 for rate in (0.05, 0.05, 0.2, 0.2, 0.2 * 0.1, 0.2 * 0.1)]


# --- precision and memory -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype", "channels_last"),
    [("fp32", torch.float32, False), ("bf16", torch.bfloat16, True)],
)
def test_precision_decides_what_convolutions_compute_in_and_how_they_lie(
    precision, dtype, channels_last
):
    settings = make_settings(f"precision={precision}")
    plan = plan_of(settings)
    network = plan.to_device(build_network(settings)).eval()
    seen = {}

    def look(part, inputs, output):
        del part
        seen["format"] = inputs[0].is_contiguous(memory_format=torch.channels_last)
        seen["dtype"] = output.dtype

    network.stages[0][0].branch[0].register_forward_hook(look)
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    logits = plan.forward(network, images)
    assert logits.dtype == torch.float32
    assert seen == {"dtype": dtype, "format": channels_last}
    for p in network.parameters():
        assert p.dtype == torch.float32  # the weights themselves stay exact
        if p.ndim == 4 and p.shape[2] > 1:
            assert p.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_auto_precision_is_bf16_where_the_processor_has_it():
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo here")
    flags = info.read_text(encoding="utf-8")
    has = "avx512_bf16" in flags or "amx_bf16" in flags
    for asked, wanted in (("auto", "bf16" if has else "fp32"), ("fp32", "fp32"), ("bf16", "bf16")):
        plan = plan_of(make_settings(f"precision={asked}"))
        assert plan.settings.precision == wanted


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, 13, 500])
def test_evaluation_is_a_plain_loop(batch_size):
    settings = make_settings()
    images = make_images()
    network = build_network(settings)
    with torch.no_grad():
        network.stem[1].running_mean.add_(0.1)
    normalization = Normalization.measure(images.train_images, "pixel-mean")
    batches = MemoryEvalLoader(
        images.test_images, images.test_labels, normalization, batch_size=batch_size
    )
    network.train()
    shares = []
    got = evaluate(network, batches, plan_of(settings), shares.append)

    network.eval()
    mean = (images.train_images / 255).mean(axis=0)
    losses, predicted = [], []
    for pixels, label in zip(images.test_images, images.test_labels, strict=True):
        x = torch.from_numpy((pixels / 255 - mean).transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            logits = network(x)[0].double().numpy()
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
        predicted.append(int(logits.argmax()))
    assert got.loss == pytest.approx(np.mean(losses), rel=1e-5)
    wrong = sum(p != label for p, label in zip(predicted, images.test_labels, strict=True))
    assert got.error == pytest.approx(100 * wrong / 13)
    assert got.predictions.tolist() == predicted
    assert got.predictions.dtype == torch.int64
    assert shares == [i * batch_size / 13 for i in range(math.ceil(13 / batch_size))]


def test_evaluation_leaves_the_network_as_it_was():
    settings = make_settings()
    network = build_network(settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(network, Splits.prepare(make_images(), settings, CPU).test, plan_of(settings))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


# --- held-out images ------------------------------------------------------------------------------


@pytest.mark.parametrize("holdout", [1, 7, 19])
def test_the_last_images_are_held_out_and_never_trained_on(holdout):
    settings = make_settings(f"holdout={holdout}")
    images = make_images()
    sets = Splits.prepare(images, settings, CPU)
    seen = {number for i in range(40) for number in sets.training.draws(i)[0].tolist()}
    assert seen == set(range(20 - holdout))
    labels = torch.cat([labels for _, labels in sets.holdout]).tolist()
    assert labels == images.train_labels[20 - holdout :].tolist()
    # Not even their pixels are looked at: other ones change nothing.
    changed = images.train_images.copy()
    changed[20 - holdout :] = 0
    twin = Splits.prepare(dataclasses.replace(images, train_images=changed), settings, CPU)
    assert torch.equal(sets.training.batch(3)[0], twin.training.batch(3)[0])


def test_holding_all_images_out_is_refused():
    settings = make_settings("holdout=20")
    with pytest.raises(UserError, match="'holdout' 20 leaves none of the 20"):
        Splits.prepare(make_images(), settings, CPU)


@pytest.mark.parametrize("holdout", [0, 5])
def test_held_out_images_add_two_columns(holdout):
    settings = make_settings(f"holdout={holdout}")
    sets = Splits.prepare(make_images(), settings, CPU)
    trainer, note = trainer_of(settings, sets), Note()
    trainer.fit([note], stop=False)
    extra = {"holdout_loss", "holdout_error"}
    assert set(note.rows[-1]) & extra == (extra if holdout else set())
    if holdout:
        again = evaluate(trainer.network, sets.holdout, trainer.plan)
        assert (note.rows[-1]["holdout_loss"], note.rows[-1]["holdout_error"]) == (
            again.loss, again.error,
        )  # fmt: skip


# --- the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iterations", "every", "expected"),
    [(6, 3, [3, 6]), (7, 3, [3, 6, 7]), (2, 5, [2]), (3, 1, [1, 2, 3]), (1, 1, [1])],
)
def test_evaluations_are_at_multiples_and_at_the_end(iterations, every, expected):
    settings = make_settings(f"iterations={iterations}", f"eval_every={every}")
    sets = Splits.prepare(make_images(), settings, CPU)
    trainer, note = trainer_of(settings, sets), Note()
    last = trainer.fit([note], stop=False)
    assert [row["iteration"] for row in note.rows] == expected
    assert note.rows == trainer.rows
    assert note.done == list(range(1, iterations + 1))
    assert (last.loss, last.error) == (note.rows[-1]["test_loss"], note.rows[-1]["test_error"])
    for row in note.rows:
        assert row["epoch"] == row["iteration"] * 8 / 20
        assert all(math.isfinite(value) for value in row.values())
        assert 0 <= row["train_error"] <= 100


def test_checkpoints_are_at_multiples_and_at_the_end(monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_PAUSE", 0.0)
    settings = make_settings("iterations=7", "checkpoint_every=3", "eval_every=100")
    note = Note()
    sets = Splits.prepare(make_images(), settings, CPU)
    trainer_of(settings, sets).fit([note], stop=False)
    assert note.saved == [3, 6, 7]


class Clock(Note):
    """Time as the trainer reads it: each update takes `pace` seconds, all else none."""

    def __init__(self, monkeypatch, pace):
        super().__init__()
        self.now, self.pace = 1000.0, pace
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def on_update(self, trainer):
        super().on_update(trainer)
        self.now += self.pace


EACH_SECOND = ("iterations=20", "checkpoint_every=2", "eval_every=100")


@pytest.mark.parametrize(
    ("pace", "saved"),
    [
        (7, [2, 8, 14, 20]),  # 28 s are too few, 42 s enough; the end is always saved
        (15, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (0, [2, 20]),
    ],
)
def test_a_periodic_checkpoint_waits_30_s_for_the_next(monkeypatch, pace, saved):
    settings = make_settings(*EACH_SECOND)
    clock = Clock(monkeypatch, pace)
    sets = Splits.prepare(make_images(), settings, CPU)
    trainer_of(settings, sets).fit([clock], stop=False)
    assert clock.saved == saved
    assert f"(and {module.CHECKPOINT_PAUSE:.0f} s)" in ROLES["checkpoint_every"].help


def test_a_stop_saves_at_once_and_so_does_the_first_checkpoint_of_a_process(monkeypatch):
    settings = make_settings(*EACH_SECOND)
    sets = Splits.prepare(make_images(), settings, CPU)
    clock = Clock(monkeypatch, 1)

    class After3:
        def __bool__(self):
            return clock.done[-1:] == [3]

    stopped = trainer_of(settings, sets)
    with pytest.raises(Stopped):
        stopped.fit([clock], After3())
    assert clock.saved == [2, 3]
    resumed = trainer_of(settings, sets)
    resumed.restore(copy.deepcopy(stopped.state()))
    resumed.fit([clock], stop=False)
    assert clock.saved == [2, 3, 4, 20]


def test_a_divergence_is_found_where_a_checkpoint_is_skipped(monkeypatch):
    settings = make_settings(*EACH_SECOND)
    trainer = trainer_of(settings, Splits.prepare(make_images(), settings, CPU))

    class Spoil(Clock):
        def on_update(self, trainer):
            super().on_update(trainer)
            if trainer.iteration == 6:
                next(iter(trainer.network.buffers())).fill_(math.inf)

    note = Spoil(monkeypatch, 1)
    with pytest.raises(DivergedError, match="at iteration 6"):
        trainer.fit([note], stop=False)
    assert note.saved == [2]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("recent", [True, False])
def test_the_clock_of_rank_0_decides_for_all_ranks(first, recent):
    """The others ask at the same iteration, and their clocks count for nothing."""
    settings = make_settings()
    trainer, note = trainer_of(settings, Splits.prepare(make_images(), settings, CPU)), Note()
    told = []

    def any_rank(flag):
        told.append(flag)
        return recent

    ranks = SimpleNamespace(first=first, any=any_rank)
    trainer.plan = dataclasses.replace(trainer.plan, ranks=ranks)
    trainer._save([note])
    assert told == []
    trainer._save([note], periodic=True)
    assert told == [first]
    assert len(note.saved) == (1 if recent else 2)


def test_the_training_columns_are_those_of_the_iterations_since_the_last_row():
    settings = make_settings("iterations=5", "eval_every=2")
    images = make_images()
    trainer, note = trainer_of(settings, Splits.prepare(images, settings, CPU)), Note()
    trainer.fit([note], stop=False)

    updater = Updater(plan_of(settings))
    batches = MemoryTrainLoader(
        images.train_images, images.train_labels,
        Normalization.measure(images.train_images, "pixel-mean"), 8, settings.seed,
    )  # fmt: skip
    sums = []
    for i in range(5):
        updater.meters = Meters.zero(CPU)
        updater(*batches.batch(i))
        sums.append((float(updater.meters.loss), int(updater.meters.wrong)))
    for row, members in zip(note.rows, ([0, 1], [2, 3], [4]), strict=True):
        count = 8 * len(members)
        assert row["train_loss"] == pytest.approx(sum(sums[i][0] for i in members) / count)
        assert row["train_error"] == 100 * sum(sums[i][1] for i in members) / count


class StopAt:
    """Becomes true the `number`th time that it is asked."""

    def __init__(self, number):
        self.left = number

    def __bool__(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("variant", ["original", "full-preact"])
@pytest.mark.parametrize("asked", range(0, 11, 2))
def test_a_stopped_run_goes_on_to_the_same_bits(variant, asked):
    """Stopped before any iteration, or in the middle of an evaluation."""
    settings = make_settings("iterations=5", "eval_every=2", "holdout=3", variant=variant)
    sets = Splits.prepare(make_images(), settings, CPU)

    class Keep(Note):
        def on_checkpoint(self, trainer):
            self.state = copy.deepcopy(trainer.state())

    whole = trainer_of(settings, sets)
    expected = whole.fit([Keep()], stop=False)

    first, keep = trainer_of(settings, sets), Keep()
    with pytest.raises(Stopped):
        first.fit([keep], StopAt(asked))
    second = trainer_of(settings, Splits.prepare(make_images(), settings, CPU))
    second.restore(keep.state)
    got = second.fit([Keep()], stop=False)
    assert torch.equal(got.predictions, expected.predictions)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value), name
    timings = {"seconds", "images_per_second"}
    for a, b in zip(whole.rows, second.rows, strict=True):
        assert {k: v for k, v in a.items() if k not in timings} == {
            k: v for k, v in b.items() if k not in timings
        }


def test_a_state_of_other_settings_is_refused():
    settings = make_settings()
    sets = Splits.prepare(make_images(), settings, CPU)
    state = trainer_of(settings, sets).state()
    other = trainer_of(make_settings("lr=0.3"), sets)
    with pytest.raises(RunError, match=r"other settings.*--fresh"):
        other.restore(state)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("model"),
        lambda state: state["model"].popitem(),
        lambda state: state.update(model=[1, 2]),
        lambda state: state.update(optimizer={}),
        lambda state: state["optimizer"]["state"].update({0: {"momentum_buffer": torch.ones(2)}}),
        lambda state: state.update(sums=[1.0]),
        lambda state: state.update(rows=3),
        lambda state: state.update(iteration=10**6),
        lambda state: state.update(iteration="5"),
    ],
)
def test_a_state_that_is_none_is_refused_in_words(spoil):
    """Whole by its digest, as a file can be that somebody made on purpose."""
    settings = make_settings()
    sets = Splits.prepare(make_images(), settings, CPU)
    state = copy.deepcopy(trainer_of(settings, sets).state())
    spoil(state)
    with pytest.raises(RunError, match=r"does not contain the state.*--fresh"):
        trainer_of(settings, sets).restore(state)


# --- divergence -----------------------------------------------------------------------------------


def test_a_diverged_run_says_so_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    install(make_cifar(tmp_path / "data", train=20, test=10), monkeypatch)
    settings = make_settings(
        "iterations=30", "lr=1e30", "warmup_iterations=4", "warmup_lr=0.01", "checkpoint_every=4",
        "eval_every=100",
    )  # fmt: skip
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"diverged.*The checkpoint of iteration 4 is kept\.$"):
        train(settings, tmp_path / "data", Console(file=io.StringIO()), out, "cpu")
    note = json.loads((out / "diverged.json").read_text(encoding="utf-8"))
    assert note["format"] == 1
    assert note["loss"] in ("nan", "inf")
    assert "diverged" in note["message"]
    assert not (out / "result.json").exists()
    assert not (out / "failure.json").exists()
    state = load_newest(out)
    assert state["iteration"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())
    assert max(float(value.abs().max()) for value in state["model"].values()) < 1e3
    before = contents(out)
    with pytest.raises(RunError, match=f"diverged at iteration {note['iteration']}.*--fresh"):
        train(settings, tmp_path / "data", Console(file=io.StringIO()), out, "cpu")
    assert contents(out) == before, "nothing is tried again"
    with pytest.raises(DivergedError):
        train(settings, tmp_path / "data", Console(file=io.StringIO()), out, "cpu", fresh=True)
    assert json.loads((out / "diverged.json").read_text(encoding="utf-8")) == note


@pytest.mark.parametrize("looks", ["each", "none"])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_iteration_of_a_divergence_is_the_first_whose_loss_is_not_finite(looks, resumed):
    """However late somebody looks, since none waits for the device at each iteration."""
    settings = make_settings("iterations=30", "lr=1e30", "warmup_iterations=4", "warmup_lr=0.01",
        "eval_every=3", "checkpoint_every=100",
    )  # fmt: skip
    sets = Splits.prepare(make_images(), settings, CPU)

    class Look(Note):
        def on_update(self, trainer):
            if looks == "each":
                trainer.mean_loss()

    trainer, first = trainer_of(settings, sets), 0
    while math.isfinite(float(trainer.updater.meters.loss)):
        trainer.step()
        first += 1
    trainer = trainer_of(settings, sets)
    if resumed:
        for _ in range(2):
            trainer.step()
        state = copy.deepcopy(trainer.state())
        trainer = trainer_of(settings, sets)
        trainer.restore(state)
    with pytest.raises(DivergedError) as caught:
        trainer.fit([Look()], stop=False)
    assert caught.value.iteration == first
    assert not math.isfinite(caught.value.loss)


@pytest.mark.parametrize(
    "where", ["weight", "bias", "running_mean", "running_var", "momentum_buffer"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nothing_that_is_not_finite_is_saved(where, value, tmp_path):
    settings = make_settings()
    trainer = trainer_of(settings, Splits.prepare(make_images(), settings, CPU))
    trainer.step()
    trainer.check()
    held = [tensor for name, tensor in trainer.network.state_dict().items() if name.endswith(where)]
    held += [m[where] for m in trainer.updater.optimizer.state.values() if where in m]
    held[len(held) // 2].view(-1)[-1] = value
    with pytest.raises(DivergedError, match="weights are no longer finite at iteration 1"):
        trainer._save([Writer(tmp_path, trainer, print)])
    assert list(tmp_path.iterdir()) == []


def test_large_weights_are_finite():
    """Also where their sum is not: 16 × 16 × 3 × 3 of 3e38."""
    settings = make_settings()
    trainer = trainer_of(settings, Splits.prepare(make_images(), settings, CPU))
    trainer.step()
    weights = list(trainer.network.parameters())
    for large in (1e30, 3e38):
        with torch.no_grad():
            weights[0].fill_(large)
            weights[0].view(-1)[0] = -large
        assert math.isfinite(trainer.check())
    weights[-1].data.view(-1)[0] = math.nan
    with pytest.raises(DivergedError, match="weights are no longer finite"):
        trainer.check()


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf, None])
def test_all_finite_is_isfinite_of_each_number(spoilt):
    """In any dtype that a state has, in any memory format, empty tensors included."""
    made = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=made) for size in ((), (3,), (64, 16, 3, 3), (0,))]
    tensors += [torch.tensor(2**62), torch.randn(5, generator=made).double()]
    tensors[2] = tensors[2].to(memory_format=torch.channels_last)
    for tensor in [*tensors[:3], tensors[5]]:
        kept = tensor.clone()
        if spoilt is not None:
            tensor[(-1,) * tensor.ndim] = spoilt
        assert module.all_finite(tensors) == (spoilt is None)
        tensor.copy_(kept)


@pytest.mark.parametrize("which", ["test", "holdout"])
def test_an_evaluation_whose_loss_is_not_finite_is_a_divergence_too(which, monkeypatch):
    settings = make_settings("holdout=3", "eval_every=2")
    sets = Splits.prepare(make_images(), settings, CPU)
    trainer = trainer_of(settings, sets)

    def overflowing(network, batches, *others):
        found = evaluate(network, batches, *others)
        spoilt = batches is getattr(sets, which)
        return dataclasses.replace(found, loss=math.inf) if spoilt else found

    monkeypatch.setattr(module, "evaluate", overflowing)
    note = Note()
    with pytest.raises(DivergedError, match=r"loss became inf at iteration 2"):
        trainer.fit([note], stop=False)
    assert note.rows == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_at_the_next_look(loss):
    settings = make_settings()
    trainer = trainer_of(settings, Splits.prepare(make_images(), settings, CPU))
    trainer.updater.meters.loss.fill_(loss)
    note = Note()
    with pytest.raises(DivergedError, match="loss became"):
        trainer.fit([note], stop=False)
    assert (note.rows, note.saved) == ([], [])


# --- a device without memory ----------------------------------------------------------------------


LACKS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 16384000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError(),
]
"""As torch and Python raise them; the second from a process under `ulimit -v`."""


@pytest.mark.parametrize("lack", LACKS, ids=["gpu", "host", "python"])
def test_a_lack_of_memory_is_not_a_foreign_checkpoint(monkeypatch, lack):
    def full(*_args, **_named):
        raise lack

    settings = make_settings()
    sets = Splits.prepare(make_images(), settings, CPU)
    state = copy.deepcopy(trainer_of(settings, sets).state())
    resumed = trainer_of(settings, sets)
    monkeypatch.setattr(resumed.network, "load_state_dict", full)
    with pytest.raises(type(lack)):
        resumed.restore(state)


@pytest.mark.parametrize(
    ("lack", "where"), [*zip(LACKS, ["GPU", "machine", "machine"], strict=True)]
)
def test_a_lack_of_memory_ends_a_run_in_a_sentence_that_keeps_the_checkpoint(
    tmp_path, monkeypatch, lack, where
):
    install(make_cifar(tmp_path / "data", train=20, test=10), monkeypatch)
    settings, out = make_settings("checkpoint_every=2"), tmp_path / "run"
    real = Updater.__call__

    def full_at_3(updater, *batch):
        if updater.iteration == 3:
            raise lack
        return real(updater, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "__call__", full_at_3)
        with pytest.raises(
            RunError, match=rf"{where} does not have enough free memory.*resume at iteration 2\.$"
        ) as caught:
            train(settings, tmp_path / "data", Console(file=io.StringIO()), out, "cpu")
    assert "--fresh" not in str(caught.value)
    assert json.loads((out / "failure.json").read_text(encoding="utf-8"))["message"] == str(
        caught.value
    )
    assert load_newest(out)["iteration"] == 2
    train(settings, tmp_path / "data", Console(file=io.StringIO()), out, "cpu")
    assert (out / "result.json").exists()
