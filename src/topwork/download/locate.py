"""From a source's name to a file on this machine: local file, URL, torchvision, DVC, Hugging Face
hub.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from topwork.download.cache import Cache, Cached, Notify
from topwork.download.lock import Known, absolute_name, read_lock
from topwork.download.torchvision_enums import entry_of
from topwork.download.transfer import GIB, Policy, download
from topwork.download.transport import authorization, check_url, private, shown
from topwork.errors import WeightsError
from topwork.files import sha256_file
from topwork.params.fetch import FetchParams
from topwork.project.fetch import WEIGHTS_LOCK


@dataclass(frozen=True)
class Located:
    """A source's file on this machine, its verified hash, and what the source
    itself declares about it.

    Attributes:
        path: the file.
        source: as weights.lock and the provenance write it.
        sha256: of the file.
        file: the file's name at the source.
        builder: torchvision's builder name, where the source knows it.
        columns: names of the class columns, where the source knows them.
        facts: further provenance: licence, recipe, published figures...
        locked_as: how weights.lock names it, where that isn't `source`.
    """

    path: Path
    source: str
    sha256: str
    file: str
    builder: str | None = None
    columns: tuple[str, ...] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    locked_as: str = ""

    @property
    def key(self) -> str:
        """How weights.lock names it."""
        return self.locked_as or self.source


@dataclass(frozen=True)
class FetchContext:
    """What every kind of source needs: params, lock, cache, and how to notify the user."""

    params: FetchParams
    lock: Path = WEIGHTS_LOCK
    also_known: Path | None = None
    cache: Cache = field(default_factory=Cache.default)
    accept: bool = False
    notify: Notify = print

    @property
    def offline(self) -> bool:
        """The cache alone: fetch.offline, or TOPWORK_OFFLINE=1."""
        return self.params.offline or os.environ.get("TOPWORK_OFFLINE", "").lower() not in (
            "",
            "0",
            "false",
            "no",
            "off",
        )

    @property
    def mirror(self) -> str | None:
        """fetch.mirror, or TOPWORK_MIRROR."""
        return self.params.mirror or os.environ.get("TOPWORK_MIRROR") or None

    @property
    def policy(self) -> Policy:
        """Patience and limits of params `fetch`."""
        params = self.params
        return Policy(
            tries=params.tries, timeout_s=params.timeout_s, max_bytes=int(params.max_gib * GIB)
        )

    def known(self, source: str, digits: str = "", given: str = "") -> Known:
        """What params.yaml and the lock know of a source."""
        pinned = self.params.sha256.lower() if self.params.sha256 else None
        locks = {**(read_lock(self.also_known) if self.also_known else {}), **read_lock(self.lock)}
        return Known(source, pinned, locks.get(source), digits, accept=self.accept, given=given)

    def mirrored(self, url: str) -> str:
        """An address with the mirror's prefix in place of scheme and host."""
        if self.mirror is None:
            return url
        parts = urlsplit(url)
        return self.mirror.rstrip("/") + urlunsplit(("", "", parts.path, parts.query, ""))

    def download(self, known: Known, url: str, token: str | None = None) -> Cached:
        """The file at an address, by way of the cache."""
        return download(
            known.source,
            url,
            self.cache,
            known.verify,
            expected=known.expected,
            token=token,
            refresh=self.accept,
            offline=self.offline,
            policy=self.policy,
            notify=self.notify,
        )

    @contextlib.contextmanager
    def cached_or(self, known: Known) -> Iterator[Cached | None]:
        """For sources that other libraries fetch: the cached file, or None while this process holds
        the lock to fetch it.
        """
        cached = None if self.accept else self.cache.find(known.source, known.expected, self.notify)
        if cached is None and self.offline:
            raise WeightsError(
                f"{known.source}: not in the cache {self.cache.root}, and fetch.offline is on."
                " Fetch it once with a network, or copy the cache folder of a machine that has it"
                " (TOPWORK_CACHE=FOLDER)."
            )
        if cached is not None:
            known.verify(cached.sha256)
            yield cached
            return
        with self.cache.held(known.source, self.notify):
            yield (
                None if self.accept else self.cache.find(known.source, known.expected, self.notify)
            )


