from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resvar import strict_yaml
from resvar.errors import UserError
from resvar.strict_yaml import parse_yaml, read_yaml, to_yaml

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
    ],
)
def test_values_are_read_as_a_person_means_them(text, value):
    read = parse_yaml(text, "here")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "mine.yaml, line 3: .*the key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "mine.yaml, line 1: .*the key 'b' stands twice"),
        ("a: &x 1\nb: 2", "mine.yaml, line 1: anchors and aliases"),
        ("a: 2\nb: &x [1]\nc: *x", "mine.yaml, line 2: anchors and aliases"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", "mine.yaml, line 2: tags such as .*os."),
        ("a: !!str 1", "mine.yaml, line 1: tags such as"),
        ("a: !mine 1", "mine.yaml, line 1: tags such as '!mine'"),
        ("a: [1", "mine.yaml, line [12]: this is not valid YAML"),
        ("a: 1\n\tb: 2", "mine.yaml, line 2: this is not valid YAML"),
        ("a: 'open", "mine.yaml, line 1: this is not valid YAML"),
        ("a: 2024-13-45", "mine.yaml: this is not valid YAML"),
        ("a: 1\n---\nb: 2", "mine.yaml.*: this is not valid YAML"),
        ("a: \x00", "mine.yaml.*: this is not valid YAML"),
        ("[" * 3000, "mine.yaml.*"),
        ("[1, 2]", "mine.yaml: a mapping"),
        ("5", "mine.yaml: a mapping"),
        ("", "mine.yaml: a mapping"),
        ("1: 2", "mine.yaml: the key 1 is no name"),
        ("true: 2", "mine.yaml: the key True is no name"),
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
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path)


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(UserError):
        read_yaml(Path("\0.yaml"))


# --- YAML out and in ------------------------------------------------------------------------------

names = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True).filter(
    lambda name: name not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
)
texts = st.text(st.characters(codec="utf-8"), max_size=30).filter(
    lambda text: not re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", text)  # see below
)
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


@pytest.mark.parametrize("text", ["1e4", "1e-4", "-2E+3"])
def test_a_string_that_looks_like_a_number_stays_a_string(text):
    assert parse_yaml(to_yaml({"variant": text}), "here") == {"variant": text}


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
