from __future__ import annotations

import io
import json
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resvar.console import PlainConsole
from resvar.data.cifar import DATASETS, default_folder, find_problems, load_cifar
from resvar.models.ordering import PAPER_ORDER
from resvar.reports.agreement import (
    Predictions,
    agreement,
    cifar10_labels,
    distribution_sd,
    mcnemar,
    measured_sd,
    predicted_sd,
    scored_predictions,
)
from resvar.reports.comparison_tables import difference_tables
from resvar.reports.findings import build
from resvar.reports.render import render_report
from resvar.reports.search import read_records
from resvar.table import print_table
from tests.reports.runs import write_run

LABELS = cifar10_labels()
MAGIC = np.lib.format.MAGIC_PREFIX


def guesses(predictions, seed=0, right=None):
    return Predictions(seed, np.array(predictions), None if right is None else np.array(right))


def predict(wrong, seed=0):
    """The labels, but for `wrong` images that the seed chooses."""
    found = LABELS.copy()
    at = np.random.default_rng(seed).permutation(len(found))[:wrong]
    found[at] = (found[at] + 1) % 10
    return found


def write(root, variant="original", seed=0, wrong=600, predictions=None, **more):
    error = more.pop("test_error", wrong / 100)
    folder = write_run(root, variant, seed=seed, test_error=error, **more)
    np.save(
        folder / "predictions.npy", predict(wrong, seed) if predictions is None else predictions
    )
    return folder


# --- the figures ----------------------------------------------------------------------------------


def test_an_example_worked_out_on_paper():
    base = [guesses([0, 1, 2, 3], right=[True, True, False, False])]
    ours = [guesses([0, 1, 2, 2], right=[True, False, True, True])]
    found = agreement("full-preact", 20, {"original": base, "full-preact": ours}, "original")
    assert found.across == {"original": 25.0}  # one image of four
    assert found.within is None
    assert found.predicted_sd is None
    assert found.pairing is not None
    assert (found.pairing.first_only, found.pairing.second_only) == (1, 2)
    assert found.pairing.p == 1.0  # two or fewer of three coins on one side, either side


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 9), (40, 61), (7, 7)])
def test_mcnemar_is_the_sum_of_binomial_tails(b, c):
    n = b + c
    tail = sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=2, max_size=4),
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4),
)
def test_disagreement_is_that_of_a_loop(ours, base):
    cells = {"a": [guesses(run) for run in base], "b": [guesses(run) for run in ours]}
    found = agreement("b", 20, cells, "a")
    pairs = [(a, b) for i, a in enumerate(ours) for b in ours[i + 1 :]]

    def percent(pairs):
        return 100 * np.mean([a[i] != b[i] for a, b in pairs for i in range(6)])

    assert found.within == pytest.approx(percent(pairs))
    assert found.across["a"] == pytest.approx(percent(list(product(ours, base))))
    assert agreement("a", 20, cells, "a").across["b"] == found.across["a"]


def test_the_predicted_spread_is_that_of_independent_images():
    """A thousand runs of 400 images, each missed with its own probability."""
    rng = np.random.default_rng(0)
    chances = rng.beta(0.3, 2, size=400)
    runs = rng.random((1000, 400)) > chances  # right or not
    measured = 100 * (~runs).mean(axis=1).std(ddof=1)
    assert predicted_sd(list(runs[:50])) == pytest.approx(measured, rel=0.08)
    few = [predicted_sd(list(runs[i : i + 2])) ** 2 for i in range(0, 1000, 2)]
    assert np.mean(few) == pytest.approx(measured**2, rel=0.08)  # no bias at n = 2 either


def test_the_spread_on_the_distribution_is_what_independent_errors_leave():
    """Runs with probabilities of their own, on test sets of their own: equation 3 is unbiased."""
    rng = np.random.default_rng(8)
    images, runs, quality = 2000, 12, 0.01
    variances = []
    for _ in range(400):
        hard = rng.beta(0.3, 2.0, images)  # how often an image is misclassified
        shifts = rng.normal(0, quality, runs)
        right = [rng.random(images) > np.clip(hard + shift, 0, 1) for shift in shifts]
        variances.append(measured_sd(right) ** 2 - predicted_sd(right) ** 2)
        assert distribution_sd(right) == pytest.approx(
            np.sqrt(max(0.0, variances[-1] * images / (images - 1)))
        )
    # Clipping at 0 and 1 takes part of the shift from the easiest images.
    assert 0.6 * (100 * quality) ** 2 < np.mean(variances) <= (100 * quality) ** 2