def locate(context: FetchContext) -> Located:
    """Find the file that fetch.source names, by the kind that its name begins with.

    Raises:
        ChecksumError: the file isn't the known one.
        WeightsError: it can't be fetched.
    """
    kind, colon, rest = context.params.source.partition(":")
    if colon and kind.lower() in _KINDS:
        return _KINDS[kind.lower()](context, rest)
    return _local(context)


def _local(context: FetchContext) -> Located:
    source = context.params.source
    path = Path(source)
    if not path.is_file():
        raise WeightsError(
            f"fetch.source: {source or 'empty'}: {'a folder' if path.is_dir() else 'no such file'},"
            " expected a file, or a source of another kind (demo, torchvision:BUILDER/ENTRY,"
            " https://..., dvc:REPO#PATH@REV, hf:REPO/FILE@REVISION). Mend it in params.yaml."
        )
    name, key = (path.name, absolute_name(path)) if path.is_absolute() else (source, source)
    digest = sha256_file(path)
    context.known(key, given=source).verify(digest)
    return Located(path, name, digest, path.name, locked_as=key)


def _url(context: FetchContext, rest: str) -> Located:
    url = context.params.source
    name = shown(url)
    cached = context.download(context.known(name), context.mirrored(url))
    return Located(cached.path, name, cached.sha256, Path(urlsplit(url).path).name)


def _torchvision(context: FetchContext, rest: str) -> Located:
    entry = entry_of(rest)
    name = f"torchvision:{entry.name}"
    cached = context.download(context.known(name, entry.digits), context.mirrored(entry.url))
    return Located(
        cached.path,
        name,
        cached.sha256,
        entry.url.rpartition("/")[2],
        entry.builder,
        entry.columns,
        entry.facts,
    )


def _dvc(context: FetchContext, rest: str) -> Located:
    """A file that a DVC (or plain git) repository tracks: `dvc:REPO#PATH@REV`."""
    repo, hash_sign, tail = rest.rpartition("#")
    path, _, revision = tail.partition("@")
    if not hash_sign or not repo or not path:
        raise WeightsError(
            f"fetch.source: dvc:{rest}: expected dvc:REPO#PATH@REV, such as"
            " dvc:https://example.org/models.git#best.pth@v1.2. Mend it in params.yaml."
        )
    if repo.startswith(("http://", "https://")):
        check_url(repo)
    name = f"dvc:{shown(repo) if '://' in repo else repo}#{path}" + (
        f"@{revision}" if revision else ""
    )
    known = context.known(name)
    with context.cached_or(known) as cached:
        if cached is None:
            where = context.mirrored(repo) if repo.startswith(("http://", "https://")) else repo
            with _scratch(context, name) as partial:
                _get_from_dvc(context, name, where, path, revision or None, partial)
                digest = sha256_file(partial)
                known.verify(digest)
                cached = context.cache.keep(name, partial, digest, Path(path).name)
    return Located(cached.path, name, cached.sha256, Path(path).name)


@contextlib.contextmanager
def _scratch(context: FetchContext, name: str) -> Iterator[Path]:
    """A path for a file that another library writes; removed with its folder at the end."""
    folder = context.cache.partial(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / "part"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _get_from_dvc(
    context: FetchContext, name: str, repo: str, path: str, revision: str | None, partial: Path
) -> None:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        system = DVCFileSystem(url=repo, rev=revision)
        size = system.info(path).get("size")
        if size is not None and size > context.policy.max_bytes:
            raise WeightsError(
                f"{name}: {size:,} bytes, the limit is {context.policy.max_bytes:,}. Raise"
                " fetch.max_gib in params.yaml if that is right."
            )
        context.notify(
            f"{name}: fetching {size:,} bytes by DVC."
            if size is not None
            else f"{name}: fetching by DVC."
        )
        system.get_file(path, str(partial))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{name}: {path} not found in {shown(repo) if '://' in repo else repo} at"
            f" {revision or 'its default revision'}, or not on its remote. Mend fetch.source, or"
            " `dvc push` there."
        ) from error
    except (DvcException, SCMError, OSError, ValueError) as error:
        raise WeightsError(
            f"{name}: DVC can't get it ({_reason(error)}). Try by hand: dvc get {repo} {path}"
            + (f" --rev {revision}" if revision else "")
        ) from error


