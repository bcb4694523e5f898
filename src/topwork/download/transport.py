"""HTTP as downloads need it: urllib3's connections, with proxies, CA bundle and credentials from
the environment, and redirects that never leave https. What may pass by itself (a stall, a cut, a
busy server) is a `TransientError`; anything else is a `WeightsError`.
"""

import base64
import os
import re
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    ProxyError,
    ProxySchemeUnknown,
    SSLError,
)

from topwork import __version__
from topwork.errors import WeightsError

MAX_REDIRECTS = 10
CONNECT_TIMEOUT_S = 10.0
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_SECRET = re.compile(r"token|sig|key|secret|pass|cred|auth|session", re.IGNORECASE)


class TransientError(Exception):
    """A fault that may pass: try again, after `wait_s` seconds where the server asks for that."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def shown(url: str) -> str:
    """An address fit for logs, lock and provenance: no user, no password, query values that look
    secret masked.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # no address at all, so nothing of it is shown but its beginning
        return url.partition("?")[0].rpartition("@")[2]
    host = parts.netloc.rpartition("@")[2]
    query = urlencode(
        [
            (name, "***" if _SECRET.search(name) else value)
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
        ],
        safe="*/:",
    )
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


def check_url(url: str) -> None:
    """Raise WeightsError for an address that isn't http or https, lacks a host, or carries
    credentials.
    """
    if not _leads_somewhere(url) or urlsplit(url).scheme not in ("http", "https"):
        raise WeightsError(
            f"{shown(url)}: expected an address that begins with https:// or http:// and a host"
            " (and a port, where one is named, up to 65535). Mend fetch.source, or fetch.mirror,"
            " in params.yaml."
        )
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise WeightsError(
            f"{shown(url)}: the address holds a user or password, which would end up in params.yaml"
            " and its history. Take it out and set the environment variable"
            f" {token_variable(parts.hostname or '')}=USER:PASSWORD (or a bearer token)."
        )


def _leads_somewhere(url: str) -> bool:
    """It has a host, and a port that can be one."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # half a pair of brackets, a port that is no number or above 65535
        return False


def token_variable(host: str) -> str:
    """The environment variable that holds a host's credentials: `TOPWORK_TOKEN_` and the host in
    capitals, other signs as `_`.
    """
    return "TOPWORK_TOKEN_" + re.sub(r"[^A-Z0-9]", "_", host.upper())


def ca_bundle() -> str | None:
    """The CA file or folder that the environment names, None for the system's own."""
    return next(
        (
            value
            for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR")
            if (value := os.environ.get(name))
        ),
        None,
    )


