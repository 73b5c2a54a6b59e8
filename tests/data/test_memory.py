from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from resvar.data.memory import (
    MemoryEvalLoader,
    MemoryTrainLoader,
    Normalization,
    channel_statistics,
    draw_epoch,
)
from resvar.data.sample import load_sample


def make_images(count=10, side=8, seed=0):
    """Images that differ from each other everywhere, and labels that number them."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return images, np.arange(count, dtype=np.int64)


def make_batches(count=10, batch_size=4, seed=0, kind="pixel-mean", side=8, **options):
    images, labels = make_images(count, side)
    normalization = Normalization.measure(images, kind)
    return MemoryTrainLoader(images, labels, normalization, batch_size, seed, **options)


def normalized(images, kind):
    """float64 [N, H, W, 3], as one writes it down."""
    values = images / 255
    if kind == "pixel-mean":
        return values - values.mean(axis=0)
    return (values - values.mean(axis=(0, 1, 2))) / values.std(axis=(0, 1, 2))


def crop_and_flip(image, padding, down, right, mirrored):
    """Ten plain lines: [H, W, 3] → [3, H, W]."""
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, 3))
    padded[padding : padding + height, padding : padding + width] = image
    crop = padded[down : down + height, right : right + width]
    if mirrored:
        crop = crop[:, ::-1]
    return crop.transpose(2, 0, 1)


# --- normalisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pixel-mean", "channel"])
def test_normalisation_is_that_of_numpy(kind):
    images, labels = make_images(31)
    normalization = Normalization.measure(images, kind)
    (got, _), *rest = MemoryEvalLoader(images, labels, normalization)
    assert rest == []
    expected = normalized(images, kind).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    assert got.dtype == torch.float32
    assert got.numpy().mean() == pytest.approx(0, abs=1e-6)


def test_channel_statistics_are_numpys():
    images, _ = make_images(50)
    images[..., 1] //= 3
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-9)


# --- augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pixel-mean", "channel"])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, True), (4, False), (0, True)])
@pytest.mark.parametrize("side", [8, 32])
def test_every_image_is_cut_and_flipped_as_plain_numpy_does_it(kind, padding, flip, side):
    batches = make_batches(40, 16, kind=kind, side=side, padding=padding, flip=flip)
    images, _ = make_images(40, side)
    values = normalized(images, kind)
    flips = set()
    for iteration in range(5):
        got, labels = batches.batch(iteration)
        assert got.shape == (16, 3, side, side)
        assert got.is_contiguous(memory_format=torch.channels_last)
        draws = batches.draws(iteration).T.tolist()
        for position, (number, down, right, mirrored) in enumerate(draws):
            expected = crop_and_flip(values[number], padding, down, right, mirrored)
            np.testing.assert_allclose(got[position].numpy(), expected, atol=2e-5)
            assert labels[position] == number
            assert 0 <= down <= 2 * padding >= right >= 0
            flips.add(mirrored)
    assert flips == ({0, 1} if flip else {0})


def test_each_image_is_one_of_the_possible_cuts_of_the_image_of_its_label():
    """Without asking the batches what they drew: by trying every offset of every image."""
    padding, count, side = 2, 6, 8
    batches = make_batches(count, 12, padding=padding, side=side)
    values = normalized(make_images(count, side)[0], "pixel-mean")
    for iteration in range(4):
        for image, label in zip(*batches.batch(iteration), strict=True):
            found = [
                number
                for number in range(count)
                for down in range(2 * padding + 1)
                for right in range(2 * padding + 1)
                for mirrored in (False, True)
                if np.allclose(
                    image.numpy(),
                    crop_and_flip(values[number], padding, down, right, mirrored),
                    atol=1e-5,
                )
            ]
            assert found == [int(label)]


@pytest.mark.parametrize("kind", ["pixel-mean", "channel"])
def test_padding_is_exactly_zero_after_normalisation(kind):
    batches = make_batches(60, 60, kind=kind, padding=4)
    images, _ = batches.batch(0)
    seen = 0
    for image, (_, down, right, mirrored) in zip(images, batches.draws(0).T.tolist(), strict=True):
        top, bottom = max(0, 4 - down), max(0, down - 4)
        left, right_edge = max(0, 4 - right), max(0, right - 4)
        if mirrored:
            left, right_edge = right_edge, left
        assert (image[:, :top] == 0).all()
        assert (image[:, 8 - bottom :] == 0).all()
        assert (image[:, :, :left] == 0).all()
        assert (image[:, :, 8 - right_edge :] == 0).all()
        inside = image[:, top : 8 - bottom, left : 8 - right_edge]
        assert (inside != 0).float().mean() > 0.9
        seen += top + bottom + left + right_edge
    assert seen > 0


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (7, 3), (5, 12), (4, 1)])
def test_an_epoch_takes_every_image_once(count, batch_size):
    """Also where batches straddle two epochs, or hold several."""
    batches = make_batches(count, batch_size)
    taken = []
    for iteration in range(count * 3):
        labels = batches.batch(iteration)[1].tolist()
        assert len(labels) == batch_size
        taken += labels
    epochs = [taken[first : first + count] for first in range(0, len(taken) - count + 1, count)]
    assert len(epochs) == 3 * batch_size
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count > 4:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_is_a_function_of_seed_and_iteration_in_any_order_of_calls():
    iterations = [0, 1, 2, 3, 4, 5, 6, 7, 30, 31]
    forward = make_batches(10, 4)
    expected = {i: forward.batch(i) for i in iterations}
    for order in (iterations[::-1], [30, 2, 30, 0, 7, 2], [31]):
        batches = make_batches(10, 4)
        for iteration in order:
            for got, wanted in zip(batches.batch(iteration), expected[iteration], strict=True):
                assert torch.equal(got, wanted)


def test_calls_do_not_touch_the_global_generators():
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    make_batches().batch(5)
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_seeds_and_epochs_differ():
    tables = [draw_epoch(s, e, 100, 4, True) for s in range(4) for e in range(4)]
    for row in range(4):
        assert len({table[row].tobytes() for table in tables}) == len(tables)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_can_be_used(seed):
    table = draw_epoch(seed, 10**6, 5, 4, True)
    assert table.shape == (4, 5)
    assert table.dtype == np.int64


# --- chance ---------------------------------------------------------------------------------------


def test_offsets_are_uniform_and_flips_fair_and_all_independent():
    """Chi-square over 50,000 images; a true p falls below 1e-4 once in 10,000 seeds."""
    order, down, right, mirrored = draw_epoch(0, 0, 50_000, 4, True)
    joint = np.zeros((9, 9, 2))
    np.add.at(joint, (down, right, mirrored), 1)
    assert stats.chisquare(joint.ravel()).pvalue > 1e-4
    assert stats.chisquare(joint.sum((1, 2))).pvalue > 1e-4
    assert stats.chisquare(joint.sum((0, 2))).pvalue > 1e-4
    assert stats.binomtest(int(mirrored.sum()), 50_000).pvalue > 1e-4
    # Neither a place in the order nor the image at it says anything about the rest.
    for row in (down, right, mirrored):
        assert stats.spearmanr(order, row).pvalue > 1e-4
        assert stats.spearmanr(np.arange(50_000), row).pvalue > 1e-4
    assert stats.spearmanr(np.arange(50_000), order).pvalue > 1e-4
    successors = stats.spearmanr(down[:-1], down[1:])
    assert successors.pvalue > 1e-4


def test_two_epochs_are_independent():
    first, second = (draw_epoch(0, epoch, 50_000, 4, True) for epoch in (0, 1))
    for row in range(4):
        assert stats.spearmanr(first[row], second[row]).pvalue > 1e-4


def test_without_padding_and_flip_only_the_order_is_random():
    order, *rest = draw_epoch(0, 0, 100, 0, False)
    assert not np.any(rest)
    assert sorted(order) == list(range(100))
    assert list(order) != list(range(100))


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 500, [3]), (1, 1, [1])],
)
def test_evaluation_keeps_the_order_and_covers_all(count, batch_size, sizes):
    images, labels = make_images(count)
    normalization = Normalization.measure(images, "channel")
    batches = MemoryEvalLoader(images, labels, normalization, batch_size=batch_size)
    for _ in range(2):
        pieces = list(batches)
        assert [len(piece) for piece, _ in pieces] == sizes
        assert torch.cat([numbers for _, numbers in pieces]).tolist() == list(range(count))
        got = torch.cat([piece for piece, _ in pieces]).numpy()
        if count > 1:
            expected = normalized(images, "channel").transpose(0, 3, 1, 2)
            np.testing.assert_allclose(got, expected, atol=1e-5)


# --- real images ----------------------------------------------------------------------------------


def test_real_images_have_the_statistics_that_numpy_finds():
    images = load_sample().train_images
    mean, std = channel_statistics(images)
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=0.015)  # of all 50,000
    np.testing.assert_allclose(std, (0.2470, 0.2435, 0.2616), atol=0.015)
    pixels = Normalization.measure(images, "pixel-mean").mean
    some = images[:, 5, 7, 2]
    assert float(pixels[5, 7, 2]) == pytest.approx(some.mean() / 255, abs=1e-6)
