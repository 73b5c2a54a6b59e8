"""The family table, against table 1 of arXiv:1512.03385 typed by hand, and torchvision."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import pytest
import torchvision

from resvar.explain.family import family_panels, family_rows, family_totals
from resvar.explain.request import Request
from tests.explain.test_show import at_width, refused, shown, tables

# arXiv:1512.03385, table 1: the units of conv2_x to conv5_x, and the FLOPs in 10⁹. Below them, the
# last row of the table: what it prints is ours with the stride on the first 1×1, rounded or cut.
TABLE_1 = {
    18: ("3×3, {w}; 3×3, {w}", (2, 2, 2, 2), "1.8"),
    34: ("3×3, {w}; 3×3, {w}", (3, 4, 6, 3), "3.6"),
    50: ("1×1, {w}; 3×3, {w}; 1×1, {o}", (3, 4, 6, 3), "3.8"),
    101: ("1×1, {w}; 3×3, {w}; 1×1, {o}", (3, 4, 23, 3), "7.6"),
    152: ("1×1, {w}; 3×3, {w}; 1×1, {o}", (3, 8, 36, 3), "11.3"),
}
SIZES = {"conv1": "112×112", "conv2_x": "56×56", "conv3_x": "28×28", "conv4_x": "14×14",
         "conv5_x": "7×7", "head": "1×1"}  # fmt: skip

# arXiv:1512.03385, table 6, and arXiv:1603.05027, table 4: layers and parameters in millions.
# ResNet-1001 is left out: ours has 10.33 M, table 4 prints 10.2 M.
CIFAR = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7", 1202: "19.4", 164: "1.7"}

RESNEXT = ("--cardinality", "32", "--base-width", "4")


def family(name, *names, variants=None, **options):
    return Request.of(names, variants, options, None).family(name)


def totals(networks):
    return dict(family_totals(networks))


def brackets(depth):
    unit, counts, _ = TABLE_1[depth]
    return [
        f"[{unit.format(w=64 * 2**index, o=256 * 2**index)}] × {count}"
        for index, count in enumerate(counts)
    ]


# --- the figures ----------------------------------------------------------------------------------


def test_imagenet_has_the_rows_of_table_1():
    rows = {row.name: row for row in family_rows(family("imagenet"))}
    assert {name: row.size for name, row in rows.items()} == SIZES
    assert rows["conv1"].common == "7×7, 64, stride 2"
    assert rows["conv2_x"].common == "3×3 max pool, stride 2"
    assert rows["head"].common == "average pool, 1000-d linear"
    for index, depth in enumerate(TABLE_1):
        units = [rows[f"conv{number}_x"].stages[index].unit for number in range(2, 6)]
        assert units == brackets(depth)


def test_the_printed_flops_are_ours_with_the_stride_on_the_first_1x1():
    found = totals(family("imagenet"))
    assert found["FLOPs in the paper"] == [f"{flops} G" for *_, flops in TABLE_1.values()]
    for network, (*_, flops) in zip(family("imagenet"), TABLE_1.values(), strict=True):
        ours = Decimal(network.multiply_adds_by_stride["first"]).scaleb(-9)
        rounded = {str(ours.quantize(Decimal("0.1"), way)) for way in (ROUND_HALF_UP, ROUND_DOWN)}
        assert flops in rounded
    assert found["FLOPs, stride on the 3×3"] == ["1.81 G", "3.66 G", "4.09 G", "7.80 G", "11.51 G"]
    assert found["FLOPs, stride on the first 1×1"][2:] == ["3.86 G", "7.57 G", "11.28 G"]


def test_parameters_are_those_that_torchvision_publishes():
    found = totals(family("imagenet"))
    for depth, parameters in zip(found["layers"], found["parameters"], strict=True):
        weights = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1
        assert parameters == f"{weights.meta['num_params']:,}"
    grouped = totals(family("imagenet", cardinality=32, base_width=4))
    weights = torchvision.models.get_model_weights("resnext50_32x4d").IMAGENET1K_V1
    assert grouped["layers"] == ["50", "101", "152"]
    assert grouped["parameters"][0] == f"{weights.meta['num_params']:,}"
    wide = totals(family("imagenet", base_width=128))
    for index, depth in enumerate((50, 101)):
        weights = torchvision.models.get_model_weights(f"wide_resnet{depth}_2").IMAGENET1K_V2
        assert wide["parameters"][index] == f"{weights.meta['num_params']:,}"


def test_cifar_has_the_parameters_of_table_6_and_table_4():
    networks = family("cifar")
    found = dict(zip((n.layers for n in networks), (n.parameters for n in networks), strict=True))
    assert sorted(found) == sorted([*CIFAR, 1001])
    for depth, printed in CIFAR.items():
        digit = Decimal(printed).as_tuple().exponent
        ours = Decimal(found[depth]).scaleb(-6).quantize(Decimal(1).scaleb(digit), ROUND_HALF_UP)
        assert str(ours) == printed
    rows = {row.name: row for row in family_rows(networks)}
    assert [rows[f"conv{number}_x"].size for number in (2, 3, 4)] == ["32×32", "16×16", "8×8"]
    at_110, at_164 = (sorted(found).index(depth) for depth in (110, 164))
    for number, width in ((2, 16), (3, 32), (4, 64)):
        units = [stage.unit for stage in rows[f"conv{number}_x"].stages]
        assert units[at_110] == f"[3×3, {width}; 3×3, {width}] × 18"
        assert units[at_164] == f"[1×1, {width}; 3×3, {width}; 1×1, {4 * width}] × 18"


def test_an_ordering_changes_the_parameters_and_not_the_flops():
    original, preact = family("imagenet"), family("imagenet", variants="full-preact")
    assert totals(preact)["parameters"] != totals(original)["parameters"]
    assert totals(preact)["parameters"][0] == "11,687,720"
    assert {name: values for name, values in totals(preact).items() if name != "parameters"} == {
        name: values for name, values in totals(original).items() if name != "parameters"
    }
    assert family("imagenet", "v2") == preact


def test_resnext_29_is_the_cifar_network_with_groups():
    first = family("cifar", cardinality=8, base_width=64)[0]
    assert (first.layers, f"{first.parameters / 1e6:.1f}") == (29, "34.4")  # arXiv:1611.05431


# --- the formats ----------------------------------------------------------------------------------


def words(text):
    """The words of the table and its notes."""
    return set(re.findall(r"[^\s─]+", text.split("BN or ReLU")[-1]))


@pytest.mark.heavy
@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize(
    "arguments",
    [
        ("--table", "imagenet"), ("--table", "cifar"), ("--table", "imagenet", *RESNEXT),
        ("resnet50", "resnet110", "resnext50_32x4d"), ("original-110", "v2-164"),
    ],
)  # fmt: skip
def test_it_fits_the_terminal_and_breaks_no_word(capsys, monkeypatch, width, arguments):
    whole = shown(capsys, *arguments)
    at_width(monkeypatch, width)
    text = shown(capsys, *arguments)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "Left out" not in text
    assert words(whole) == words(text)
    assert text.count("⎡") == text.count("⎤") == text.count("⎣") == text.count("⎦")
    assert text.count("⎡") == whole.count("⎡")


@pytest.mark.parametrize(
    ("name", "width", "columns"),
    [
        ("imagenet", 120, [5]), ("imagenet", 80, [5]), ("imagenet", 60, [3, 2]),
        ("cifar", 120, [8]), ("cifar", 80, [4, 4]), ("cifar", 60, [4, 4]),
    ],
)  # fmt: skip
def test_a_family_is_in_the_fewest_tables_that_fit(name, width, columns):
    panels = family_panels(family(name), width)
    across = [sum("Net-" in column.title for column in panel.columns) for panel in panels]
    assert across == columns


def test_at_80_columns_the_count_of_units_is_below_their_bracket(capsys, monkeypatch):
    at_width(monkeypatch, 80)
    lines = shown(capsys, "--table", "imagenet").splitlines()
    top = next(number for number, line in enumerate(lines) if line.startswith("conv4_x"))
    assert [lines[top + line].split() for line in (0, 1)] == [
        ["conv4_x", "⎡3×3,", "256⎤", "⎡3×3,", "256⎤", *["⎡1×1,", "256", "⎤"] * 3],
        ["14×14", "⎣3×3,", "256⎦", "⎣3×3,", "256⎦", *["⎢3×3,", "256", "⎥"] * 3],
    ]
    assert lines[top + 2].split() == ["×", "2", "×", "6", *["⎣1×1,", "1024⎦"] * 3]
    assert lines[top + 3].split() == ["×", "6", "×", "23", "×", "36"]
    assert lines[top - 11].split() == ["conv2_x", "3×3", "max", "pool,", "stride", "2"]


def test_the_notes_say_which_stride_is_whose(capsys):
    text = " ".join(shown(capsys, "--table", "imagenet").split())
    assert "stride on the 3×3 in torchvision, and on the first 1×1 in the code of the" in text
    assert "arXiv:1512.03385, Table 1; 3.6 G and 3.8 G are truncated there, not rounded." in text
    assert "FLOPs are multiply-adds" in text
    assert "Shortcuts are projected (B) where the shape changes." in text
    assert "A basic unit" not in shown(capsys, "--table", "imagenet", *RESNEXT)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("typed", "note"),
    [
        ("--table cifar", "shortcuts are padded (A) in basic units and projected (B) in bottle"),
        ("--table cifar --shortcut pad", "Shortcuts are padded (A) where the shape changes."),
        ("resnet34 resnet110 resnet164",
         "shortcuts are padded (A) in ResNet-110 and projected (B) in ResNet-34 and ResNet-164."),
    ],
)  # fmt: skip
def test_the_notes_say_which_shortcuts_there_are(capsys, typed, note):
    assert note in shown(capsys, *typed.split())


@pytest.mark.parametrize(
    ("typed", "heading", "columns"),
    [
        ("--table cifar --variant v2", "ResNet for CIFAR, full-preact", "ResNet-20  ResNet-32"),
        ("--table imagenet --stem cifar", "ResNet for ImageNet with the cifar stem, original",
         "ResNet-18  ResNet-34"),
        ("--table cifar --cardinality 8", "ResNeXt (8×64d) for CIFAR, original",
         "ResNeXt-29 (8×64d)  ResNeXt-164 (8×64d)"),
        ("--table imagenet --base-width 128", "Wide ResNet (×2) for ImageNet, original",
         "Wide ResNet-50-2  Wide ResNet-101-2  Wide ResNet-152-2"),
        ("resnet50 resnet101", "ResNet for ImageNet, original", "ResNet-50  ResNet-101"),
        ("resnet50 resnext50_32x4d", "ResNet-50, original · ResNeXt-50 (32×4d), original",
         "ResNet-50  ResNeXt-50 (32×4d)"),
        ("v1-110 v2-164", "ResNet-110, original · ResNet-164, full-preact",
         "ResNet-110, original  ResNet-164, full-preact"),
    ],
)  # fmt: skip
def test_what_all_have_in_common_is_in_the_heading(capsys, typed, heading, columns):
    lines = shown(capsys, *typed.split()).splitlines()
    assert lines[0] == heading
    (titles,) = [line for line in lines if line.startswith("layer ")]
    assert columns in re.sub(r" {2,}", "  ", titles)


def test_networks_of_basic_units_have_one_row_of_flops(capsys):
    text = shown(capsys, "resnet20", "resnet110")
    (line,) = [line for line in text.splitlines() if line.startswith("FLOPs")]
    assert line.split() == ["FLOPs", "40.55", "M", "252.89", "M"]


def test_the_markdown_is_one_table(capsys):
    text = shown(capsys, "--table", "imagenet", "--format", "markdown")
    assert text.startswith("### ResNet for ImageNet, original\n")
    (table,) = tables(text)
    assert table[0] == ["layer", "output", *(f"ResNet-{depth}" for depth in TABLE_1)]
    assert ["conv2_x", "56×56", *["3×3 max pool, stride 2"] * 5] in table
    assert ["conv5_x", "7×7", *(brackets(depth)[3] for depth in TABLE_1)] in table
    assert ["FLOPs in the paper", "", *(f"{flops} G" for *_, flops in TABLE_1.values())] in table
    assert {len(row) for row in table} == {7}


def test_the_json_has_the_networks_with_what_is_printed(capsys):
    found = json.loads(shown(capsys, "--table", "imagenet", "--format", "json"))
    assert list(found) == ["title", "notes", "networks"]
    assert [network["depth"] for network in found["networks"]] == list(TABLE_1)
    assert [network["printed"]["multiply_adds"] for network in found["networks"]] == [
        f"{flops} G" for *_, flops in TABLE_1.values()
    ]
    alone = json.loads(shown(capsys, "resnet50", "--format", "json"))
    assert found["networks"][2] | {"printed": None} == alone | {"printed": None}
    cifar = json.loads(shown(capsys, "--table", "cifar", "--format", "json"))
    assert {network["printed"] for network in cifar["networks"]} == {None}


# --- the picture ----------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def picture(capsys, tmp_path, *arguments):
    out = tmp_path / "table.svg"
    printed = shown(capsys, *arguments, "--out", str(out))
    assert printed.endswith(f"Wrote {out}\n")
    return ET.fromstring(out.read_text(encoding="utf-8"))


def test_the_picture_has_every_text_of_table_1(capsys, tmp_path):
    root = picture(capsys, tmp_path, "--table", "imagenet")
    found = [text.text for text in root.iter(f"{SVG}text")]
    for depth, (_, counts, flops) in TABLE_1.items():
        assert found.count(f"ResNet-{depth}") == 1
        assert f"{flops} G" in found
        assert all(f"× {count}" in found for count in counts)
    assert found.count("1×1, 2048") == 3
    assert found.count("3×3, 512") == 2 * 2 + 3
    for text in (*SIZES, *SIZES.values(), "7×7, 64, stride 2", "3×3 max pool, stride 2",
                 "average pool, 1000-d linear", "25,557,032"):  # fmt: skip
        assert found.count(text) == 1, text
    assert len(list(root.iter(f"{SVG}path"))) == 2 * 5 * 4


@pytest.mark.parametrize("arguments", [(), RESNEXT])
@pytest.mark.parametrize("name", ["imagenet", "cifar"])
def test_everything_is_on_the_card(capsys, tmp_path, name, arguments):
    root = picture(capsys, tmp_path, "--table", name, *arguments)
    width, height = (float(root.get(side)) for side in ("width", "height"))
    (card,) = root.iter(f"{SVG}rect")
    assert float(card.get("width")) == width - 2
    for text in root.iter(f"{SVG}text"):
        assert text.text
        wide = 5.5 * len(text.text)
        left = float(text.get("x")) - (wide / 2 if not text.get("class") else 0)
        assert left > 10, text.text
        assert left + (0 if text.get("class") == "name" else wide) < width - 10, text.text
        assert 0 < float(text.get("y")) < height - 10
    for path in root.iter(f"{SVG}path"):
        assert all(0 < float(x) < width for x in re.findall(r"[MH]([\d.]+)", path.get("d")))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "50"], "--table shows a whole family; leave out --depth."),
        (["--family", "imagenet"], "leave out --family."),
        (["--unit", "basic"], "leave out --unit."),
        (["--stride-on", "first"], "--table prints both strides; leave out --stride-on."),
        (["resnet50"], "--table shows a whole family; leave out 'resnet50'."),
        (["full-preact-50"], "leave out 'full-preact-50'."),
        (["orignal"], "did you mean 'original'"),
        (["--variant", "original,full-preact"], "--table shows one ordering at a time, not 2."),
        (["original", "--variant", "full-preact"], "--table shows one ordering at a time"),
        (["--compare"], "--table and --compare cannot be combined"),
        (["--cardinality", "0"], "'cardinality' must be at least 1"),
        (["--format", "svg"], "--format"),
        (["--out", "table.png"], "this command does not write .png"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_exit_2(
    capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "--table", "imagenet", *arguments)
    assert not list(tmp_path.iterdir())


def test_another_family_is_refused(capsys):
    assert "'cifar', 'imagenet'" in refused(capsys, "--table", "vgg")
