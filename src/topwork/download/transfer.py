"""Download: the file arrives whole and right, or it isn't there.

Bytes stream into a partial file in the cache and are hashed as they come. After a cut, the download
goes on where it stopped if the server's validators (ETag, Last-Modified) still hold, and begins
again if they don't or if there are none. Only a file of the announced length, and of the known hash
where there is one, is moved to its place.
"""

import random
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError

from topwork.download.cache import Cache, Cached, Notify
from topwork.download.partial import Partial, Validators
from topwork.download.progress import bar
from topwork.download.transport import TransientError, Transport, check_url, shown
from topwork.errors import ChecksumError, WeightsError

CHUNK_BYTES = 1 << 20
MIN_RATE = 1024  # bytes a second; less, over a whole timeout, is a stall
GIB = 1 << 30

Verify = Callable[[str], None]


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    Attributes:
        tries: tries in a row without progress before it gives up.
        timeout_s: seconds without a byte, or with less than 1 KiB a second, that count as a stall.
        backoff_s: wait after the first failure; doubles each time, with jitter.
        backoff_cap_s: longest wait; a server that asks for more (Retry-After) ends the download.
        max_bytes: refuse a larger file.
    """

    tries: int = 6
    timeout_s: float = 30.0
    backoff_s: float = 0.5
    backoff_cap_s: float = 120.0
    max_bytes: int = 16 * GIB


DEFAULT_POLICY = Policy()


def download(
    source: str,
    url: str,
    cache: Cache,
    verify: Verify,
    *,
    expected: str | None = None,
    token: str | None = None,
    refresh: bool = False,
    offline: bool = False,
    policy: Policy = DEFAULT_POLICY,
    notify: Notify = print,
) -> Cached:
    """Get a file from the cache, else over HTTP; one process at a time per source.

    Args:
        source: its name in the cache and in messages, whatever mirror `url` points to.
        url: http or https.
        cache: where it ends up.
        verify: raises ChecksumError for a SHA-256 that isn't the known one.
        expected: the known SHA-256: any cached file that has it will do.
        token: a bearer token for the host of `url` alone.
        refresh: ignore the cache.
        offline: use only the cache.
        policy: patience and limits.
        notify: called with each line that the user should read.

    Raises:
        ChecksumError: whole, but not the known content.
        WeightsError: it can't be fetched; the message has the address, what was found and
            expected, and the next step.
    """
    check_url(url)
    if not refresh and (cached := cache.find(source, expected, notify)):
        verify(cached.sha256)
        cache.tidy(source)
        return cached
    if offline:
        raise WeightsError(
            f"{source}: not in the cache {cache.root}, and fetch.offline is on. Fetch it once with"
            " a network, or copy the cache folder of a machine that has it (TOPWORK_CACHE=FOLDER)."
        )
    with cache.held(source, notify):
        if not refresh and (cached := cache.find(source, expected, notify)):
            verify(cached.sha256)
            return cached
        with (
            Transport(policy.timeout_s) as transport,
            Partial(cache.partial(source), shown(url)) as partial,
        ):
            job = _Job(
                url,
                token,
                transport,
                partial,
                policy,
                verify,
                known=expected is not None,
                notify=notify,
            )
            digest = job.run()
            partial.close()
            return cache.keep(source, partial.path, digest, Path(unquote(urlsplit(url).path)).name)


@dataclass
class _Job:
    """One download: try, go on or begin again, until it is whole or fails for good."""

    url: str
    token: str | None
    transport: Transport
    partial: Partial
    policy: Policy
    verify: Verify
    known: bool
    notify: Notify
    ranges: bool = True

    def run(self) -> str:
        """The SHA-256 of the whole file, which then is the partial one."""
        failures, best = 0, self.partial.size
        while True:
            try:
                self._try()
                return self._verified()
            except TransientError as error:
                failures = 1 if self._advanced(best) else failures + 1
                best = max(best, self.partial.size)
                self._wait(failures, error)

    def _verified(self) -> str:
        digest = self.partial.hexdigest()
        try:
            self.verify(digest)
        except ChecksumError:
            joined = self.partial.joined
            self.partial.drop()
            if not joined:
                raise
            self.ranges = False
            raise TransientError(
                "the pieces of several tries don't add up to the known content, so it begins again",
                0.0,
            ) from None
        return digest

    def _advanced(self, best: int) -> bool:
        total = self.partial.validators.total
        return (
            self.partial.size - best >= min(1 << 16, total // 20 if total else 1 << 16)
            and self.partial.size > best
        )

    def _wait(self, failures: int, error: TransientError) -> None:
        """Back off, or give up."""
        policy, where = self.policy, self._where()
        if failures >= policy.tries:
            advice = (
                "What came is kept: run again to go on, or name"
                if self.partial.size
                else "Check the network (HTTPS_PROXY behind a proxy), or name"
            )
            raise WeightsError(
                f"{shown(self.url)}: {error}; {where}, after {failures} tries without progress."
                f" {advice} a mirror under fetch.mirror in params.yaml."
            ) from error
        if error.wait_s is not None and error.wait_s > policy.backoff_cap_s:
            raise WeightsError(
                f"{shown(self.url)}: {error}, and asks to wait {error.wait_s:.0f} s; topwork waits"
                f" {policy.backoff_cap_s:.0f} s at most. Run again later."
            ) from error
        backoff = min(
            policy.backoff_cap_s, policy.backoff_s * 2 ** (failures - 1)
        ) * random.uniform(0.5, 1.0)
        wait = backoff if error.wait_s is None else error.wait_s + min(backoff, 0.1 * error.wait_s)
        self.notify(
            f"{shown(self.url)}: {error}; {where}. Try {failures + 1} of {policy.tries} in"
            f" {wait:.1f} s."
        )
        time.sleep(wait)

    def _where(self) -> str:
        total = self.partial.validators.total
        return (
            f"{self.partial.size:,} of {total:,} bytes"
            if total is not None
            else f"{self.partial.size:,} bytes"
        )

    def _try(self) -> None:
        """Ask once, for the rest or for all, and stream what comes."""
        headers = self._range()
        _, response = self.transport.get(self.url, headers, self.token)
        try:
            if headers and self._nothing_missing(response):
                return
            self._agree(response, asked=bool(headers))
            self._stream(response)
        finally:
            response.close()

    def _range(self) -> dict[str, str]:
        """Headers that ask for the rest, where there is a rest and validators or a known hash show
        whether it belongs to what we have.
        """
        held = self.partial.validators
        validator = held.etag or held.modified
        if not self.partial.size or not self.ranges or not (validator or self.known):
            return {}
        return {
            "Range": f"bytes={self.partial.size}-",
            **({"If-Range": validator} if validator else {}),
        }

    def _nothing_missing(self, response: urllib3.BaseHTTPResponse) -> bool:
        """Asked for the rest, the server answers that there is none: an earlier process died
        between the last byte and the move.
        """
        size = self.partial.size
        right = (
            response.status == 416
            and response.headers.get("Content-Range", "").strip() == f"bytes */{size}"
        )
        return right and size == self.partial.validators.total and self._same(response)

    def _agree(self, response: urllib3.BaseHTTPResponse, *, asked: bool) -> None:
        """Make the partial file ready for the answer: go on, begin again, or refuse it."""
        if response.status == 200:
            self.partial.begin(self._announced(response))
            return
        held, size = self.partial.validators, self.partial.size
        found = response.headers.get("Content-Range", "none")
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", found.strip())
        right = match is not None and asked and response.status == 206 and int(match[1]) == size
        same = (
            right
            and match is not None
            and match[3] in (str(held.total), "*")
            and self._same(response)
        )
        if same and not response.headers.get("Content-Encoding"):
            self.partial.go_on()
            return
        self.ranges = self.ranges and right
        self.partial.drop()
        if right:
            raise TransientError("the content changed between two tries, so it begins again", 0.0)
        raise TransientError(
            f"asked for bytes {size}-, the server answers {response.status} with Content-Range"
            f" {found!r} (expected bytes {size}-...); begun again without ranges",
            0.0,
        )

    def _same(self, response: urllib3.BaseHTTPResponse) -> bool:
        held = self.partial.validators
        etag, modified = _etag(response), response.headers.get("Last-Modified")
        return (etag is None or held.etag is None or etag == held.etag) and (
            modified is None or held.modified is None or modified == held.modified
        )

    def _announced(self, response: urllib3.BaseHTTPResponse) -> Validators:
        """What a whole answer declares about itself, checked against the limits."""
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", ""):
            raise WeightsError(
                f"{shown(self.url)}: the server sends the file as Content-Encoding {encoding!r},"
                " expected it as it is. Use another address or a mirror."
            )
        total = _length(response)
        if total is not None and total > self.policy.max_bytes:
            raise WeightsError(self._too_big(f"{total:,} bytes are announced"))
        if encoding not in ("identity", ""):
            return Validators(shown(self.url))
        if (
            total is None
            and not self.known
            and response.headers.get("Transfer-Encoding", "").lower() != "chunked"
        ):
            raise WeightsError(
                f"{shown(self.url)}: the server announces no length and no hash is known, so that"
                " half a file would pass for a whole one. Put the file's SHA-256 under"
                " fetch.sha256 in params.yaml."
            )
        return Validators(
            shown(self.url), _etag(response), response.headers.get("Last-Modified"), total
        )

    def _too_big(self, found: str) -> str:
        return (
            f"{shown(self.url)}: {found}, the limit is {self.policy.max_bytes:,}. Nothing was kept;"
            " raise fetch.max_gib in params.yaml if that is right."
        )

    def _stream(self, response: urllib3.BaseHTTPResponse) -> None:
        """Write the body to the partial file; every way in which it can end early is a
        TransientError.
        """
        zipped = response.headers.get("Content-Encoding", "").strip().lower() in ("gzip", "x-gzip")
        unzip = zlib.decompressobj(31) if zipped else None
        label = Path(urlsplit(self.url).path).name
        watch = _Watch(self.policy.timeout_s)
        with bar(label, self.partial.size, self.partial.validators.total) as advance:
            while chunk := self._read(response):
                watch.count(len(chunk))
                while chunk:
                    plain = chunk if unzip is None else self._unzipped(unzip, chunk)
                    chunk = b"" if unzip is None else unzip.unconsumed_tail
                    self._check_room(len(plain))
                    if plain:
                        self.partial.write(plain)
                advance(self.partial.size)
        total = self.partial.validators.total
        if (unzip is not None and not unzip.eof) or (
            total is not None and self.partial.size < total
        ):
            raise TransientError("the connection was cut")
        if total is not None and self.partial.size > total:
            self.partial.drop()
            raise TransientError(
                f"more bytes came than the {total:,} announced, so it begins again", 0.0
            )

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        try:
            return response.read1(CHUNK_BYTES, decode_content=False)
        except ReadTimeoutError as error:
            raise TransientError(f"no byte for {self.policy.timeout_s:g} s") from error
        except (HTTPError, OSError) as error:
            raise TransientError("the connection was cut") from error

    def _unzipped(self, unzip: "zlib._Decompress", chunk: bytes) -> bytes:
        try:
            return unzip.decompress(chunk, CHUNK_BYTES)
        except zlib.error as error:
            self.partial.drop()
            raise TransientError(
                f"the gzip stream is damaged ({error}), so it begins again"
            ) from error

    def _check_room(self, more: int) -> None:
        if self.partial.size + more > self.policy.max_bytes:
            self.partial.drop()
            raise WeightsError(self._too_big("more bytes came than that"))


class _Watch:
    """Raises TransientError when less than `MIN_RATE` comes over a whole timeout: a stall that
    drips.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.start = time.monotonic()
        self.bytes = 0

    def count(self, size: int) -> None:
        """Take note of bytes that came."""
        self.bytes += size
        elapsed = time.monotonic() - self.start
        if elapsed >= self.timeout_s:
            if self.bytes < MIN_RATE * elapsed:
                raise TransientError(f"only {self.bytes:,} bytes in {elapsed:.0f} s")
            self.start, self.bytes = time.monotonic(), 0


def _etag(response: urllib3.BaseHTTPResponse) -> str | None:
    """The strong ETag; a weak one (`W/`) doesn't identify bytes."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else None


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "").strip()
    return int(length) if length.isdigit() else None