def test_short_runs_have_no_predicted_spread():
    right = [[True, k > 0, False, k > 1] for k in range(3)]
    runs = [guesses([0, 1, 2, k], k, right[k]) for k in range(3)]
    short = agreement("original", 20, {"original": runs}, "original", trained_out=False)
    assert (short.predicted_sd, short.distribution_sd) == (None, None)
    assert short.test_sd == pytest.approx(np.std([25, 50, 75], ddof=1))
    assert agreement("original", 20, {"original": runs}, "original").predicted_sd is not None


@pytest.mark.parametrize(("protocol", "shown"), [("paper", True), ("short", False)])
def test_runs_of_fewer_than_sixteen_epochs_are_short(tmp_path, protocol, shown):
    for seed in (0, 1):
        write(tmp_path, seed=seed, protocol=protocol)
    text = render_report(build(read_records([tmp_path])), "markdown")
    assert ("sd predicted" in text) == shown
    assert ("section 3.2" in text) == shown


def test_two_runs_that_err_on_other_images_worked_out_on_paper():
    # Each image is missed by one of two runs: e = 1/2, e(1 - e) · n/(n - 1) = 1/2; √(2 · 1/2) / 2.
    assert predicted_sd([np.array([True, False]), np.array([False, True])]) == pytest.approx(50.0)
    assert predicted_sd([np.array([True, False])] * 2) == 0.0


# --- the labels -----------------------------------------------------------------------------------


def test_each_class_has_a_thousand_test_images():
    assert np.bincount(LABELS).tolist() == [1000] * 10


@pytest.mark.cifar
def test_the_shipped_labels_are_those_of_cifar_10():
    dataset = DATASETS["cifar10"]
    if found := find_problems(dataset, default_folder()):
        pytest.skip(found[0])
    assert load_cifar(dataset, default_folder()).test_labels.tolist() == LABELS.tolist()


# --- reading runs ---------------------------------------------------------------------------------


def test_predictions_are_read_with_what_is_right(tmp_path):
    found = scored_predictions(write(tmp_path, wrong=700), 0, "cifar10", 7.0)
    assert isinstance(found, Predictions)
    assert int((~found.right).sum()) == 700


def test_predictions_of_another_error_do_not_count(tmp_path):
    folder = write(tmp_path, wrong=700)
    assert (
        scored_predictions(folder, 0, "cifar10", 6.9) == "inconsistent with the recorded test error"
    )


def test_other_data_has_no_labels_but_still_disagrees(tmp_path):
    found = scored_predictions(write(tmp_path), 0, "folder", 1.0)
    assert isinstance(found, Predictions)
    assert found.right is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        np.lib.format.MAGIC_PREFIX,
        np.lib.format.MAGIC_PREFIX + b"\x01\x00\xff\xff{",
        # NumPy takes such a header for one of Python 2 and cuts it into Python's words.
        np.lib.format.MAGIC_PREFIX + b"\x01\x00\x20\x00" + b"{'descr': F2), }".ljust(31) + b"\n",
    ],
)
def test_a_damaged_file_is_said_and_spoils_nothing(tmp_path, content):
    damaged = write(tmp_path, "relu-only-preact")
    (damaged / "predictions.npy").write_bytes(content)
    write(tmp_path), write(tmp_path, "full-preact", wrong=500)
    group = build(read_records([tmp_path])).groups[0]
    assert [found.variant for found in group.agreements] == ["original", "full-preact"]
    assert any("predictions.npy is damaged" in note for note in group.notes)
    assert group.cells["relu-only-preact", 110].summary is not None


