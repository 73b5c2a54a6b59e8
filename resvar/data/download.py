"""Downloads that resume where they were cut, and end in one sentence whatever a server does.

Names and passwords in addresses are used, but not shown.
"""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from resvar.data.archive import CHUNK, LARGEST_ARCHIVE
from resvar.data.transfer import megabytes, show_progress
from resvar.errors import RunError, UserError, first_line
from resvar.files import open_to_append

Answer = TypeVar("Answer")

TIMEOUT = 30.0
"""Seconds without a byte after which the server counts as dead."""

LONGEST_WAIT = 60.0
"""Seconds for an answer, redirects included; and between two looks at the rate."""

SLOWEST = 1000.0
"""Bytes per second; at less, CIFAR-10 would take two days."""

OTHER_SOURCE = "try another address with --url MIRROR, or a local archive with --archive FILE."


def check_url(url: str) -> None:
    """Refuse what is no address on the web, and a proxy that is none, before anything is asked.

    Raises:
        UserError: the reason, and what is needed.
    """
    if not _is_usable(url) or not url.isascii() or any(character <= " " for character in url):
        raise UserError(
            f"--url {without_password(url)!r}: an address such as https://HOST/FILE is needed, "
            "beginning with https:// or http://, in ASCII and without blanks (write %20)."
        )
    variable, proxy = _proxy(url)
    if proxy and not _is_usable(proxy if re.match(r"\w+:/", proxy) else f"http://{proxy}"):
        raise UserError(
            f"{variable}={without_password(proxy)!r} in the environment: this is no address of a "
            f"proxy; write http://HOST:PORT, or unset {variable}."
        )


def download(url: str, part: Path, show: bool) -> None:
    """Download into `part`, resuming where an earlier call was interrupted.

    Raises:
        UserError: the file is larger than any archive of a dataset.
        RunError: the server cannot be reached, refuses, or is too slow, or the connection was lost;
            `part` is kept, and the next call resumes at its end.
    """
    response, start, total = _ask(url, part.stat().st_size if part.exists() else 0)
    if response is None:
        return
    done, title = start, f"Downloading {without_password(url)}"
    with open_to_append(part) as file, show_progress(title, total, start, show) as tell:
        file.truncate(start)
        if not _is_too_large(total or 0):
            done = _copy(url, response, file, start, total, tell)
    response.close()  # not after Ctrl-C: that would wait for the thread that reads
    if _is_too_large(total or done):
        part.unlink()
        raise UserError(
            f"{without_password(url)}: this is larger than {megabytes(LARGEST_ARCHIVE)} and so no "
            f"archive of a dataset; {OTHER_SOURCE}"
        )
    if total is not None and done < total:
        raise _cut(url, done, total, "the connection ended")


def without_password(text: str) -> str:
    """A text without the `user:password@` of addresses in it."""
    return re.sub(r"(^|:/+)[^/?#\s'\"]*@", r"\1", text)


# --- the transfer ---------------------------------------------------------------------------------


def _copy(
    url: str,
    response: http.client.HTTPResponse,
    file: IO[bytes],
    done: int,
    total: int | None,
    tell: Callable[[int], None],
) -> int:
    """Append the body to the file; returns the bytes that the file then has."""
    looked, before = time.monotonic(), done
    while not _is_too_large(done) and (total is None or done < total):
        try:
            chunk = _await_answer(LONGEST_WAIT, lambda: response.read1(CHUNK))
        except TimeoutError as error:
            raise _cut(url, done, total, f"the server sent nothing for {TIMEOUT:.0f} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _cut(url, done, total, f"the connection broke: {_explain(error)}") from error
        if not chunk:
            break
        file.write(chunk)
        file.flush()
        done += len(chunk)
        tell(done)
        if (seconds := time.monotonic() - looked) > LONGEST_WAIT:
            if done - before < SLOWEST * seconds:
                rate = (done - before) / seconds
                raise _cut(url, done, total, f"the server sends {rate:,.0f} bytes per second")
            looked, before = time.monotonic(), done
    return done


def _is_too_large(size: int) -> bool:
    return size > LARGEST_ARCHIVE


def _cut(url: str, done: int, total: int | None, why: str) -> RunError:
    size = megabytes(total) if total is not None else "an unknown size"
    return RunError(
        f"{without_password(url)}: the download was cut at {megabytes(done)} of {size} ({why}); "
        "run the same command again to resume it."
    )


def _await_answer(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The value of a call that may block; Ctrl-C and the limit end the wait for it.

    A socket's own limit begins anew with each byte, and looking up a name has none.

    Raises:
        TimeoutError: there is no value after `seconds`; or what the call raises.
    """
    outcome: concurrent.futures.Future[Answer] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result(seconds)


# --- the request ----------------------------------------------------------------------------------


def _ask(url: str, start: int) -> tuple[http.client.HTTPResponse | None, int, int | None]:
    """Request the bytes from `start` on.

    Returns:
        The response, the position of its first byte (0 where the server starts over), and the
        total size where it is known. No response where the download is already complete.
    """
    request = _request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response: http.client.HTTPResponse = _await_answer(
            LONGEST_WAIT, lambda: _opener().open(request, timeout=TIMEOUT)
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # no bytes after `start`: complete, or another file
            whole = error.headers.get("Content-Range", "").strip() == f"bytes */{start}"
            return (None, start, start) if whole else _ask(url, 0)
        raise RunError(
            f"{without_password(url)}: the server answered {error.code} ({_explain(error)})"
            f"{_through_proxy(url)}; {OTHER_SOURCE}"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # a host that cannot be one
        raise RunError(
            f"{without_password(url)}: the server cannot be reached{_through_proxy(url)} "
            f"({_explain(error)}); {OTHER_SOURCE}"
        ) from error
    if response.status != 206 or not start:
        return response, 0, response.length
    span = re.fullmatch(
        r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip()
    )
    if span is None or int(span[1]) != start:
        response.close()
        return _ask(url, 0)
    if span[2] != "*":
        return response, start, int(span[2])
    return response, start, None if response.length is None else start + response.length


def _request(url: str) -> urllib.request.Request:
    """A request whose user and password, if the address has them, go to that server alone."""
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        parts._replace(netloc=host).geturl(), headers={"User-Agent": "resvar"}
    )
    if user:
        secret = base64.b64encode(urllib.parse.unquote_to_bytes(user)).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def _explain(error: Exception) -> str:
    """Why a request failed, in one line without passwords."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return without_password(first_line(Exception(reason)) or type(error).__name__)


def _is_usable(url: str) -> bool:
    """Whether this is an address on the web that a request can be sent to."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")  # no label is empty or too long
        return parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


def _proxy(url: str) -> tuple[str, str]:
    """The environment's variable for proxies of this address, and its value or an empty text."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return "", ""
    return f"{parts.scheme}_proxy", urllib.request.getproxies().get(parts.scheme, "")


def _through_proxy(url: str) -> str:
    variable, proxy = _proxy(url)
    return f" through the proxy {without_password(proxy)} of {variable}" if proxy else ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # or urllib would read what comes with it, which may be endless
        if req.type == "https" and not newurl.startswith("https:"):
            raise RunError(
                f"{without_password(req.full_url)}: the server leads to "
                f"{without_password(newurl)}, which is not protected by https; {OTHER_SOURCE}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """urllib's usual opener without file:, ftp: and data:, so that no redirect leads there."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener
