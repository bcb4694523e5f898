"""Downloads against a server that misbehaves: whole and right, or not there; and each message says
what to do.
"""

import email.utils
import errno
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from download.misbehaving import Misbehaving, Reply
from topwork.download import partial as partial_module
from topwork.download.cache import Cache, Cached
from topwork.download.lock import Known
from topwork.download.transfer import Policy, download
from topwork.download.transport import shown
from topwork.errors import ChecksumError, WeightsError

QUICK = Policy(tries=3, timeout_s=5, backoff_s=0.005)
NERVOUS = Policy(tries=6, timeout_s=0.4, backoff_s=0.005)


@pytest.fixture
def get(server: Misbehaving, cache: Cache) -> Callable[..., Cached]:
    """Download /w.pth quickly; messages go to `get.messages`."""
    messages: list[str] = []

    def run(
        sha256: str | None = None, path: str = "/w.pth", policy: Policy = QUICK, **kwargs: Any
    ) -> Cached:
        url = server.url + path
        return download(
            shown(url),
            url,
            cache,
            Known(url, locked=sha256).verify,
            expected=sha256,
            policy=policy,
            notify=messages.append,
            **kwargs,
        )

    run.messages = messages  # type: ignore[attr-defined]
    return run


def nothing_kept(cache: Cache) -> bool:
    return not list((cache.root / "files").rglob("*"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def whole(cached: Cached, content: bytes, cache: Cache) -> bool:
    """Right bytes, right hash, and nothing left over."""
    return (
        cached.path.read_bytes() == content
        and cached.sha256 == sha256(content)
        and not list((cache.root / "partial").glob("*"))
    )


def test_plain(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content)
    assert whole(get(), content, cache)
    assert server.seen[0].headers["accept-encoding"] == "identity"
    assert get().path.name == "w.pth"
    assert len(server.seen) == 1, "the second time comes from the cache"


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("tenth", range(10))
def test_cut_at_every_tenth(
    get: Callable[..., Cached],
    server: Misbehaving,
    cache: Cache,
    content: bytes,
    tenth: int,
    reset: bool,
) -> None:
    cut = tenth * len(content) // 10
    server.plan["/w.pth"] = [Reply(content, cut=cut, reset=reset), Reply(content)]
    assert whole(get(), content, cache)
    assert len(server.seen) == 2
    if cut and not reset:
        assert server.ranges()[1] == f"bytes={cut}-"
        assert server.seen[1].headers["if-range"] == '"v1"'


def test_cut_nine_times_in_a_row(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    cuts = [tenth * len(content) // 10 for tenth in range(1, 10)]
    server.plan["/w.pth"] = [*(Reply(content, cut=cut) for cut in cuts), Reply(content)]
    assert whole(get(), content, cache), "more cuts than tries, but each try brings something"
    assert server.ranges() == [None, *(f"bytes={cut}-" for cut in cuts)]
    assert sum(sum(request.sent) for request in server.seen) == len(content), (
        "no byte is sent twice"
    )


def test_always_cut_at_the_same_place(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, cut=100_000)
    with pytest.raises(
        WeightsError,
        match=(
            r"/w\.pth: the connection was cut; 100,000 of 400,000 bytes, after 3 tries .* run again"
            r" to go on"
        ),
    ) as caught:
        get()
    assert server.url in str(caught.value)
    assert nothing_kept(cache)
    server.plan["/w.pth"] = Reply(content)
    assert whole(get(), content, cache)
    assert server.ranges()[-1] == "bytes=100000-", "the next run goes on where this one gave up"


def test_stall(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = [Reply(content, stall=150_000), Reply(content)]
    assert whole(get(policy=NERVOUS), content, cache)
    assert any("no byte for 0.4 s" in line for line in get.messages)  # type: ignore[attr-defined]


def test_stalled_for_good(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, stall=150_000)
    with pytest.raises(
        WeightsError,
        match=(
            rf"{server.url}/w\.pth: no byte for 0\.2 s; 150,000 of 400,000 bytes, after 2 tries"
            r" without progress\. What came is kept: run again"
        ),
    ):
        get(policy=Policy(tries=2, timeout_s=0.2, backoff_s=0.005))
    assert nothing_kept(cache)


def test_drip_counts_as_stall(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = [Reply(content, rate=100), Reply(content)]
    assert whole(get(policy=NERVOUS), content, cache)
    assert any(re.search(r"only \d+ bytes in 0 s", line) for line in get.messages)  # type: ignore[attr-defined]


def test_last_modified_will_do(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.plan["/w.pth"] = [
        Reply(content, etag='W/"weak"', modified=date, cut=200_000),
        Reply(content, etag='W/"weak"', modified=date),
    ]
    assert whole(get(), content, cache)
    assert server.seen[1].headers["if-range"] == date


def test_without_validators_it_begins_again(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = [Reply(content, etag=None, cut=200_000), Reply(content, etag=None)]
    assert whole(get(), content, cache)
    assert server.ranges() == [None, None]


def test_a_known_hash_vouches_in_place_of_validators(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = [Reply(content, etag=None, cut=200_000), Reply(content, etag=None)]
    assert whole(get(sha256(content)), content, cache)
    assert server.ranges() == [None, "bytes=200000-"]


@pytest.mark.parametrize("heeds", [True, False], ids=["heeds If-Range", "ignores If-Range"])
def test_changed_between_tries(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes, heeds: bool
) -> None:
    changed = content[::-1]
    server.plan["/w.pth"] = [
        Reply(content, cut=200_000),
        Reply(changed, etag='"v2"', heed_if_range=heeds),
    ]
    assert whole(get(), changed, cache)


def test_changed_length_between_tries(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    changed = content[::-1] + b"more"
    server.plan["/w.pth"] = [Reply(content, cut=200_000), Reply(changed, heed_if_range=False)]
    assert whole(get(), changed, cache), "same ETag, another total"


def test_changed_without_validators_is_found_by_the_hash(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    changed = content[::-1]
    server.plan["/w.pth"] = [Reply(content, etag=None, cut=200_000), Reply(changed, etag=None)]
    assert whole(get(sha256(changed)), changed, cache)
    assert server.ranges() == [
        None,
        "bytes=200000-",
        None,
    ], "joined from two contents: begun again, without ranges"


def test_content_that_changes_for_good_is_refused(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    changed = content[::-1]
    server.plan["/w.pth"] = [Reply(content, cut=200_000), Reply(changed, etag='"v2"')]
    expected = sha256(content)
    with pytest.raises(
        ChecksumError,
        match=(
            f"{server.url}/w.pth: SHA-256 found {sha256(changed)}, expected {expected}.*the source"
            " has changed.*--accept"
        ),
    ):
        get(expected)
    assert nothing_kept(cache)
    assert not list((cache.root / "partial").glob("*"))


@pytest.mark.parametrize(
    "wrong",
    [{"range_shift": 7}, {"range_shift": -200_000}, {"headers": {"Content-Range": "x"}}],
    ids=["later", "from 0", "nonsense"],
)
def test_wrong_range_answer(
    get: Callable[..., Cached],
    server: Misbehaving,
    cache: Cache,
    content: bytes,
    wrong: dict[str, Any],
) -> None:
    second = (
        Reply(content[200_000:], status=206, **wrong)
        if "headers" in wrong
        else Reply(content, **wrong)
    )
    server.plan["/w.pth"] = [Reply(content, cut=200_000), second, Reply(content)]
    assert whole(get(), content, cache)
    assert any(
        "asked for bytes 200000-, the server answers 206 with Content-Range" in line
        for line in get.messages
    )  # type: ignore[attr-defined]
    assert server.ranges()[2] is None, "no ranges from then on"


def test_partial_answer_that_nobody_asked_for(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(
        content[:100], status=206, headers={"Content-Range": f"bytes 0-99/{len(content)}"}
    )
    with pytest.raises(
        WeightsError, match=r"the server answers 206 with Content-Range 'bytes 0-99/400000'"
    ):
        get()
    assert nothing_kept(cache)


def test_server_without_ranges(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = [
        Reply(content, cut=200_000, ranges=False),
        Reply(content, ranges=False),
    ]
    assert whole(get(), content, cache)


def test_range_not_satisfiable(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    short = content[:50_000]
    server.plan["/w.pth"] = [Reply(content, cut=200_000), Reply(short, heed_if_range=False)]
    assert whole(get(), short, cache), "416, so it begins again"


def died_before_the_move(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    """Leave what a process leaves that dies between the last byte and the move."""
    server.plan["/w.pth"] = Reply(content, cut=200_000)
    with pytest.raises(WeightsError, match="was cut"):
        get()
    with (cache.partial(f"{server.url}/w.pth") / "part").open("ab") as stream:
        stream.write(content[200_000:])


def test_nothing_is_missing(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    died_before_the_move(get, server, cache, content)
    server.plan["/w.pth"] = Reply(content)
    before = len(server.seen)
    assert whole(get(), content, cache)
    assert server.ranges()[before:] == ["bytes=400000-"]
    assert sum(server.seen[-1].sent) == 0, (
        "the server answers that there is no more, and the validators match"
    )


def test_killed_after_the_move(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    """What is left of the partial file goes with the next run, but not while a process is busy
    there.
    """
    server.plan["/w.pth"] = Reply(content)
    source = f"{server.url}/w.pth"
    assert whole(get(), content, cache)
    left = cache.partial(source) / "part.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    with cache.held(source, print):
        get()
        assert left.is_file()
    assert whole(get(), content, cache)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "change",
    [{"etag": '"v2"'}, {"etag": '"v2"', "heed_if_range": False}, {"heed_if_range": False}],
    ids=str,
)
def test_nothing_is_missing_but_the_content_changed(
    get: Callable[..., Cached],
    server: Misbehaving,
    cache: Cache,
    content: bytes,
    change: dict[str, Any],
) -> None:
    died_before_the_move(get, server, cache, content)
    changed = content[:0:-1]
    server.plan["/w.pth"] = Reply(changed, **change)
    assert whole(get(), changed, cache)


def test_announced_too_long(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, extra_length=10, etag=None)
    with pytest.raises(
        WeightsError, match="the connection was cut; 400,000 of 400,010 bytes, after 3 tries"
    ):
        get()
    assert nothing_kept(cache)


def test_announced_too_short_is_found_by_the_hash(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, extra_length=-10)
    with pytest.raises(
        ChecksumError, match=f"found {sha256(content[:-10])}, expected {sha256(content)}"
    ):
        get(sha256(content))
    assert nothing_kept(cache)


def test_chunked(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = [
        Reply(content, chunked=True, cut=200_000),
        Reply(content, chunked=True),
    ]
    assert whole(get(), content, cache)


def test_no_length_and_no_hash(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, announce=False)
    with pytest.raises(
        WeightsError, match=r"announces no length and no hash is known.*fetch\.sha256"
    ):
        get()
    assert nothing_kept(cache)
    assert whole(get(sha256(content)), content, cache)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_busy_server(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes, status: int
) -> None:
    server.plan["/w.pth"] = [Reply(status=status), Reply(status=status), Reply(content)]
    assert whole(get(), content, cache)


def test_busy_for_good(get: Callable[..., Cached], server: Misbehaving, cache: Cache) -> None:
    server.plan["/w.pth"] = Reply(status=503)
    with pytest.raises(
        WeightsError,
        match=(
            r"/w\.pth: the server answers 503 Service Unavailable, expected 200; 0 bytes, after 3"
            r" tries.*mirror"
        ),
    ):
        get()
    assert len(server.seen) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes, form: str
) -> None:
    value = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    server.plan["/w.pth"] = [Reply(status=429, headers={"Retry-After": value}), Reply(content)]
    start = time.monotonic()
    assert whole(get(), content, cache)
    assert time.monotonic() - start >= 0.9


def test_retry_after_too_long(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache
) -> None:
    server.plan["/w.pth"] = Reply(status=503, headers={"Retry-After": "3600"})
    with pytest.raises(
        WeightsError,
        match=r"answers 503.*asks to wait 3600 s; topwork waits 120 s at most\. Run again later",
    ):
        get()
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "TOPWORK_TOKEN_127_0_0_1"),
        (403, "TOPWORK_TOKEN_127_0_0_1"),
        (404, r"Mend fetch\.source"),
        (410, r"Mend fetch\.source"),
    ],
)
def test_refused_at_once(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, status: int, advice: str
) -> None:
    server.plan["/w.pth"] = Reply(status=status)
    with pytest.raises(
        WeightsError, match=rf"/w\.pth: the server answers {status} .*, expected 200\..*{advice}"
    ):
        get()
    assert len(server.seen) == 1


def test_gzip_on_the_fly(get: Callable[..., Cached], server: Misbehaving, cache: Cache) -> None:
    text = b"easy to press " * 100_000
    server.plan["/w.pth"] = [Reply(text, encoding="gzip", cut=1000), Reply(text, encoding="gzip")]
    assert whole(get(), text, cache)
    assert server.ranges() == [
        None,
        None,
    ], "ranges of a stream that is pressed on the fly mean nothing"


def test_gzip_bomb(get: Callable[..., Cached], server: Misbehaving, cache: Cache) -> None:
    server.plan["/w.pth"] = Reply(bytes(30_000_000), encoding="gzip")
    with pytest.raises(
        WeightsError,
        match=(
            r"more bytes came than that, the limit is 1,000,000\. Nothing was kept; raise"
            r" fetch\.max_gib"
        ),
    ):
        get(policy=Policy(tries=3, backoff_s=0.005, max_bytes=1_000_000))
    assert nothing_kept(cache)
    assert not list((cache.root / "partial").glob("*"))


def test_damaged_gzip(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, headers={"Content-Encoding": "gzip"})
    with pytest.raises(WeightsError, match="the gzip stream is damaged"):
        get()
    assert nothing_kept(cache)


def test_other_encodings(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, encoding="br")
    with pytest.raises(WeightsError, match="Content-Encoding 'br', expected it as it is"):
        get()


def test_size_limit_announced(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content)
    with pytest.raises(WeightsError, match="400,000 bytes are announced, the limit is 1,000"):
        get(policy=Policy(max_bytes=1000))
    assert nothing_kept(cache)


def test_size_limit_unannounced(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, chunked=True)
    with pytest.raises(WeightsError, match="the limit is 1,000"):
        get(policy=Policy(max_bytes=1000))
    assert nothing_kept(cache)


def test_no_space_for_what_is_announced(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, extra_length=10**15)
    with pytest.raises(
        WeightsError,
        match=r"bytes are free, the download needs 1,000,000,000,400,000\. Free some space",
    ):
        get(policy=Policy(max_bytes=10**16))
    assert nothing_kept(cache)


def test_disk_full(
    get: Callable[..., Cached],
    server: Misbehaving,
    cache: Cache,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux's /dev/full answers every write with the real ENOSPC."""
    server.plan["/w.pth"] = Reply(content)
    original = partial_module.Path.open

    def open_full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return original(
            Path("/dev/full") if path.name == "part" and "w" in mode else path,
            mode,
            *args,
            **kwargs,
        )

    monkeypatch.setattr(partial_module.Path, "open", open_full)
    with pytest.raises(
        WeightsError,
        match=(
            rf"the disk is full \(after 0 bytes of {server.url}/w\.pth\)\. The partial file was"
            r" removed; free some space"
        ),
    ):
        get()
    monkeypatch.undo()
    assert nothing_kept(cache)
    assert not list((cache.root / "partial").glob("*"))


@pytest.mark.parametrize("after", [1000, 400_000], ids=["midway", "after the last byte"])
def test_disk_that_fails_behind(
    get: Callable[..., Cached],
    server: Misbehaving,
    cache: Cache,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """Bytes go to the disk while more come; what that finds ends the download, even after the last
    byte.
    """

    def fail(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    server.plan["/w.pth"] = Reply(content)
    monkeypatch.setattr(partial_module, "SYNC_BYTES", after)
    monkeypatch.setattr(
        partial_module.os,
        "fsync",
        lambda descriptor, real=os.fsync: (
            fail(descriptor) if is_part(descriptor) else real(descriptor)
        ),
    )
    with pytest.raises(
        WeightsError,
        match=(
            rf"the disk quota is used up \(after [\d,]+ bytes of {server.url}/w\.pth\)\. The"
            r" partial file was removed"
        ),
    ):
        get()
    monkeypatch.undo()
    assert nothing_kept(cache)
    assert not list((cache.root / "partial").glob("*"))


def is_part(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name == "part"


def test_secrets_of_the_address_stay_out_of_the_cache(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    path = "/w.pth?rev=3&sig=s3cret"
    server.plan[path] = Reply(content, cut=200_000)
    with pytest.raises(WeightsError, match=r"/w\.pth\?rev=3&sig=\*\*\*: the connection was cut"):
        get(path=path)
    left = [file for file in cache.root.rglob("*") if file.suffix == ".json"]
    assert left
    assert not any("s3cret" in file.read_text() for file in left)
    assert not any("s3cret" in line for line in get.messages)  # type: ignore[attr-defined]
    renewed = path.replace("s3cret", "s3cret2")  # a signed address lasts for an hour or so
    server.plan[renewed] = Reply(content)
    url = server.url + renewed
    assert whole(download(shown(url), url, cache, Known("w").verify, policy=QUICK), content, cache)
    assert server.ranges()[-1] == "bytes=200000-"


def test_server_gone(cache: Cache) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/w"  # nobody listens there
        with pytest.raises(
            WeightsError,
            match=(
                rf"{url}: (.*refused.*|no connection within 5 s); 0 bytes, after 3 tries without"
                r" progress\. Check the network"
            ),
        ):
            download("w", url, cache, Known("w").verify, policy=QUICK, notify=lambda text: None)


def test_offline(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content)
    with pytest.raises(WeightsError, match=r"/w\.pth: not in the cache .* fetch\.offline is on"):
        get(offline=True)
    get()
    assert whole(get(offline=True), content, cache)
    assert len(server.seen) == 1


def test_damaged_cache_is_noticed(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content)
    path = get().path
    path.chmod(0o644)
    path.write_bytes(content[:-1] + b"?")
    assert whole(get(), content, cache)
    assert "the cached file is damaged" in get.messages[-1]  # type: ignore[attr-defined]
    assert len(server.seen) == 2


def test_a_known_hash_finds_any_cached_file(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content)
    get()
    known = Known("elsewhere", locked=sha256(content))
    cached = download(
        "elsewhere",
        "http://127.0.0.1:9/w",
        cache,
        known.verify,
        expected=known.expected,
        policy=QUICK,
    )
    assert cached.path.read_bytes() == content


def test_a_partial_of_another_address_is_not_taken_up(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    server.plan["/w.pth"] = Reply(content, cut=200_000)
    with pytest.raises(WeightsError, match="was cut"):
        get()
    server.plan["/mirror/w.pth"] = Reply(content[::-1])
    cached = download(
        f"{server.url}/w.pth", f"{server.url}/mirror/w.pth", cache, Known("w").verify, policy=QUICK
    )
    assert whole(cached, content[::-1], cache)
    assert server.ranges()[-1] is None


@pytest.mark.parametrize(
    "record",
    ["", "{", '{"url": 1}', '{"surprise": true}'],
    ids=["empty", "broken", "odd", "unknown key"],
)
def test_a_damaged_record_is_not_taken_up(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes, record: str
) -> None:
    server.plan["/w.pth"] = Reply(content, cut=200_000)
    with pytest.raises(WeightsError, match="was cut"):
        get()
    (cache.partial(f"{server.url}/w.pth") / "part.json").write_text(record)
    server.plan["/w.pth"] = Reply(content)
    assert whole(get(), content, cache)
    assert server.ranges()[-1] is None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/w",
        "file:///etc/passwd",
        "https://",
        "https://[::1/w?sig=s3cret",
        "https://example.org:99999/w?sig=s3cret",
    ],
    ids=["ftp", "file", "no host", "half a bracket", "port"],
)
def test_no_address(cache: Cache, url: str) -> None:
    with pytest.raises(
        WeightsError, match="expected an address that begins with https://"
    ) as caught:
        download(url, url, cache, Known(url).verify)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "record",
    ["", "{", "[]", '{"sha256": 1}', '{"sha256": "../../etc"}'],
    ids=["empty", "broken", "list", "number", "path"],
)
def test_a_damaged_record_of_the_cache_is_no_record(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes, record: str
) -> None:
    server.plan["/w.pth"] = Reply(content)
    get()
    (file,) = (cache.root / "sources").iterdir()
    file.write_text(record)
    assert whole(get(), content, cache)
    assert len(server.seen) == 2


def test_clean_removes_only_what_is_its_own(
    get: Callable[..., Cached], server: Misbehaving, cache: Cache, content: bytes
) -> None:
    """TOPWORK_CACHE may be a folder that holds other things."""
    server.plan["/w.pth"] = Reply(content)
    get()
    others = [
        cache.root / name
        for name in ("files/thesis.txt", "sources/app.json", "partial/notes/a.txt", "mine.txt")
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    freed, busy = cache.clean()
    assert freed > len(content)
    assert busy == []
    assert all(path.read_text() == "mine" for path in others)
    assert not list(cache.root.rglob("w.pth"))
