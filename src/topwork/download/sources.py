"""`fetch`: weights of any source, whole, known, safe, and named."""

import importlib.metadata
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from topwork.download.cache import Cache, Notify
from topwork.download.locate import FetchContext, Located, locate
from topwork.download.lock import read_lock, record
from topwork.download.shipped import demo_source
from topwork.errors import ChecksumError, NotWeightsError, WeightsError
from topwork.params.fetch import FetchParams
from topwork.project.fetch import WEIGHTS_LOCK
from topwork.weights.builder_files import BUILDER_HASH, builder_hash
from topwork.weights.categories import check_same_names, columns_of
from topwork.weights.format import Weights, read_weights
from topwork.weights.load_raw import read_state_dict


def notify_on_stderr(text: str) -> None:
    """The default `notify`: a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def fetch(
    params: FetchParams,
    *,
    lock: Path = WEIGHTS_LOCK,
    also_known: Path | None = None,
    accept: bool = False,
    cache: Cache | None = None,
    notify: Notify = notify_on_stderr,
) -> Weights:
    """Get the weights that `params` names: whole, known, and as plain tensors.

    Args:
        params: section `fetch` of params.yaml.
        lock: the lock file that holds each source's SHA-256; a source seen for the first time is
            added when all is well.
        also_known: a second lock file whose hashes hold, too; it is never written.
        accept: fetch again, and write a changed hash into the lock instead of refusing it.
        cache: downloads go here; the user's shared cache by default.
        notify: called with each line that the user should read.

    Raises:
        ChecksumError: the file isn't the pinned or locked one.
        WeightsError: it can't be fetched, isn't plain tensors, or has no builder or class
            names and `params` gives none.
    """
    if params.source == "demo":
        demo = demo_source()
        if params.sha256 is not None and params.sha256.lower() != demo.provenance["sha256"]:
            raise ChecksumError(
                f"demo: the shipped weights have SHA-256 {demo.provenance['sha256']}, fetch.sha256"
                f" expects {params.sha256.lower()}. Take fetch.sha256 out of params.yaml, or"
                " install the version of topwork that it was written for."
            )
        return _overridden(demo, params, params.source)
    context = FetchContext(params, lock, also_known, cache or Cache.default(), accept, notify)
    located = locate(context)
    try:
        weights = _read(located, params)
    except NotWeightsError:
        # a login page, for example; the next fetch asks the source again
        context.cache.forget(located.source)
        raise
    _remember(located, context)
    return weights


def _remember(located: Located, context: FetchContext) -> None:
    """Trust on first use, with a message to the user."""
    before = read_lock(context.lock).get(located.key)
    if before == located.sha256:
        return
    record(located.key, located.sha256, context.lock, context.cache)
    what = "seen for the first time" if before is None else f"changed (before: {before})"
    context.notify(
        f"{located.key}: {what}, SHA-256 {located.sha256} written to {context.lock.name}. Commit"
        " it: from now on no other content is accepted."
    )


def _read(located: Located, params: FetchParams) -> Weights:
    """Tensors, columns, builder and provenance of a located file."""
    provenance: dict[str, Any] = {
        **{key: value for key, value in located.facts.items() if value is not None},
        "source": located.source,
        "file": located.file,
        "bytes": located.path.stat().st_size,
        "sha256": located.sha256,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "torchvision", "safetensors")
        },
    }
    own = _own_weights(located.path) if params.prefix is None else None
    if own is not None:
        _check_builder_is_trusted(own, located, params)
        return _overridden(
            replace(own, provenance={**provenance, "origin": own.provenance}),
            params,
            located.source,
        )
    builder = params.builder or located.builder
    columns = columns_of(params.classes) if params.classes is not None else located.columns
    if columns is not None and located.columns is not None:
        check_same_names(columns, located.columns, located.source)
    if builder is None:
        raise WeightsError(
            f"{located.source}: doesn't name its detector. Name it under fetch.builder in"
            " params.yaml (or --builder): a torchvision builder such as"
            " `ssdlite320_mobilenet_v3_large`, `module:function` or `path/to/file.py:function`."
        )
    if columns is None:
        raise WeightsError(
            f"{located.source}: comes without class names. Name its columns under fetch.classes in"
            " params.yaml (or --classes): a category set such as `coco-91`, a list, or a text file"
            " with one name a line."
        )
    state_dict = read_state_dict(
        located.path, params.prefix, max_bytes=int(params.max_gib * (1 << 30)), label=located.source
    )
    provenance |= {
        key: value
        for key, value in (("prefix", params.prefix), (BUILDER_HASH, builder_hash(builder)))
        if value
    }
    zero_eps = located.facts.get("frozen_batch_norm_eps") if params.builder is None else None
    # as torchvision builds it when it downloads them itself
    own_args = {} if zero_eps is None else {"frozen_batch_norm": zero_eps}
    return Weights(
        state_dict, columns, builder, {**own_args, **params.builder_args}, provenance=provenance
    )


def _check_builder_is_trusted(own: Weights, located: Located, params: FetchParams) -> None:
    """A builder that isn't torchvision's is a function of this machine, called with the file's
    arguments: a file mustn't choose it.

    Raises:
        WeightsError: the file names one, and params.yaml doesn't.
    """
    if ":" in own.builder and params.builder is None:
        raise WeightsError(
            f"{located.source}: its metadata asks for the builder {own.builder!r} with"
            f" {own.builder_args}, which would run code of this machine that the file chose;"
            " expected one of torchvision's. If you know the builder and trust it, write"
            f" `fetch.builder: {own.builder}` in params.yaml (or --builder)."
        )


def _own_weights(path: Path) -> Weights | None:
    """The weights of a file that topwork itself wrote, None of any other."""
    try:
        with safe_open(path, framework="pt") as stored:
            if "topwork" not in (stored.metadata() or {}):
                return None
    except (SafetensorError, OSError):
        return None
    return read_weights(path, trust=True)  # fetch asks params.yaml


def _overridden(weights: Weights, params: FetchParams, source: str) -> Weights:
    """Weights that know their builder and columns; the builder of params.yaml replaces
    their own.
    """
    if params.classes is not None:
        check_same_names(columns_of(params.classes), weights.columns, source)
    builder = params.builder or weights.builder
    provenance = {key: weights.provenance[key] for key in weights.provenance if key != BUILDER_HASH}
    if (own := builder_hash(builder)) is not None:
        provenance[BUILDER_HASH] = own
    return replace(
        weights,
        builder=builder,
        builder_args={**weights.builder_args, **params.builder_args},
        provenance=provenance,
    )
