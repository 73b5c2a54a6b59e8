"""`resvar show` as its users meet it: what is drawn, printed, written and refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import chain, pairwise

import pytest
from markdown_it import MarkdownIt

from resvar.cli import run_command
from resvar.console import PlainConsole
from resvar.explain import show as module
from resvar.explain.drawing import Drawing, Figure, figures_svg
from resvar.models.architecture import plan
from resvar.models.ordering import PAPER_ORDER, Ordering, find_ordering

CONV = {"basic": ("conv 3×3", "conv 3×3"), "bottleneck": ("conv 1×1", "conv 3×3", "conv 1×1")}
LABELS = {"bn": "BN", "relu": "ReLU"}

# arXiv:1603.05027, figure 4: lead, trail, after the addition.
FIGURE_4 = {
    "original": ((), ("bn",), ("relu",)),
    "bn-after-add": ((), (), ("bn", "relu")),
    "relu-before-add": ((), ("bn", "relu"), ()),
    "relu-only-preact": (("relu",), ("bn",), ()),
    "full-preact": (("bn", "relu"), (), ()),
}


def boxes(variant, unit):
    """The labels of the branch from top to bottom, and those below the addition."""
    lead, trail, after_add = ([LABELS[op] for op in ops] for ops in FIGURE_4[variant])
    first, *rest = CONV[unit]
    middle = [label for conv in rest for label in ("BN", "ReLU", conv)]
    return [*lead, first, *middle, *trail], after_add


def figure(variant, unit="basic", caption=""):
    return Figure.of(find_ordering(variant), plan(20 if unit == "basic" else 29), caption)


def shown(capsys, *arguments):
    """What `resvar show` puts on stdout."""
    code = run_command(["show", *arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def refused(capsys, *arguments):
    """The one sentence on stderr."""
    code = run_command(["show", *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("resvar: error: ")
    assert err.count("\n") == 1
    return err


def at_width(monkeypatch, width):
    monkeypatch.setattr(
        "resvar.console.console_for_output",
        lambda **more: PlainConsole(width=width, force_terminal=True, color_system=None, **more),
    )


# --- the vector figure ----------------------------------------------------------------------------


def read_svg(text):
    """Per unit, from left to right: labels of its branch, labels below its addition, its name."""
    space = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring(text)
    additions = [
        (float(c.get("cx")), float(c.get("cy"))) for c in root.findall(f"{space}circle")
    ]  # fmt: skip
    column = float(root.get("width")) / len(additions)
    texts = [
        (float(t.get("x")), float(t.get("y")), t.text, t.get("class"))
        for t in root.findall(f"{space}text")
    ]
    units = []
    for index, (_, addition) in enumerate(additions):
        mine = sorted((y, t, kind) for x, y, t, kind in texts if index == int(x // column))
        labels = [(y, t) for y, t, kind in mine if not kind]
        units.append(
            (
                [t for y, t in labels if y < addition],
                [t for y, t in labels if y > addition],
                next(t for _, t, kind in mine if kind == "name"),
            )
        )
    return units


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
def test_the_svg_has_the_boxes_of_figure_4_in_its_order(unit):
    figures = [figure(name, unit) for name in PAPER_ORDER]
    assert read_svg(figures_svg(figures)) == [(*boxes(name, unit), name) for name in PAPER_ORDER]


def test_boxes_do_not_overlap_and_stay_inside():
    root = ET.fromstring(figures_svg([figure("full-preact", "bottleneck")]))
    rects = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") != "paper"]
    tops = sorted(float(rect.get("y")) for rect in rects)
    assert len(tops) == 9
    assert all(below - above > float(rects[0].get("height")) for above, below in pairwise(tops))
    right = max(float(rect.get("x")) + float(rect.get("width")) for rect in rects)
    assert 0 < right < float(root.get("width"))


def test_a_long_name_widens_its_column():
    name = "a-very-long-name-that-somebody-gave-to-an-ordering"
    root = ET.fromstring(figures_svg([figure(Ordering(name, lead=("bn", "relu")))]))
    assert float(root.get("width")) > 7 * len(name)


def test_out_writes_the_unit_that_is_shown(tmp_path, capsys):
    out = tmp_path / "unit.svg"
    printed = shown(
        capsys, "--variant", "original,full-preact", "--depth", "164", "--out", str(out)
    )
    assert printed.endswith(f"Wrote {out}\n")
    assert read_svg(out.read_text(encoding="utf-8")) == [
        (*boxes(name, "bottleneck"), name) for name in ("original", "full-preact")
    ]


def test_json_on_stdout_stays_json_with_out(tmp_path, capsys):
    assert run_command(["show", "--format", "json", "--out", str(tmp_path / "unit.svg")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["depth"] == 164
    assert err.startswith("Wrote ")


# --- the drawing in the terminal ------------------------------------------------------------------


def drawn(figures, width=100, **options):
    console = PlainConsole(width=width, **options)
    with console.capture() as capture:
        console.print(Drawing(figures))
    return capture.get()


def read_drawing(text):
    """Labels of the branch and labels below the addition, of a single unit."""
    lines = text.split("┃ shortcut")[0].splitlines()
    at = next(index for index, line in enumerate(lines) if "⊕" in line)
    words = [line.replace("after_add", "") for line in lines]
    labels = [re.findall(r"[(\[] *(.+?) *[)\]]", word) for word in words]
    return [*chain(*labels[4:at])], [*chain(*labels[at:])]


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
@pytest.mark.parametrize("variant", PAPER_ORDER)
def test_the_drawing_has_the_boxes_of_figure_4_in_its_order(variant, unit):
    text = drawn([figure(variant, unit)])
    assert read_drawing(text) == boxes(variant, unit)


def test_the_margin_names_each_place_so_that_no_colour_is_needed():
    lines = drawn([figure("original"), figure("full-preact")])
    rows = {line.split()[0]: line for line in lines.splitlines() if line and line[0].isalpha()}
    assert list(rows) == ["lead", "between", "trail", "addition", "after_add"]
    assert rows["lead"].count("BN") == 1
    assert rows["trail"].count("BN") == 1
    assert rows["after_add"].count("ReLU") == 1
    assert rows["addition"].count("⊕") == 2


def test_each_place_has_a_colour_of_its_own():
    figures = [figure(name) for name in PAPER_ORDER]
    text = drawn(figures, force_terminal=True, color_system="standard")
    for colour in ("36", "35", "33"):  # cyan, magenta, yellow
        assert f"\x1b[1;{colour}m(" in text


@pytest.mark.parametrize(("width", "lines"), [(40, 5), (80, 2), (120, 1)])
def test_units_stand_side_by_side_as_the_width_allows(width, lines):
    text = drawn([figure(name, caption="figure 4") for name in PAPER_ORDER], width)
    assert sum("⊕" in line for line in text.splitlines()) - 1 == lines  # less the legend
    assert text.count("⊕") - 1 == 5
    units = text.split("┃ shortcut")[0]
    assert max(map(len, units.splitlines())) <= width
    for name in PAPER_ORDER:
        assert name in text


def test_basic_units_and_bottlenecks_stand_side_by_side():
    text = drawn([figure("original"), figure("full-preact", "bottleneck")])
    assert text.count("[conv 3×3]") == 3
    assert text.count("[conv 1×1]") == 2


def test_groups_are_drawn():
    resnext = plan(50, "imagenet", cardinality=32, base_width=4)
    assert "[3×3, C=32]" in drawn([Figure.of(find_ordering("original"), resnext)])


# --- tables ---------------------------------------------------------------------------------------


def test_without_options_it_shows_the_default_network_and_teaches(capsys):
    text = shown(capsys)
    for part in (
        "ResNet-164, full-preact", "figure 4(e)", "1 + 18·3 + 18·3 + 18·3 + 1 = 164",
        "1,703,258", "244,500,992", "⎢3×3, 32 ⎥ × 18", "The signal x runs down",
        "resvar show --compare",
    ):  # fmt: skip
        assert part in text


def test_with_options_it_only_answers(capsys):
    assert "The signal x runs down" not in shown(capsys, "--depth", "20")


def test_the_lessons_commands_work(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "lead: [bn, relu]\ntrail: []\nafter_add: []\n", encoding="utf-8"
    )
    for command, _ in module.LESSON_NEXT:
        assert shown(capsys, *command.split()[2:])


def test_resnet_50_as_table_1_of_the_paper(capsys):
    text = shown(capsys, "--variant", "original", "--family", "imagenet", "--depth", "50")
    for part in (
        "7×7, 64, stride 2", "3×3 max pool, stride 2", "⎢3×3, 64 ⎥ × 3", "⎢3×3, 256 ⎥ × 6",
        "average pool, 1000-d linear", "112×112", "25,557,032  (25.56 M)",
        "4,089,184,256  (4.09 G)", "1 + 3·3 + 4·3 + 6·3 + 3·3 + 1 = 50",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--compare", "resnet50", "resnext101_32x8d"),
        ("--compare", "resnet34", "resnet110"),
        ("--variant", ",".join(PAPER_ORDER), "--family", "imagenet", "--depth", "152"),
        ("--family", "imagenet", "--cardinality", "32", "--base-width", "8", "--depth", "101"),
    ],
)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_terminal_and_no_unit_is_cut(capsys, monkeypatch, width, arguments):
    at_width(monkeypatch, width)
    text = shown(capsys, *arguments)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("⎡") == text.count("⎤") == text.count("⎣") == text.count("⎦") >= 3


@pytest.mark.parametrize(
    ("depth", "on_3x3", "on_first"),
    [
        (50, "4.09 G", "3.86 G on the first 1×1; arXiv:1512.03385, Table 1: 3.8 G"),
        (101, "7.80 G", "7.57 G on the first 1×1; arXiv:1512.03385, Table 1: 7.6 G"),
        (152, "11.51 G", "11.28 G on the first 1×1; arXiv:1512.03385, Table 1: 11.3 G"),
    ],
)
@pytest.mark.parametrize("stride", ["first", "3x3"])
def test_the_multiply_adds_of_both_strides_fit_80_columns(
    capsys, monkeypatch, depth, on_3x3, on_first, stride
):
    at_width(monkeypatch, 80)
    text = shown(capsys, "--family", "imagenet", "--depth", str(depth), "--stride-on", stride)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[-2:] == [f"by stride      {on_3x3} on the 3×3, torchvision's choice", on_first]
    markdown = shown(capsys, "--family", "imagenet", "--depth", str(depth), "--format", "markdown")
    assert markdown.endswith(f"  - stride: {on_first}\n")


def test_where_the_paper_prints_nothing_only_one_stride_is_counted(capsys):
    for options in (["--depth", "34"], ["--cardinality", "32", "--base-width", "4"]):
        assert "by stride" not in shown(capsys, "--family", "imagenet", *options)
    assert "by stride" not in shown(capsys, "--depth", "164")


def test_several_orderings_stand_in_one_table(capsys):
    text = shown(capsys, "--variant", "original,full-preact", "--depth", "164")
    assert "1,704,154" in text
    assert "1,703,258" in text
    assert text.count("conv2_x") == 1


def test_an_ordering_of_ones_own(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: relu-twice\nlead: [relu]\ntrail: [bn, relu]\nafter_add: []\n"
                    "unusual: true\n", encoding="utf-8")  # fmt: skip
    described = json.loads(shown(capsys, "--variant", str(path), "--format", "json"))
    assert described["variant"] == "relu-twice"
    assert described["ordering"]["trail"] == ["bn", "relu"]
    assert "relu-twice" in shown(capsys, "--variant", f"original,{path}")


# --- comparisons ----------------------------------------------------------------------------------


def test_resnet_50_against_101_marks_the_17_units_of_conv4_x(capsys):
    text = shown(capsys, "--compare", "resnet50", "resnet101")
    marked = [line for line in text.splitlines() if "≠" in line]
    assert ["conv4_x" in line and "6 → 23 units (+17)" in line for line in marked].count(True) == 1
    assert not any(f"conv{n}_x" in line for n in (2, 3, 5) for line in marked)
    assert "× 1.743" in text


def test_resnext_50_has_almost_equal_parameters(capsys):
    text = shown(capsys, "--compare", "resnet50", "resnext50_32x4d")
    (line,) = [line for line in text.splitlines() if line.startswith("parameters")]
    assert line.split()[1:3] == ["25,557,032", "25,028,904"]
    assert "× 0.979, almost equal" in line
    assert text.count("≠ groups 1 → 32") == 4
    assert "≠ inner 64 → 128" in text
    assert "[3×3, C=32]" in text


def test_a_name_is_the_original_network_unless_a_variant_is_given(capsys):
    def variants(*arguments):
        compared = json.loads(shown(capsys, "--compare", *arguments, "--format", "json"))
        return [network["variant"] for network in compared["networks"]]

    assert variants("resnet50", "resnetv2_50") == ["original", "full-preact"]
    assert variants("resnet50", "resnet18", "--variant", "bn-after-add") == ["bn-after-add"] * 2
    assert variants("resnet20", "resnet20", "--variant", "original,full-preact") == [
        "original", "full-preact",
    ]  # fmt: skip


def test_two_orderings_of_a_network_are_told_apart(capsys):
    text = shown(
        capsys, "--compare", "resnet20", "resnet20", "--variant", "original,full-preact"
    )  # fmt: skip
    assert "≠ trail: bn → –" in text
    assert "ResNet-20, full-preact" in text


def test_the_same_network_twice(capsys):
    text = shown(capsys, "--compare", "resnet50", "ResNet50")
    assert "≠" not in text
    assert "They are the same network." in text


def test_other_choices_hold_for_both(capsys):
    compared = json.loads(
        shown(capsys, "--compare", "resnet18", "resnet34", "--stem", "cifar", "--format", "json")
    )
    assert [network["input"] for network in compared["networks"]] == [[3, 32, 32]] * 2
    assert [network["num_classes"] for network in compared["networks"]] == [10, 10]


# --- JSON and Markdown ----------------------------------------------------------------------------

KEYS = [
    "title", "variant", "depth", "family", "unit", "stem", "cardinality", "base_width", "shortcut",
    "stride_on", "num_classes", "input", "layers", "layer_sum", "parameters", "multiply_adds",
    "multiply_adds_by_stride", "published", "ordering", "stem_ops", "projection_has_bn", "stages",
]  # fmt: skip


def test_the_shape_of_the_json(capsys):
    network = json.loads(
        shown(capsys, "--variant", "original", "--family", "imagenet", "--cardinality", "32",
              "--base-width", "4", "--format", "json")
    )  # fmt: skip
    assert list(network) == KEYS
    assert network["title"] == "ResNeXt-50 (32×4d)"
    assert network["input"] == [3, 224, 224]
    assert network["layers"] == network["depth"] == 50
    assert (network["parameters"], network["multiply_adds"]) == (25_028_904, 4_230_479_872)
    assert network["ordering"] == {
        "lead": [], "between": ["bn", "relu"], "trail": ["bn"], "after_add": ["relu"],
    }  # fmt: skip
    assert (network["stem_ops"], network["projection_has_bn"]) == (["bn", "relu"], True)
    assert [stage["name"] for stage in network["stages"]] == [
        "conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "head",
    ]  # fmt: skip
    assert network["stages"][1] | {"parameters": 0, "multiply_adds": 0} == {
        "name": "conv2_x",
        "output": [256, 56, 56],
        "unit": "[1×1, 128; 3×3, 128, C=32; 1×1, 256] × 3",
        "units": 3,
        "convolutions": [
            {"kernel": 1, "channels": 128, "groups": 1},
            {"kernel": 3, "channels": 128, "groups": 32},
            {"kernel": 1, "channels": 256, "groups": 1},
        ],
        "layers": 9,
        "parameters": 0,
        "multiply_adds": 0,
    }
    for count in ("layers", "parameters", "multiply_adds"):
        assert sum(stage[count] for stage in network["stages"]) == network[count]


def test_several_variants_are_a_list(capsys):
    networks = json.loads(shown(capsys, "--variant", ",".join(PAPER_ORDER), "--format", "json"))
    assert [network["variant"] for network in networks] == list(PAPER_ORDER)
    assert [network["projection_has_bn"] for network in networks] == [
        True, False, True, True, False,
    ]  # fmt: skip


def test_a_comparison_in_json(capsys):
    compared = json.loads(shown(capsys, "--compare", "resnet50", "resnet101", "--format", "json"))
    assert list(compared) == ["networks", "differences", "ratios"]
    assert [network["depth"] for network in compared["networks"]] == [50, 101]
    assert compared["differences"][-1] == {
        "stage": "conv4_x", "what": "units", "a": 6, "b": 23, "text": "6 → 23 units (+17)",
    }  # fmt: skip
    assert compared["ratios"]["parameters"] == pytest.approx(44_549_160 / 25_557_032, abs=1e-6)


def tables(markdown):
    """The tables of a Markdown text: rows of cells."""
    found, cells = [], []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token.content)
        elif token.type == "tr_close":
            found[-1].append(cells)
            cells = []
    return found


def test_the_markdown_is_made_of_whole_tables(capsys):
    text = shown(capsys, "--depth", "20", "--variant", "original,full-preact",
                 "--format", "markdown")  # fmt: skip
    assert text.count("### ResNet-20, ") == 2
    parsed = tables(text)
    assert len(parsed) == 4
    for table in parsed:
        assert len({len(row) for row in table}) == 1
    places, stages = parsed[:2]
    assert places[1] == ["–", "bn relu", "bn", "relu"]
    assert stages[2][:5] == ["conv2_x", "32×32", "16", "[3×3, 16; 3×3, 16] × 3", "3·2"]
    assert "- layers: 1 + 3·2 + 3·2 + 3·2 + 1 = 20" in text


def test_a_comparison_in_markdown_marks_what_differs(capsys):
    text = shown(capsys, "--compare", "resnet50", "resnet101", "--format", "markdown")
    (table,) = tables(text)
    marked = {row[0]: row[3] for row in table[1:] if "≠" in row[3]}
    assert set(marked) == {"conv4_x, 14×14", "layers", "parameters", "multiply-adds"}
    assert marked["conv4_x, 14×14"] == "**≠ 6 → 23 units (+17)**"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "21"], "depth 21 fits no residual unit"),
        (["--depth", "38"], "fits basic units (6n+2) and bottlenecks (9n+2)"),
        (["--depth", "38"], "(--unit …)"),
        (["--family", "vgg"], "--family"),
        (["--family", "imagenet", "--depth", "51"], "choose 18, 34, 50, 101, 152"),
        (["--depth", "20", "--cardinality", "4"], "groups need bottlenecks"),
        (["--cardinality", "0"], "'cardinality' must be at least 1"),
        (["--num-classes", "0"], "--num-classes"),
        (["--variant", "orignal"], "did you mean 'original'"),
        (["--variant", "original,"], "--variant: a name is empty"),
        (["--variant", ""], "--variant: a name is empty"),
        (["--variant", "none.yaml"], "none.yaml: cannot be read"),
        (["--compare", "resnet50"], "--compare"),
        (["--compare", "resnet50", "resnt50"], "did you mean 'resnet50'"),
        (["--compare", "resnet50", "resnet" + "9" * 5000], "there is no network named 'resnet999"),
        (["--compare", "resnet50", "resnet51"], "depth 51 fits no residual unit"),
        (["--compare", "resnet50", "resnet18", "--depth", "20"], "leave out --depth"),
        (["--compare", "resnet50", "resnet18", "--base-width", "4"], "leave out --base-width"),
        (["--compare", "resnet20", "resnet32", "--variant", "original,original,original"],
         "--variant takes one ordering, or one for each of the 2 names, not 3"),
        (["--out", "unit.png"], "--out unit.png: this command does not write .png"),
        (["--out", "unit.md", "--format", "json"], ".md means markdown, which contradicts"),
        (["--out", "no/such/folder/unit.svg"], "--out no/such/folder/unit.svg: cannot be written"),
        (["--format", "csv"], "--format"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence_and_exit_2(
    capsys, tmp_path, monkeypatch, arguments, message
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_out_with_another_suffix_receives_the_text(capsys, tmp_path):
    for name in ("x.json", "x.md", "x.txt", "x"):
        assert run_command(["show", "--depth", "20", "--out", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == f"Wrote {tmp_path / name}\n"
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["layers"] == 20
    assert (tmp_path / "x.md").read_text(encoding="utf-8").startswith("### ResNet-20")
    assert (tmp_path / "x.txt").read_bytes() == (tmp_path / "x").read_bytes()


def test_an_existing_figure_survives_a_wrong_network(capsys, tmp_path):
    out = tmp_path / "unit.svg"
    out.write_text("mine", encoding="utf-8")
    refused(capsys, "--depth", "21", "--out", str(out))
    assert out.read_text(encoding="utf-8") == "mine"


def test_it_does_not_wait_for_torch():
    code = (
        "import sys; from resvar.cli import run_command; "
        "run_command(['show', '--depth', '1202']); "
        "run_command(['show', '--compare', 'resnet152', 'resnext101_32x8d']); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
