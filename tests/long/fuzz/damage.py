"""Strategies that damage valid bytes, mappings and files."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

INTERESTING = [b"\x00" * 4, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\n", b"PK\x03\x04"]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, tokens: tuple[bytes, ...] = ()) -> bytes:
    """`whole` with a few bytes flipped, overwritten, removed, doubled or zeroed; or truncated."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.one_of(st.integers(1, 16), st.integers(1, max(1, len(content)))))
        what = draw(st.sampled_from(("flip", "bytes", "token", "cut", "double", "zeros", "end")))
        if what == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "bytes":
            content[at : at + length] = draw(st.binary(max_size=16))
        elif what == "token":
            word = draw(st.sampled_from((*INTERESTING, *tokens)))
            content[at : at + draw(st.sampled_from((0, len(word))))] = word
        elif what == "cut":
            del content[at : at + length]
        elif what == "double":
            content[at:at] = content[at : at + min(length, 4096)]
        elif what == "zeros":
            content[at : at + length] = bytes(len(content[at : at + length]))
        else:
            del content[at:]
    return bytes(content)


_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([10**30, -1, 0, 2**63, 1e308, 1e-320, "", "..", "/etc/passwd", "\x00", "nan"]),
)  # fmt: skip
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)  # fmt: skip
"""JSON values, and NaN."""


def altered(whole: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with a few values replaced, removed or added."""
    keys = st.sampled_from(sorted(whole)) | st.text(max_size=12)
    gone = st.lists(st.sampled_from(sorted(whole)), max_size=2)
    return st.builds(
        lambda changes, without: {
            key: value for key, value in {**whole, **changes}.items() if key not in without
        },
        st.dictionaries(keys, VALUES, min_size=1, max_size=4),
        gone,
    )


def json_of(whole: dict[str, Any]) -> st.SearchStrategy[bytes]:
    text = json.dumps(whole, indent=2).encode()
    words = (b"NaN", b"1e999", b"null", b"{", b"[" * 2000, b'"', b"-", b"9" * 5000)
    return damaged(text, words) | altered(whole).map(lambda value: json.dumps(value).encode())


YAML_WORDS = (
    b"!!python/object/apply:os.system ['touch owned']", b"&a ", b"*a", b"!!", b"? ", b"- ", b": ",
    b"{", b"[" * 300, b"'", b"\t", b"---\n", b"%YAML 9.9\n", b"<<: ", b"1e-4", b"0x", b".inf",
    b"2016-03-16", b"\xef\xbb\xbf", b"\xff\xfe", b"9" * 5000, b"../../etc/passwd", b"1:2:3",
)  # fmt: skip
YAML_SCALARS = (
    "0400", "-010", "08", "1_000", "0b11", "0o17", "0x1F", "1:30", "1:1:1.5", "12:00:00", "yes",
    "Off", "n", "~", "TRUE", ".inf", "-.INF", ".NaN", "1e999", "1e-400", ".5e3", "+1", "-0", "=",
    "2016-03-16", "2024-13-45", "<<", "\u0663", "\uff11", "\ufeff1", "1\x852", "1\u20282", "\ud800",
    "'\\ud800'", "\x7f", "\t1", "a\tb", "&a 1", "!!int 1", "[1, [2, {a: b}]]", "{1: 2}", "9" * 101,
    "9" * 5000, "0." + "9" * 5000, "0x" + "f" * 5000, "0" * 5000, "1" + ":1" * 20_000,
    "1" + ":1" * 2000 + ".0", "[" * 300, "x" * 20_000,
)  # fmt: skip
"""Values in the notations of YAML 1.1, 1.2 and neither, of a line of any YAML file."""


def yaml_of(*files: bytes) -> st.SearchStrategy[bytes]:
    text = st.text(max_size=200).map(lambda value: value.encode("utf-8", "surrogatepass"))
    return st.one_of(
        text,
        *(damaged(file, YAML_WORDS) for file in files),
        *(respelled(file.decode()) for file in files),
    )


@st.composite
def respelled(draw: st.DrawFn, whole: str) -> bytes:
    """YAML in which one or two lines have other values, or a key takes the place of its value."""
    lines = whole.splitlines()
    at = st.sampled_from([number for number, line in enumerate(lines) if ":" in line])
    for number in draw(st.lists(at, min_size=1, max_size=2)):
        key, scalar = lines[number].partition(":")[0], draw(st.sampled_from(YAML_SCALARS))
        as_key = draw(st.integers(0, 9)) == 0
        lines[number] = f"? {scalar}\n: 1" if as_key else f"{key}: {scalar}"
    return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")


NPY_WORDS = (
    b"'|O'", b"'<i8'", b"(20,)", b"(10**12,)", b"(99999999999,)", b"(-1,)", b"True", b"(" * 200,
    b"[('a', 'O')]", b"\x93NUMPY",
)  # fmt: skip
CSV_WORDS = (b",,,,", b"nan", b"inf", b'"', b"\r", b"\n\n", b"1e999", b"9" * 5000, b"," * 500)
