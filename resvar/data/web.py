"""Requests to web servers: addresses, proxies, passwords, redirects, and waiting with a limit.

Names and passwords in addresses are used, but not shown.
"""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from resvar.errors import UserError, first_line

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Patience:
    """When a server is given up.

    Attributes:
        silence: seconds without a byte.
        answer: seconds for an answer, redirects included.
        slowest: bytes per second, on average over any `window` seconds.
        window: seconds.
    """

    silence: float
    answer: float
    slowest: float
    window: float


class SourceError(Exception):
    """A server is of no use; the text continues a sentence after its name: `answered 404 (…)`.

    Attributes:
        slow: it works, but slower than was asked for.
    """

    def __init__(self, reason: str, slow: bool = False) -> None:
        super().__init__(reason)
        self.slow = slow


def check_url(url: str) -> None:
    """Refuse what is not an address on the web.

    Raises:
        UserError: what is needed.
    """
    if not _is_usable(url) or not url.isascii() or any(character <= " " for character in url):
        raise UserError(
            f"--url {without_password(url)!r}: an address such as https://HOST/FILE is needed, "
            "beginning with https:// or http://, in ASCII and without blanks (write %20)."
        )


def check_proxy(url: str) -> None:
    """Refuse a proxy, configured for this address, that is not an address.

    Raises:
        UserError: what is needed.
    """
    variable, proxy = _proxy(url)
    if proxy and not _is_usable(proxy if re.match(r"\w+:/", proxy) else f"http://{proxy}"):
        raise UserError(
            f"{variable}={without_password(proxy)!r} in the environment: this is not the address "
            f"of a proxy; write http://HOST:PORT, or unset {variable}."
        )


def ask(
    url: str, start: int, patience: Patience
) -> tuple[http.client.HTTPResponse | None, int, int | None]:
    """Request the bytes from `start` on.

    Returns:
        The response, the position of its first byte (0 where the server ignores `start`), and the
        total size where it is known. No response where there are no bytes after `start`.

    Raises:
        SourceError: the server cannot be reached, or refuses.
    """
    request = _request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response: http.client.HTTPResponse = await_answer(
            patience.answer, lambda: _opener().open(request, timeout=patience.silence)
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # no bytes after `start`: complete, or another file
            whole = error.headers.get("Content-Range", "").strip() == f"bytes */{start}"
            return (None, start, start) if whole else ask(url, 0, patience)
        raise SourceError(
            f"answered {error.code} ({explain(error)}){_through_proxy(url)}"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # a host that cannot be one
        raise SourceError(f"cannot be reached{_through_proxy(url)} ({explain(error)})") from error
    if response.status != 206 or not start:
        return response, 0, response.length
    span = re.fullmatch(
        r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip()
    )
    if span is None or int(span[1]) != start:
        response.close()
        return ask(url, 0, patience)
    if span[2] != "*":
        return response, start, int(span[2])
    return response, start, None if response.length is None else start + response.length


def await_answer(seconds: float, call: Callable[[], Reply]) -> Reply:
    """The value of a call that may block; Ctrl-C and the limit end the wait for it.

    A socket's own limit begins anew with each byte, and looking up a name has none.

    Raises:
        TimeoutError: there is no value after `seconds`; or what the call raises.
    """
    outcome: concurrent.futures.Future[Reply] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result(seconds)


def explain(error: Exception) -> str:
    """Why a request failed, in one line without passwords."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    text = getattr(reason, "strerror", None) or reason
    return without_password(first_line(Exception(text)) or type(error).__name__)


def without_password(text: str) -> str:
    """A text without the `user:password@` of addresses in it."""
    return re.sub(r"(^|:/+)[^/?#\s'\"]*@", r"\1", text)


def host_of(url: str) -> str:
    """Host and port of an address."""
    return without_password(f"//{urllib.parse.urlsplit(url).netloc}")[2:]


# --- helpers --------------------------------------------------------------------------------------


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


def _is_usable(url: str) -> bool:
    """Whether this is an address on the web that a request can be sent to."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")  # no label is empty or too long
        return parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:  # a port that is not a number, half an IPv6 address
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
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (req.type == "https" or scheme != "http"):
            wanted = "https" if req.type == "https" else "http or https"
            raise SourceError(f"redirects to {without_password(newurl)}, which is not {wanted}")
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
