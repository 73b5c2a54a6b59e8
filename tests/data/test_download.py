"""Downloads from servers, proxies and addresses that misbehave: one sentence, and an end."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resvar.data import web
from resvar.data.cifar import DATASETS, Archive, load_cifar
from resvar.data.download import PATIENT, download
from resvar.data.lock import FETCH_LOCK, exclusive
from resvar.data.transfer import show_line
from resvar.data.web import Patience, SourceError, check_proxy, check_url, without_password
from resvar.errors import RunError, UserError
from tests.data.test_obtain import contents, names, pack
from tests.support.commands import wait_for
from tests.support.tiny import make_cifar, make_marked_cifar

Answer = Callable[[socket.socket, bytes], None]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@contextlib.contextmanager
def raw_server(answer: Answer) -> Iterator[str]:
    """A server whose answer to each request, given as bytes, is a function; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection, connection.recv(65536))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def sending(data: bytes) -> Answer:
    return lambda connection, _request: connection.sendall(data)


def endlessly(start: bytes, more: bytes, pause: float) -> Answer:
    def answer(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(more)
            time.sleep(pause)

    return answer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


HASTY = Patience(silence=60, answer=60, slowest=1000, window=0.5)
IMPATIENT = Patience(silence=1.5, answer=2, slowest=0, window=60)


def fetch(url: str, path: Path, show: bool = False, patience: Patience = PATIENT) -> None:
    """Download from one address, of which nothing is known."""
    archive = Archive("cifar-10-python.tar.gz", None, None, (url,))
    download(archive, path, show_line if show else None, last=patience)


# --- slow servers ---------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_server_that_drips_is_left_and_the_part_kept(tmp_path):
    with (
        raw_server(endlessly(OK % 1_000_000, b"x", 0.05)) as url,
        pytest.raises(RunError, match=r"http://127\.0\.0\.1:\d+ is slow \(\d+ bytes/s\); "),
    ):
        fetch(url, tmp_path / "part", patience=HASTY)
    assert set((tmp_path / "part").read_bytes()) == {ord("x")}


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (b"", r"cannot be reached \(no answer in time\)"),
        (b"HTTP/1.1 200 OK\r\n", r"cannot be reached \(no answer in time\)"),
        (OK % 1000 + b"some", "sent nothing for 1.5 s"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4", "sent nothing for"),
    ],
)
def test_a_server_that_falls_silent_is_left(tmp_path, start, sentence):
    with (
        raw_server(endlessly(start, b"", 0.05)) as url,
        pytest.raises(RunError, match=sentence),
    ):
        fetch(url, tmp_path / "part", patience=IMPATIENT)


@pytest.mark.heavy
def test_headers_that_never_end_are_left(tmp_path):
    """Each byte satisfies the socket's own limit."""
    with (
        raw_server(endlessly(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05)) as url,
        pytest.raises(RunError, match="no answer in time"),
    ):
        fetch(url, tmp_path / "part", patience=IMPATIENT)


# --- false answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"not HTTP at all\r\n\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
        (b"HTTP/1.1 302 F\r\nLocation: http://[bad/\r\n\r\n", "cannot be reached .*Invalid IPv6"),
        (b"HTTP/1.1 302 F\r\nLocation: http://a..b/x\r\n\r\n", "cannot be reached"),
        (b"HTTP/1.1 302 F\r\nLocation: http://127.0.0.1:x/\r\n\r\n", "cannot be reached"),
        (
            b"HTTP/1.1 302 Go\r\nLocation: ftp://h/x\r\n\r\n",
            r"redirects to ftp://h/x, which is not http or https",
        ),
        (b"HTTP/1.1 302 Go\r\nLocation: /again\r\n\r\n", r"answered 302 \(.*infinite loop"),
        (b"HTTP/1.1 500 Oh\x1b[31m\r\nContent-Length: 9\r\n\r\n", "answered 500 .Oh"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n", "cannot be reached .*headers"),
    ],
)
def test_a_false_answer_is_one_sentence(tmp_path, answer, sentence):
    with raw_server(sending(answer)) as url, pytest.raises(RunError, match=sentence) as caught:
        fetch(url, tmp_path / "part")
    assert len(str(caught.value).splitlines()) == 1
    assert "--url URL" in str(caught.value)
    assert names(tmp_path) == []