def _reason(error: BaseException | None) -> str:
    """An error of another library and what caused it, on one line."""
    texts: list[str] = []
    while error is not None:
        text = " ".join(str(error).split())
        if text and not any(text in other for other in texts):
            texts.append(text)
        error = error.__cause__
    reason = ": ".join(texts)
    return reason if len(reason) <= 400 else f"{reason[:200]} ... {reason[-200:]}"


def _hub(context: FetchContext, rest: str) -> Located:
    """A file of the Hugging Face hub: `hf:OWNER/REPO/FILE@REVISION`; downloaded by our own code, at
    the commit the hub's library finds.
    """
    place, _, revision = rest.partition("@")
    parts = place.split("/")
    if len(parts) < 3 or not all(parts):
        raise WeightsError(
            f"fetch.source: hf:{rest}: expected hf:OWNER/REPO/FILE@REVISION, such as"
            " hf:acme/detector/model.safetensors@v1. Mend it in params.yaml."
        )
    repo, file = "/".join(parts[:2]), "/".join(parts[2:])
    name = f"hf:{place}@{revision or 'main'}"
    known = context.known(name)
    if not context.accept and (cached := context.cache.find(name, known.expected, context.notify)):
        known.verify(cached.sha256)
        return Located(cached.path, name, cached.sha256, parts[-1])
    if context.offline:
        context.download(known, f"https://huggingface.co/{repo}")  # raises, naming what is missing
    url, token, digest = _ask_hub(context, name, repo, file, revision or "main")
    if digest is not None:
        known.verify(digest)  # before any byte: the hub declares which content it has
        known = replace(known, digits=digest, promise="the hub's own record")
    cached = context.download(known, url, token)
    return Located(cached.path, name, cached.sha256, parts[-1])


def _ask_hub(
    context: FetchContext, name: str, repo: str, file: str, revision: str
) -> tuple[str, str | None, str | None]:
    """Address at the commit that the revision means, token from the environment, SHA-256 where the
    hub knows it.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_url
    except ImportError as error:
        raise WeightsError(
            f"{name}: needs the hub's library, which isn't installed. Run: pip install"
            " 'topwork[hub]'"
        ) from error
    endpoint = (context.mirror or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip(
        "/"
    )
    check_url(endpoint)
    token = os.environ.get("HF_TOKEN", "").strip() if private(endpoint) else ""
    # raises for a token that can't stand in a header, which the library would print
    authorization(endpoint, token)
    try:
        info = HfApi(endpoint=endpoint, token=token or False).model_info(
            repo, revision=revision, files_metadata=True, timeout=context.policy.timeout_s
        )
    # the library's own errors, and those of the HTTP library that it uses
    except Exception as error:
        raise WeightsError(
            f"{name}: the hub at {shown(endpoint)} doesn't give it ({_reason(error)}). Check"
            " repository, revision and network; a private repository needs HF_TOKEN in the"
            " environment, a hub of your own fetch.mirror in params.yaml."
        ) from error
    entry = next((sibling for sibling in info.siblings or [] if sibling.rfilename == file), None)
    if entry is None:
        found = ", ".join(sibling.rfilename for sibling in (info.siblings or [])[:20])
        raise WeightsError(
            f"{name}: found {found or 'no file'} there, expected {file}. Mend fetch.source in"
            " params.yaml."
        )
    url = hf_hub_url(repo, file, revision=info.sha, endpoint=endpoint)
    return url, token or None, entry.lfs.sha256 if entry.lfs else None


_KINDS: dict[str, Callable[[FetchContext, str], Located]] = {
    "http": _url,
    "https": _url,
    "torchvision": _torchvision,
    "dvc": _dvc,
    "hf": _hub,
}
