from __future__ import annotations

import contextlib
import math
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resvar import strict_yaml
from resvar.errors import UserError
from resvar.strict_yaml import parse_yaml, read_yaml, spelling_advice, to_yaml
from tests.support.commands import ROOT

# --- strict YAML ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100_000.0),
        ("-2e3", -2000.0),
        ("+1e+2", 100.0),
        ("1.e2", 100.0),
        ("1.5e-3", 0.0015),
        ("0.1", 0.1),
        ("64", 64),
        ("true", True),
        ("null", None),
        ("", None),
        ("[bn, relu]", ["bn", "relu"]),
        ("e4", "e4"),
        ("1e", "1e"),
        ("1e4x", "1e4x"),
        ("'1e4'", "1e4"),
        ("a: {b: 1, c: 1}", {"a": {"b": 1, "c": 1}}),
        ("012", "012"),
        ("-007", "-007"),
        ("08", "08"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("12:00:00", "12:00:00"),
        ("1:1:1.5", "1:1:1.5"),
        ("2016-03-16", "2016-03-16"),
        ("2024-13-45", "2024-13-45"),
        ("2016-03-16 12:00:00", "2016-03-16 12:00:00"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("=", "="),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("1e999", math.inf),
        ("٣", "٣"),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_values_are_read_as_a_person_means_them(text, value):
    read = parse_yaml(text, "here")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "mine.yaml, line 3: .*the key 'a' occurs twice"),
        ("a: {b: 1, b: 2}", "mine.yaml, line 1: .*the key 'b' occurs twice"),
        ("a: &x 1\nb: 2", "mine.yaml, line 1: anchors and aliases"),
        ("a: 2\nb: &x [1]\nc: *x", "mine.yaml, line 2: anchors and aliases"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", "mine.yaml, line 2: tags such as .*os."),
        ("a: !!str 1", "mine.yaml, line 1: tags such as"),
        ("a: !mine 1", "mine.yaml, line 1: tags such as '!mine'"),
        ("a: [1", "mine.yaml, line [12]: this is not valid YAML"),
        ("a: 1\n\tb: 2", "mine.yaml, line 2: this is not valid YAML"),
        ("a: 'open", "mine.yaml, line 1: this is not valid YAML"),
        ("a: 1\n---\nb: 2", "mine.yaml.*: this is not valid YAML"),
        ("a: \x00", "mine.yaml.*: this is not valid YAML"),
        ("[" * 3000, "mine.yaml.*"),
        ("[1, 2]", "mine.yaml: expected a mapping"),
        ("5", "mine.yaml: expected a mapping"),
        ("", "mine.yaml: expected a mapping"),
        ("1: 2", "mine.yaml: the key 1 is not a name"),
        ("true: 2", "mine.yaml: the key True is not a name"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode())
    with pytest.raises(UserError, match=message):
        read_yaml(path)


def test_a_list_or_mapping_as_a_key_is_refused():
    for text in ("{[1]: 2}", "{? [a] : b}", "{{a: 1}: 2}"):
        with pytest.raises(UserError, match="here"):
            parse_yaml(text, "here")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    for name, content, message in (
        ("latin.yaml", "a: 'ü'".encode("latin1"), "not a text file in UTF-8"),
        ("binary.yaml", bytes(range(128, 256)), "not a text file in UTF-8"),
        ("large.yaml", b"a: 1\n" + b"#" * strict_yaml.LARGEST_YAML, "over 1,000,000 bytes"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            read_yaml(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="a directory, not a regular file"):
        read_yaml(tmp_path)


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(UserError):
        read_yaml(Path("\0.yaml"))


# --- scalars: the core schema of YAML 1.2 ---------------------------------------------------------

DIGITS = "0123456789"


def core_schema(text: str) -> object:
    """The value of a plain scalar by the table in section 10.3.2 of YAML 1.2.2."""
    if text in ("null", "Null", "NULL", "~", ""):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if text in (".nan", ".NaN", ".NAN"):
        return math.nan
    for prefix, base, digits in (("0o", 8, DIGITS[:8]), ("0x", 16, DIGITS + "abcdefABCDEF")):
        if text.startswith(prefix) and text[2:] and set(text[2:]) <= set(digits):
            return int(text[2:], base)
    sign, unsigned = (text[0], text[1:]) if text[0] in "+-" else ("", text)
    if unsigned in (".inf", ".Inf", ".INF"):
        return -math.inf if sign == "-" else math.inf
    if set(unsigned) <= set(DIGITS):
        return int(text) if unsigned else text
    mantissa, power, exponent = unsigned.replace("E", "e").partition("e")
    exponent = exponent[1:] if exponent[:1] in ("+", "-") else exponent
    whole, _, part = mantissa.partition(".")
    if not set(whole + part + exponent) <= set(DIGITS) or not whole + part:
        return text
    return text if power and not exponent else float(text)


def has_leading_zeros(text: str) -> bool:
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    return len(unsigned) > 1 and unsigned.startswith("0") and set(unsigned) <= set(DIGITS)


looks_like_a_number = st.text("0123456789+-.eExob_:afANnIi", min_size=1, max_size=8)
looks_like_a_word = st.sampled_from(
    ["null", "true", "false", ".inf", ".nan", "yes", "no", "on", "off", "y", "n"]
).flatmap(lambda word: st.sampled_from([word, word.title(), word.upper(), f"-{word}", f"+{word}"]))


@settings(max_examples=500)
@example("0400")
@example("1e5")
@example("-.INF")
@example(".")
@example("-")
@example("1.e")
@given(looks_like_a_number | looks_like_a_word)
def test_a_plain_scalar_is_what_yaml_1_2_says_but_leading_zeros_make_text(text):
    try:
        read = parse_yaml(f"a: {text}", "here")["a"]
    except UserError:  # such as "- ", "a:" and ": "
        assert set(text) & set(":-")
        return
    if isinstance(read, dict | list):
        assert ":" in text or text.startswith("-")
        return
    expected = text if has_leading_zeros(text) else core_schema(text)
    assert type(read) is type(expected)
    assert read == expected or (math.isnan(read) and math.isnan(expected))


@pytest.mark.parametrize(
    ("text", "kind", "advice"),
    [
        ("0400", int, "; write 400"),
        ("0400", float, "; write 400"),
        ("0400", bool, ""),
        ("0400", None, ""),
        ("-010", int, "; write -10"),
        ("1_000", int, "; write 1000"),
        ("0b11", int, "; write 3"),
        (" 7 ", int, "; write 7"),
        ("1_0.5", float, "; write 10.5"),
        ("1_0.5", int, ""),
        ("１", int, "; write 1"),
        ("Yes", bool, "; write true"),
        ("off", bool, "; write false"),
        ("off", int, ""),
        ("1:30", float, ""),
        ("nan", float, ""),
        ("fast", float, ""),
        ("9" * 200, int, ""),
        (3, int, ""),
        (None, bool, ""),
    ],
)
def test_a_text_that_elsewhere_is_a_number_is_refused_with_its_usual_spelling(text, kind, advice):
    assert spelling_advice(text, kind) == advice


MEGABYTES = {
    "base 60": "depth: 1" + ":1" * 500_000,
    "base 60, float": "depth: 1" + ":1" * 1000 + ".0",
    "digits": "depth: " + "9" * 999_000,
    "zeros": "depth: " + "0" * 999_000,
    "hexadecimal": "depth: 0x" + "f" * 999_000,
    "float": "depth: 1." + "9" * 999_000,
    "exponent": "depth: 1e" + "9" * 999_000,
    "underscores": "depth: 1" + "_1" * 499_000,
    "keys": "".join(f"k{number}: 1\n" for number in range(90_000)),
    "one key": "? " + "a" * 999_000 + "\n: 1",
    "items": "a: [" + "1," * 499_000 + "]",
    "lines": "a:\n" + "- b\n" * 249_000,
    "opening brackets": "[" * 999_000,
    "opening braces": "{a: " * 249_000,
    "dashes": "- " * 499_000,
    "deeper and deeper": "".join(" " * depth + "-\n" for depth in range(1_400)),
    "anchors": "&a " * 333_000,
    "aliases": "a: [" + "*a," * 333_000 + "]",
    "tags": "!a " * 333_000,
    "one tag": "!" + "a" * 999_000 + " 1",
    "documents": "---\n" * 249_000,
    "directives": "%YAML 1.1\n" * 99_000,
    "quotes": "a: '" + "''" * 499_000,
    "escapes": 'a: "' + "\\n" * 499_000 + '"',
    "comments": "#\n" * 499_000,
    "spaces": "a:" + " " * 999_000,
    "tabs": "\t" * 999_000,
    "byte order marks": "\ufeff" * 333_000,
}
"""Texts of a megabyte, whose length some reader's time grows with the square of."""


@pytest.mark.heavy
@pytest.mark.parametrize("kind", MEGABYTES)
def test_a_megabyte_of_anything_is_read_or_refused_in_seconds(kind):
    """Less than one second on an idle machine; base 60 took 38."""
    begun = time.process_time()
    said = ""
    try:
        parse_yaml(MEGABYTES[kind], "here")
    except UserError as error:
        said = str(error)
    assert time.process_time() - begun < 5
    assert len(said) < 200
    assert "\n" not in said


@pytest.mark.parametrize(
    "text",
    [
        "a: \x00",
        "a: \ud800",
        'a: "\\ud800"',
        "a: \x7f",
        "a: \x90",
        "a: \uffff",
        "- {a",
        "? [1]\n: 2",
    ],
)
def test_text_that_no_yaml_may_contain_is_refused_in_a_sentence(text):
    with pytest.raises(UserError, match="here") as refused:
        parse_yaml(text, "here")
    assert str(refused.value).isprintable()


# --- YAML out and in ------------------------------------------------------------------------------

names = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True).filter(
    lambda name: name not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
)
texts = st.text(st.characters(codec="utf-8"), max_size=30) | looks_like_a_number | looks_like_a_word
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = scalars | st.lists(scalars, max_size=4)


@settings(max_examples=150)
@example({"a": "true", "b": "null", "c": "1", "d": "~", "e": "2024-01-01", "f": "0x1f"})
@example({"a": 1e-5, "b": 1e300, "c": math.inf, "d": 5e-324})
@example({"a": "x" * 20_000, "b": "x y " * 5_000})
@given(st.dictionaries(names, values, max_size=6))
def test_what_is_written_reads_back_the_same(mapping):
    text = to_yaml(mapping)
    read = parse_yaml(text, "here") or {}
    assert read == mapping
    assert list(read) == list(mapping)
    assert [type(value) for value in read.values()] == [type(v) for v in mapping.values()]


class EarlierLoader(yaml.SafeLoader):
    """YAML 1.1 as earlier versions of resvar read it."""


EarlierLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@pytest.mark.heavy
@settings(max_examples=500)
@example("0400")
@example("1e5")
@example(".5e3")
@example("0o17")
@example("08")
@example(1e-5)
@example(1e22)
@example(math.inf)
@given(looks_like_a_number | looks_like_a_word | st.integers() | st.floats(allow_nan=False))
def test_readers_of_yaml_1_1_and_1_2_read_what_is_written_alike(value):
    text = to_yaml({"key": value})
    read = [yaml.load(text, Loader) for Loader in (yaml.SafeLoader, EarlierLoader)]
    read.append(parse_yaml(text, "here"))
    plain = text.removeprefix("key: ").removesuffix("\n")
    if plain[0] not in "'\"":
        read.append({"key": core_schema(plain)})
    for mapping in read:
        assert mapping == {"key": value}
        assert type(mapping["key"]) is type(value)


RECORDS = sorted(
    path
    for folder in ("tests/frozen", "results", "docs/runs")
    for path in (ROOT / folder).glob("**/config.yaml")
)


def test_records_of_earlier_versions_are_written_as_they_were():
    assert len(RECORDS) > 10
    for path in RECORDS:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        body = "".join(line for line in lines if not line.startswith("#"))
        assert to_yaml(parse_yaml(body, str(path))) == body
        assert parse_yaml(body, str(path)) == yaml.load(body, EarlierLoader)


def test_numbers_are_written_as_they_always_were():
    values = {"a": 1e-5, "b": 0.1, "c": 1e16, "d": 1e22, "e": -0.0, "f": math.inf, "g": 10**20}
    assert to_yaml(values) == (
        "a: 1.0e-05\nb: 0.1\nc: 1.0e+16\nd: 1.0e+22\ne: -0.0\nf: .inf\ng: 100000000000000000000\n"
    )


@settings(max_examples=100)
@given(st.dictionaries(names, st.none() | st.booleans() | st.integers() | st.floats(), min_size=1))
def test_a_mapping_of_numbers_takes_a_line_per_key(mapping):
    lines = to_yaml(mapping).splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(mapping)


@settings(max_examples=300)
@given(st.text(max_size=40) | st.text("[]{}:,?-&*!|>'\"%@`#<=. \n01ea~", max_size=12))
def test_no_text_makes_the_parser_fail_otherwise_than_in_words(text):
    with contextlib.suppress(UserError):
        parse_yaml(text, "here")