def test_a_redirect_with_an_endless_body_is_followed(tmp_path):
    def answer(connection: socket.socket, request: bytes) -> None:
        if b"/there" in request:
            connection.sendall(OK % 4 + b"here")
            return
        head = b"HTTP/1.1 302 F\r\nLocation: /there\r\n\r\n"
        endlessly(head, bytes(1 << 20), 0)(connection, request)

    with raw_server(answer) as url:
        fetch(url, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b"here"


def test_bytes_beyond_the_announced_length_are_left(tmp_path):
    with raw_server(sending(OK % 4 + b"here and more")) as url:
        fetch(url, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b"here"


@pytest.mark.parametrize("total", [b"9" * 5000, b"999999999999"])
def test_a_total_that_is_absurd_is_refused_or_ignored(tmp_path, total):
    (tmp_path / "part").write_bytes(b"1234")

    def answer(connection: socket.socket, request: bytes) -> None:
        if b"Range:" not in request:
            connection.sendall(OK % 4 + b"here")
            return
        head = b"HTTP/1.1 206 P\r\nContent-Length: 4\r\nContent-Range: bytes 4-7/%b\r\n\r\n"
        connection.sendall(head % total + b"more")

    with raw_server(answer) as url:
        if len(total) > 100:
            fetch(url, tmp_path / "part")
            assert (tmp_path / "part").read_bytes() == b"here"
        else:
            with pytest.raises(UserError, match="larger than"):
                fetch(url, tmp_path / "part")


def test_a_part_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_bytes(b"")
    (tmp_path / "part").symlink_to(tmp_path / "mine")
    with raw_server(sending(OK % 4 + b"here")) as url, pytest.raises(UserError, match="link"):
        fetch(url, tmp_path / "part")
    assert (tmp_path / "mine").read_bytes() == b""


# --- addresses, passwords and proxies -------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://a..b/x", "http://.", "http://" + "a" * 64 + ".org/", "http://h:99999/", "http://[x/",
        "http://h:0/", "http:///x", "http:x", "http://user:secret@/x", "ftp://user:secret@h/x",
        "http://ü.org/", "http://h/\x00", "",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_before_anything_is_asked(url):
    with pytest.raises(UserError, match="--url") as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy", ["http:/user:secret@proxy:3128", "socks5://user:secret@h:1", "http://h:99999", "h:x"]
)
def test_what_is_no_proxy_is_refused_by_the_name_of_its_variable(monkeypatch, proxy):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UserError, match=r"^https_proxy=.*not the address of a proxy") as caught:
        check_proxy("https://example.org/x")
    assert "secret" not in str(caught.value)
    check_proxy("http://example.org/x")
    monkeypatch.setenv("no_proxy", "example.org")
    check_proxy("https://example.org/x")


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_proxy_that_fails_is_named_without_its_password(tmp_path, monkeypatch, scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"{scheme}user:secret@127.0.0.1:{port}")
    check_proxy("http://example.org/x")
    with pytest.raises(RunError, match=rf"through the proxy .*127.0.0.1:{port} of http_proxy") as e:
        fetch("http://example.org/x", tmp_path / "part")
    assert "secret" not in str(e.value)


def test_a_password_is_sent_to_its_server_and_shown_nowhere(tmp_path, capsys):
    asked: list[bytes] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        if b"/moved" in request:
            connection.sendall(b"HTTP/1.1 302 F\r\nLocation: /gone\r\n\r\n")
        else:
            connection.sendall(b"HTTP/1.1 404 gone\r\n\r\n")

    with raw_server(answer) as url:
        address = url.replace("//", "//user:se%20cret@") + "/moved"
        with pytest.raises(RunError) as caught:
            fetch(address, tmp_path / "part", show=True)
    assert b"Authorization: Basic dXNlcjpzZSBjcmV0\r\n" in asked[0]  # user:se cret
    assert b"Authorization" not in asked[1]
    assert "cret" not in str(caught.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@h/a@b", "https://h/a@b"),
        ("http://h/@x", "http://h/@x"),
        ("u:p@proxy:1", "proxy:1"),
        ("no authority: 'http:/u:p@proxy:1'", "no authority: 'http:/proxy:1'"),
    ],
)
def test_passwords_are_taken_out_and_nothing_else(text, shown):
    assert without_password(text) == shown


