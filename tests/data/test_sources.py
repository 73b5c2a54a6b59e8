"""Several sources of one archive: each continues what others have left, and the MD5 decides."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from pathlib import Path

import pytest

from resvar.cli import run_command
from resvar.data.cifar import Dataset
from resvar.data.download import BRISK, brisk
from resvar.data.obtain import obtain
from resvar.data.web import Patience
from resvar.errors import RunError, UserError
from tests.data.test_download import Answer, no_proxy, raw_server, sending
from tests.data.test_obtain import contents, names, pack, parts, served_by, source
from tests.support.tiny import install

__all__ = ["no_proxy", "source"]  # fixtures

PATIENT = Patience(silence=60, answer=60, slowest=0, window=60)
"""Where no source is slow, however busy the machine is."""

HASTY = Patience(silence=60, answer=60, slowest=1_000_000, window=0.2)
IMPATIENT = Patience(silence=1.5, answer=60, slowest=0, window=60)


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    return pack(source, tmp_path_factory.mktemp("packed") / "archive").read_bytes()


def start_of(request: bytes) -> int:
    found = re.search(rb"Range: bytes=(\d+)-", request)
    return int(found[1]) if found else 0


def serving(
    data: bytes, cut: int | None = None, pause: float = 0.0, ranges: bool = True, step: int = 2000
) -> Answer:
    """Sends what was asked for, `step` bytes at a time; ends the connection after `cut` bytes."""

    def answer(connection: socket.socket, request: bytes) -> None:
        start = start_of(request) if ranges else 0
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n" % (
            b"206 P" if start else b"200 OK", len(data) - start
        )  # fmt: skip
        if start:
            head += b"Content-Range: bytes %d-%d/%d\r\n" % (start, len(data) - 1, len(data))
        connection.sendall(head + b"\r\n")
        body = data[start:][:cut]
        for at in range(0, len(body), step):
            connection.sendall(body[at : at + step])
            time.sleep(pause)

    return answer


def refusing(code: bytes = b"503 Busy") -> Answer:
    return sending(b"HTTP/1.1 " + code + b"\r\nContent-Length: 0\r\n\r\n")


def fetch(
    dataset: Dataset, packed: bytes, folder: Path, *answers: Answer, early: Patience = PATIENT
) -> list[list[int]]:
    """Obtain the dataset from servers with these answers.

    Args:
        early: when a source is left that others follow.

    Returns:
        For each server the positions from which it was asked.
    """
    asked: list[list[int]] = [[] for _ in answers]

    def noting(number: int) -> Answer:
        def answer(connection: socket.socket, request: bytes) -> None:
            asked[number].append(start_of(request))
            answers[number](connection, request)

        return answer

    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(raw_server(noting(number))) + "/cifar-10-python.tar.gz"
            for number in range(len(answers))
        ]
        obtain(served_by(dataset, *urls, packed=packed), folder, early=early, last=PATIENT)
    return asked


# --- one continues another ------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("first", ["slow", "cut", "silent"])
def test_the_next_source_continues_what_the_first_has_left(source, packed, tmp_path, capsys, first):
    answer, early = {
        "slow": (serving(packed, pause=0.1), HASTY),
        "cut": (serving(packed, cut=9000), PATIENT),
        "silent": (lambda c, r: (serving(packed, cut=9000)(c, r), c.recv(1)), IMPATIENT),
    }[first]
    asked = fetch(source[1], packed, tmp_path, answer, serving(packed), early=early)
    assert contents(tmp_path) == contents(source[0])
    assert asked[0] == [0]
    (position,) = asked[1]
    assert 0 < position < len(packed)
    said = {"slow": r"is slow \(\d+ kB/s\)", "cut": "broke off at 0.0 MB", "silent": "sent nothing"}
    line = rf"127\.0\.0\.1:\d+ {said[first]}.*: trying 127\.0\.0\.1:\d+; 0\.0 of 0\.2 MB are kept\."
    assert re.search(line, capsys.readouterr().err)


@pytest.mark.heavy
def test_the_last_source_may_be_slow(source, packed, tmp_path):
    step = len(packed) // 8  # 0.8 s: several of the windows in which another source is left
    slow = serving(packed, pause=0.1, step=step)
    assert fetch(source[1], packed, tmp_path, refusing(), slow, early=HASTY) == [[0], [0]]
    assert contents(tmp_path) == contents(source[0])


@pytest.mark.heavy
def test_a_slow_source_gets_a_second_attempt_where_the_last_one_fails(source, packed, tmp_path):
    slow = serving(packed, pause=0.05, step=2000)
    asked = fetch(source[1], packed, tmp_path, slow, refusing(), early=HASTY)
    assert len(asked[0]) == 2
    assert asked[0][1] > 0
    assert contents(tmp_path) == contents(source[0])


@pytest.mark.parametrize(
    "nonsense",
    [
        refusing(b"404 Not Found"),
        refusing(b"416 Range Not Satisfiable"),
        sending(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"),
        sending(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>sign in"),
        sending(b"HTTP/1.1 206 P\r\nContent-Range: bytes 9000-9004/9005\r\n\r\nother"),
        sending(b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\n\r\n"),
        sending(b"HTTP/1.1 302 F\r\nLocation: ftp://127.0.0.1/x\r\n\r\n"),
        sending(b"nonsense\r\n\r\n"),
    ],
)
def test_nonsense_costs_no_byte_that_is_kept(source, packed, tmp_path, nonsense):
    asked = fetch(source[1], packed, tmp_path, serving(packed, cut=9000), nonsense, serving(packed))
    assert asked[1][0] == 9000
    assert asked[2] == [9000]
    assert contents(tmp_path) == contents(source[0])


def test_a_source_without_ranges_loses_nothing(source, packed, tmp_path):
    """It sends everything again; where it breaks off before byte 9000, these bytes stay."""
    asked = fetch(
        source[1], packed, tmp_path,
        serving(packed, cut=9000), serving(packed, cut=4000, ranges=False),
        serving(packed, cut=20_000, ranges=False), serving(packed),
    )  # fmt: skip
    assert [len(positions) for positions in asked] == [1, 1, 1, 1]
    assert (asked[2], asked[3]) == ([9000], [20_000])
    assert contents(tmp_path) == contents(source[0])


# --- the MD5 --------------------------------------------------------------------------------------


def test_pieces_with_a_wrong_md5_are_deleted_and_the_next_source_starts_over(
    source, packed, tmp_path, capsys
):
    liar = serving(bytes(len(packed)), cut=9000)
    asked = fetch(source[1], packed, tmp_path, liar, serving(packed), serving(packed))
    assert asked == [[0], [9000], [0]]
    assert "but the MD5 is wrong, so it was deleted: trying" in capsys.readouterr().err
    assert contents(tmp_path) == contents(source[0])


def test_the_honest_source_of_a_wrong_mixture_gets_a_second_attempt(source, packed, tmp_path):
    liar = serving(bytes(len(packed)), cut=9000)
    asked = fetch(source[1], packed, tmp_path, liar, serving(packed))
    assert asked == [[0, 0], [9000, 0]]  # each alone
    assert contents(tmp_path) == contents(source[0])


def test_a_source_of_another_archive_of_the_same_size_is_left(source, packed, tmp_path, capsys):
    asked = fetch(source[1], packed, tmp_path, serving(bytes(len(packed))), serving(packed))
    assert asked == [[0], [0]]
    assert "sent an archive with a wrong MD5, which was deleted" in capsys.readouterr().err
    assert contents(tmp_path) == contents(source[0])


# --- the end --------------------------------------------------------------------------------------


def test_the_last_sentence_names_every_source_and_what_else_can_be_done(source, packed, tmp_path):
    with pytest.raises(RunError) as caught:
        fetch(source[1], packed, tmp_path, refusing(), serving(packed, cut=9000), refusing())
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert len(re.findall(r"127\.0\.0\.1:\d+ answered 503 \(Busy\)", said)) == 2
    assert "broke off at 0.0 MB of 0.2 MB" in said
    for advice in ("resume at 0.0 of 0.2 MB", "--archive FILE", "--url URL", "--dataset sample"):
        assert advice in said
    (part,) = parts(tmp_path)
    assert part.read_bytes() == packed[:9000]


def test_stall_below(tmp_path, capsys):
    assert brisk(None) is BRISK
    assert brisk(50).slowest == 50_000
    for wrong in ("-1", "nan", "inf"):
        assert run_command(["data", "--dir", str(tmp_path / "d"), f"--stall-below={wrong}"]) == 2
        assert "a speed in kB/s is needed" in capsys.readouterr().err
    words = ["data", "--dir", str(tmp_path / "d"), "--stall-below", "9", "--url", "http://h/x"]
    assert run_command(words) == 2
    assert "--url names one" in capsys.readouterr().err
    assert names(tmp_path) == []


# --- wrong input where the data are present -------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [("--archive", "none.tar"), ("--archive", "text"), ("--archive", "."), ("--url", "fil e")],
)
def test_wrong_input_is_refused_also_where_the_data_are_present(
    source, tmp_path, monkeypatch, capsys, option, value
):
    install(source[1], monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no archive", encoding="utf-8")
    before = contents(source[0])
    assert run_command(["data", "--dir", str(source[0]), option, value]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert value in err
    assert contents(source[0]) == before


def test_an_archive_that_is_one_is_accepted_where_the_data_are_present(source, packed, tmp_path):
    (tmp_path / "archive").write_bytes(packed)
    assert obtain(source[1], source[0], archive=tmp_path / "archive") is False
    (tmp_path / "text").write_bytes(b"no archive")
    with pytest.raises(UserError, match="it is not a tar archive"):
        obtain(source[1], source[0], archive=tmp_path / "text")