@pytest.mark.parametrize(
    "predictions", [np.zeros((2, 2), int), np.zeros(10_000), np.array(["a"]), np.zeros(0, int)]
)
def test_what_is_no_list_of_classes_is_damaged(tmp_path, predictions):
    folder = write(tmp_path, predictions=predictions)
    assert scored_predictions(folder, 0, "cifar10", 6.0) == "damaged"


def test_pickles_are_not_opened(tmp_path):
    folder = write_run(tmp_path)
    np.save(folder / "predictions.npy", np.array([print], dtype=object), allow_pickle=True)
    assert scored_predictions(folder, 0, "cifar10", 50.0) == "damaged"


def test_runs_without_predictions_have_no_table_and_no_note(tmp_path):
    write_run(tmp_path), write_run(tmp_path, "full-preact")
    group = build(read_records([tmp_path])).groups[0]
    assert group.agreements == ()
    assert group.notes == ()
    assert "Agreement" not in render_report(build(read_records([tmp_path])), "table", True)


def test_every_format_has_the_table(tmp_path):
    for seed in range(2):
        write(tmp_path, "original", seed, wrong=600)
        write(tmp_path, "full-preact", seed, wrong=500)
    report = build(read_records([tmp_path]))
    for format in ("table", "markdown", "latex", "html"):
        assert "Agreement of predictions" in render_report(report, format, full=True)
    data = json.loads(render_report(report, "json"))["groups"][0]["agreements"][1]
    ours, theirs = (predict(500, 0) != LABELS), (predict(600, 0) != LABELS)
    assert data["variant"] == "full-preact"
    assert data["pairing"]["first_only"] == int((ours & ~theirs).sum())
    assert data["pairing"]["second_only"] == int((theirs & ~ours).sum())
    assert data["within"] == pytest.approx(100 * np.mean(predict(500, 0) != predict(500, 1)))


def test_every_two_variants_are_set_beside_each_other(tmp_path):
    names = ("original", "bn-after-add", "full-preact")
    for number, name in enumerate(names):
        write(
            tmp_path,
            name,
            seed=0,
            predictions=predict(500 + number, seed=number),
            wrong=500 + number,
        )
    report = build(read_records([tmp_path]))
    of = {found.variant: found for found in report.groups[0].agreements}
    for (i, a), (j, b) in product(enumerate(names), repeat=2):
        if a != b:
            expected = 100 * np.mean(predict(500 + i, i) != predict(500 + j, j))
            assert of[a].across[b] == pytest.approx(expected)
    table = render_report(report, "markdown").partition("Where predictions differ (%), ResNet-110")[
        2
    ]
    row = next(line for line in table.splitlines() if line.startswith("| bn-after-add |"))
    shares = of["bn-after-add"].across
    assert (
        row
        == f"| bn-after-add | 4(b) | {shares['original']:.2f} | – | {shares['full-preact']:.2f} |"
    )


def test_the_pairing_takes_the_smallest_seed_of_both(tmp_path):
    for seed in (1, 2):
        write(tmp_path, "original", seed)
    for seed in (0, 2):
        write(tmp_path, "full-preact", seed)
    found = build(read_records([tmp_path])).groups[0].agreements[1]
    assert found.pairing is not None
    assert found.pairing.seed == 2


def test_a_folder_in_the_place_of_predictions_is_damage(tmp_path):
    folder = write_run(tmp_path)
    (folder / "predictions.npy").mkdir()
    assert scored_predictions(folder, 0, "cifar10", 50.0) == "damaged"
    assert build(read_records([tmp_path])).groups[0].cells["original", 110].summary is not None


def test_five_variants_stay_a_table_at_80_columns(tmp_path):
    """The columns are named as in the paper's figure 4, as the rows are."""
    for wrong, variant in enumerate(PAPER_ORDER):
        write(tmp_path, variant, wrong=500 + 100 * wrong)
    (table,) = difference_tables(build(read_records([tmp_path])).groups[0])
    console = PlainConsole(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    print_table(table, console)
    lines = console.file.getvalue().splitlines()
    assert lines[1].split() == ["variant", "figure", "4(a)", "4(b)", "4(c)", "4(d)", "4(e)"]
    assert [line.split()[0] for line in lines[3:8]] == list(PAPER_ORDER)