def test_https_is_not_left():
    handler = web._Redirects()
    request = urllib.request.Request("https://u:p@example.org/x")
    with pytest.raises(
        SourceError, match=r"redirects to http://example\.org/y, which is not https"
    ):
        handler.redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/y")


# --- two at a time --------------------------------------------------------------------------------


def test_training_while_data_is_fetched_is_told_so(tmp_path):
    dataset = make_cifar(tmp_path, train=50, test=20)
    (tmp_path / dataset.folder / "test_batch").unlink()
    with exclusive(tmp_path, log=print):
        assert names(tmp_path) == [FETCH_LOCK, dataset.folder]
        with pytest.raises(
            RunError, match=rf"process {os.getpid()} on .* fetches data into it now"
        ):
            load_cifar(dataset, tmp_path)
    with pytest.raises(UserError, match="test_batch is missing"):
        load_cifar(dataset, tmp_path)
    assert names(tmp_path) == [dataset.folder]


def test_a_lock_that_was_left_behind_is_taken(tmp_path):
    (tmp_path / FETCH_LOCK).write_bytes(b"process 1 on elsewhere")
    with exclusive(tmp_path, log=pytest.fail):
        pass
    assert names(tmp_path) == []


@pytest.mark.process
def test_the_second_takes_over_from_a_killed_first_and_ctrl_c_ends_a_wait(resvar, tmp_path):
    """Three commands in one folder: one downloads and is killed, one waits and is stopped."""
    make_marked_cifar(tmp_path / "source")
    source = tmp_path / "source", DATASETS["cifar10"]
    packed = pack(source, tmp_path / "archive").read_bytes()
    killed, asked = threading.Event(), []

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        if len(asked) > 1:  # the second command; the first waits for the rest until it is killed
            start = 1000 if b"bytes=1000-" in request else 0
            head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n" % (
                b"206 P" if start else b"200 OK", len(packed) - start
            )  # fmt: skip
            span = b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (start, len(packed) - 1, len(packed))
            connection.sendall(head + span + packed[start:])
        else:
            connection.sendall(OK % len(packed) + packed[:1000])
            killed.wait(600)

    folder = tmp_path / "data"
    with raw_server(answer) as url:
        words = ("data", "--dir", folder, "--url", url)
        environment = {"RESVAR_TEST_DATA": str(tmp_path / "source"), "no_proxy": "*"}
        with (
            resvar.started(*words, cwd=tmp_path, **environment) as first,
            contextlib.ExitStack() as later,
        ):
            size = lambda: sum(part.stat().st_size for part in folder.glob("*.part"))  # noqa: E731
            assert wait_for(lambda: size() == 1000 or first.ended), first.err
            second, third = (
                later.enter_context(resvar.started(*words, cwd=tmp_path, **environment))
                for _ in range(2)
            )
            waiting = f"process {first.pid} on "
            for job in (second, third):
                assert wait_for(lambda job=job: waiting in job.err or job.ended), job.err
            third.send(signal.SIGINT)
            assert third.end().code == 130
            first.send(signal.SIGKILL)
            first.end()
            killed.set()
            assert second.end().code == 0, second.err
            assert "is now here" in second.out
    assert b"Range: bytes=1000-" in asked[-1]  # no byte twice
    assert contents(folder) == {
        name: data for name, data in contents(tmp_path / "source").items() if "md5" not in name
    }


@pytest.mark.process
def test_ctrl_c_ends_the_wait_for_a_silent_server(resvar, tmp_path):
    with raw_server(endlessly(OK % 1_000_000 + bytes(5000), b"", 0.1)) as url:
        words = ("data", "--dir", tmp_path / "data", "--url", url)
        with resvar.started(*words, cwd=tmp_path, no_proxy="*") as job:
            found = lambda: list((tmp_path / "data").glob("*.part"))  # noqa: E731
            assert wait_for(lambda: found() or job.ended), job.err
            assert wait_for(lambda: found()[0].stat().st_size == 5000)
            job.send(signal.SIGINT)
            assert job.end().code == 130
    assert found()[0].stat().st_size == 5000
    assert len(names(tmp_path / "data")) == 1  # the lock is gone