class Transport:
    """GET requests with redirects; one pool of connections a scheme and proxy."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout = urllib3.Timeout(connect=min(timeout_s, CONNECT_TIMEOUT_S), read=timeout_s)
        self._pools: dict[tuple[str, str | None], urllib3.PoolManager] = {}
        self._context: ssl.SSLContext | None = None

    def __enter__(self) -> "Transport":
        return self

    def __exit__(self, *exc: object) -> None:
        for pool in self._pools.values():
            pool.clear()

    def get(
        self, url: str, headers: dict[str, str], token: str | None = None
    ) -> tuple[str, urllib3.BaseHTTPResponse]:
        """The response at the end of the redirects (200, 206 or 416), its body not read yet, and
        the address it came from.

        Args:
            url: where to begin.
            headers: go to every address on the way.
            token: a bearer token for the first address's host alone; a redirect elsewhere doesn't
                take it along.

        Raises:
            TransientError: may pass by itself.
            WeightsError: won't; the message names the address, what was found and the next step.
        """
        check_url(url)
        seen = [url]
        while True:
            at_home = urlsplit(seen[-1]).netloc == urlsplit(url).netloc
            response = self._request(
                seen[-1], {**headers, **authorization(seen[-1], token if at_home else None)}
            )
            if response.status in (200, 206, 416):
                return seen[-1], response
            try:
                seen.append(self._after(seen, response))
            finally:
                response.close()

    def _after(self, seen: list[str], response: urllib3.BaseHTTPResponse) -> str:
        """The address a redirect leads to; any other status is an error."""
        status, url = response.status, seen[-1]
        if status in _BUSY:
            raise TransientError(
                f"the server answers {status} {response.reason or ''}".rstrip() + ", expected 200",
                _retry_after(response),
            )
        location = response.headers.get("Location")
        if status not in (301, 302, 303, 307, 308) or not location:
            raise WeightsError(
                f"{shown(url)}: the server answers {status} {response.reason or ''}, expected"
                f" 200.{_advice(status, url)}"
            )
        try:
            target = urljoin(url, location)
            scheme = urlsplit(target).scheme
        except ValueError:
            target, scheme = location, "https"
        if scheme in ("http", "https") and not _leads_somewhere(target):
            raise WeightsError(
                f"{shown(seen[0])}: redirected to {shown(location)!r}, which is no address;"
                " expected one. Use another address."
            )
        chain = " -> ".join(shown(step) for step in [*seen, target])
        if urlsplit(url).scheme == "https" and scheme == "http":
            raise WeightsError(
                f"{shown(seen[0])}: redirected from https to http, which anyone on the way could"
                f" change: {chain}. Refused; use another address."
            )
        if scheme not in ("http", "https"):
            raise WeightsError(
                f"{shown(seen[0])}: redirected to {scheme}://, expected https: {chain}. Refused;"
                " use another address."
            )
        if target in seen:
            raise WeightsError(
                f"{shown(seen[0])}: the redirects run in a circle: {chain}; expected a file at"
                " their end. Contact the server's operator, or use another address."
            )
        if len(seen) > MAX_REDIRECTS:
            raise WeightsError(
                f"{shown(seen[0])}: more than {MAX_REDIRECTS} redirects: {chain}. Use the last"
                " address, or another one."
            )
        return target

    def _request(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        wanted = {
            "Accept-Encoding": "identity",
            "User-Agent": f"topwork/{__version__}",
            **headers,
        }
        try:
            return self._pool(url).request(
                "GET",
                url,
                headers=wanted,
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=self.timeout,
            )
        except SSLError as error:
            if "EOF" in str(error):  # cut in the middle of the handshake
                raise TransientError("the connection was cut") from error
            raise WeightsError(_tls_message(url, error)) from error
        except ProxyError as error:
            if isinstance(error.original_error, SSLError | ssl.SSLError):
                raise WeightsError(_tls_message(url, error.original_error)) from error
            if "407" in str(error.original_error):
                raise WeightsError(
                    f"{shown(url)}: the proxy answers 407, expected a tunnel.{_advice(407, url)}"
                ) from error
            raise TransientError(
                f"the proxy doesn't answer: {_brief(error.original_error)}"
            ) from error
        except (LocationValueError, ProxySchemeUnknown, UnicodeError) as error:
            raise WeightsError(
                f"{shown(url)}: not usable ({_brief(error).replace(url, shown(url))}). Mend the"
                " address, or the proxy variables (HTTPS_PROXY, HTTP_PROXY)."
            ) from error
        except ConnectTimeoutError as error:
            raise TransientError(
                f"no connection within {self.timeout.connect_timeout:g} s"
            ) from error
        except (HTTPError, OSError) as error:
            raise TransientError(_brief(error)) from error

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxies = getproxies_environment()
        proxy = (
            None
            if proxy_bypass_environment(parts.hostname or "", proxies)
            else proxies.get(parts.scheme) or proxies.get("all")
        )
        key = (parts.scheme, proxy)
        if key not in self._pools:
            self._pools[key] = self._new_pool(*key)
        return self._pools[key]

    def _new_pool(self, scheme: str, proxy: str | None) -> urllib3.PoolManager:
        if proxy is None:
            return urllib3.PoolManager(ssl_context=self._tls() if scheme == "https" else None)
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        headers = None
        if parts.username:
            headers = urllib3.make_headers(
                proxy_basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            )
        bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
        return urllib3.ProxyManager(
            bare,
            proxy_headers=headers,
            ssl_context=self._tls() if "https" in (scheme, parts.scheme) else None,
        )

    def _tls(self) -> ssl.SSLContext:
        """Made on first use: reading the system's CAs takes a tenth of a second."""
        if self._context is None:
            bundle = ca_bundle()
            if bundle is not None and not Path(bundle).exists():
                raise WeightsError(
                    f"{bundle}: no such CA bundle. Mend the environment variable SSL_CERT_FILE (or"
                    " REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE)."
                )
            try:
                folder = bundle is not None and Path(bundle).is_dir()
                self._context = ssl.create_default_context(
                    cafile=None if folder else bundle, capath=bundle if folder else None
                )
            except (ssl.SSLError, OSError) as error:
                raise WeightsError(
                    f"{bundle}: not readable as a CA bundle ({_brief(error)}); expected PEM"
                    " certificates. Mend SSL_CERT_FILE."
                ) from error
        return self._context


def authorization(url: str, token: str | None = None) -> dict[str, str]:
    """The Authorization header for a host whose credentials the environment holds; none over plain
    http but to this machine.

    Args:
        url: where the request goes.
        token: a bearer token, where the environment holds none for the host (TOPWORK_TOKEN_<HOST>).

    Raises:
        WeightsError: the credentials can't stand in a header; they aren't shown.
    """
    host = urlsplit(url).hostname or ""
    secret = (os.environ.get(token_variable(host)) or token or "").strip()
    if not secret or not private(url):
        return {}
    if not (secret.isascii() and secret.isprintable()):
        raise WeightsError(
            f"{shown(url)}: the credentials for {host} hold line breaks or signs beyond ASCII,"
            " expected one line of plain text. Mend the environment variable"
            f" {token_variable(host)} (for the hub: HF_TOKEN)."
        )
    if ":" in secret:
        return {"Authorization": "Basic " + base64.b64encode(secret.encode()).decode()}
    return {"Authorization": f"Bearer {secret}"}


def private(url: str) -> bool:
    """Nothing between can read what is sent there: https, or this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")


def _advice(status: int, url: str) -> str:
    host = urlsplit(url).hostname or ""
    if status in (401, 403):
        return (
            f" If it needs credentials, set the environment variable {token_variable(host)};"
            " otherwise use another address."
        )
    if status == 407:
        return " The proxy wants credentials: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT."
    if status in (404, 410):
        return " Mend fetch.source (or fetch.mirror) in params.yaml."
    return " Use another address, or ask the server's operator."


def _tls_message(url: str, error: Exception) -> str:
    text = _brief(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("verify failed: ")[2].rstrip(")") or text
        return (
            f"{shown(url)}: the server's certificate isn't trusted ({reason}); found in use:"
            f" {ca_bundle() or 'the CAs of this system'}. Behind a proxy that opens TLS, or with a"
            " CA of your own: SSL_CERT_FILE=ca.pem. topwork has no switch that trusts anyone."
        )
    return (
        f"{shown(url)}: no TLS connection ({text}); expected a server that speaks https. Check the"
        " address and its port."
    )


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds that the server asks to wait (a number, or a date), None where it doesn't."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _brief(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    # urllib3 puts the object's repr in front: "<...HTTPSConnection object at 0x...>: reason".
    text = re.sub(
        r"^<[^>]*>: |^HTTPS?Connection\([^)]*\): |^HTTPS?ConnectionPool\([^)]*\): ", "", text
    )
    return text[:300] or type(error).__name__
