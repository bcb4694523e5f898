"""`topwork fetch`: pretrained weights into the cache (and a file), checked and safe; or the cache
cleaned.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.errors import ParamsError, WeightsError

if TYPE_CHECKING:
    from topwork.params.fetch import FetchParams
    from topwork.weights.format import Weights

EXAMPLE = """\
Examples:
  topwork fetch torchvision:fasterrcnn_resnet50_fpn/COCO_V1
  topwork fetch demo --out street.safetensors
  topwork fetch https://example.org/best.pth --builder ssd300_vgg16 --classes coco-91
  topwork fetch best.pth --builder detector.py:build --classes helmet,hat --prefix state_dict/model.
  topwork fetch --list
  topwork fetch --clean-cache

The SHA-256 of a source is written to weights.lock when it is first seen, and enforced from then on.
Downloads go to a cache that all projects share ($TOPWORK_CACHE, else ~/.cache/topwork).
Proxies and CA bundle: HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE.
Credentials: TOPWORK_TOKEN_<HOST> (HF_TOKEN for the hub)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "source",
        nargs="?",
        help=(
            "demo, torchvision:BUILDER/ENTRY, https://..., a file, dvc:REPO#PATH@REV,"
            " hf:OWNER/REPO/FILE@REVISION; left out: what params.yaml names"
        ),
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the weights there, as safetensors that topwork.load() takes",
    )
    parser.add_argument(
        "--builder", help="torchvision builder, module:function or path/to/file.py:function"
    )
    parser.add_argument(
        "--classes",
        help=(
            "category set (coco-91, coco-80, voc-21, open-images-601), text file, or names with"
            " commas between (one alone: `helmet,`)"
        ),
    )
    parser.add_argument(
        "--prefix",
        help=(
            "key of a checkpoint (state_dict), prefix of tensor names (module.), or both"
            " (state_dict/model.)"
        ),
    )
    parser.add_argument("--sha256", help="the SHA-256 that the file must have")
    parser.add_argument(
        "--mirror", metavar="PREFIX", help="put in place of the source's scheme and host"
    )
    parser.add_argument("--offline", action="store_true", help="use only the cache")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="fetch again and accept changed content into weights.lock",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list what the installed torchvision offers, and the category sets",
    )
    parser.add_argument(
        "--clean-cache",
        action="store_true",
        help="remove every cached download that isn't in progress",
    )


def run(args: argparse.Namespace) -> int:
    """Fetch, list or clean."""
    if args.clean_cache:
        return _clean()
    if args.list:
        return _list()
    from topwork.detectors.builders import check_fits_builder
    from topwork.download.sources import fetch
    from topwork.weights.format import write_weights

    params = _params(args)
    if args.out is not None and args.out.resolve() == Path(params.source).resolve():
        raise WeightsError(
            f"--out {args.out}: is the source itself, which is never changed. Give another name."
        )
    weights = fetch(params, accept=args.accept)
    check_fits_builder(weights)
    if args.out is not None:
        write_weights(args.out, weights)
    print(_summary(weights, args.out))
    return 0


def _params(args: argparse.Namespace) -> "FetchParams":
    """Section `fetch` of params.yaml if it names this source; arguments of the command line
    replace its values.
    """
    from pydantic import ValidationError

    from topwork.params.document import load_params
    from topwork.params.fetch import FetchParams
    from topwork.params.section import PARAMS_FILE

    basis = FetchParams()
    if args.source is None and not PARAMS_FILE.is_file():
        raise WeightsError(
            "no source named, and no params.yaml here that names one. Example: topwork fetch"
            " torchvision:ssdlite320_mobilenet_v3_large/COCO_V1"
        )
    if PARAMS_FILE.is_file():
        section = load_params().fetch
        basis = section if args.source in (None, section.source) else basis
    given: dict[str, Any] = {
        name: getattr(args, name) for name in ("source", "builder", "prefix", "sha256", "mirror")
    }
    if args.classes is not None:
        given["classes"] = (
            args.classes.removesuffix(",").split(",") if "," in args.classes else args.classes
        )
    if args.offline:
        given["offline"] = True
    try:
        return FetchParams.model_validate(
            {
                **basis.model_dump(),
                **{name: value for name, value in given.items() if value is not None},
            }
        )
    except ValidationError as error:
        faults = "; ".join(
            f"--{item['loc'][0]}: found {item['input']!r}, {item['msg']}" for item in error.errors()
        )
        raise ParamsError(f"topwork fetch: {faults}. See topwork fetch --help.") from error


def _summary(weights: "Weights", out: Path | None) -> str:
    from topwork.classes import label_of

    names = list(label_of(weights.columns))
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    tensors = weights.state_dict.values()
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    lines = [
        f"source   {weights.provenance['source']}",
        f"SHA-256  {weights.provenance['sha256']}",
        f"builder  {weights.builder}",
        f"columns  {len(weights.columns)} ({len(names)} classes: {shown})",
        (
            f"tensors  {len(tensors)}, {sizes / 1e6:.1f} MB,"
            f" {', '.join(sorted({str(t.dtype).removeprefix('torch.') for t in tensors}))}"
        ),
    ]
    if out is not None:
        lines.append(f"written  {out}")
    return "\n".join(lines)


def _list() -> int:
    from topwork.classes import CATEGORY_SETS
    from topwork.download.torchvision_enums import entries, entry_of

    for name in entries():
        entry = entry_of(name)
        figures = ", ".join(
            f"{key} {value}"
            for metrics in entry.facts.get("published", {}).values()
            for key, value in metrics.items()
        )
        print(f"torchvision:{name:<48} {len(entry.columns):>3} columns  {figures}")
    print(f"category sets: {', '.join(CATEGORY_SETS)}")
    return 0


def _clean() -> int:
    from topwork.download.cache import Cache

    cache = Cache.default()
    freed, busy = cache.clean()
    print(
        f"{cache.root}: {freed / 1e6:.1f} MB removed"
        + (f"; {len(busy)} download(s) in progress kept" if busy else "")
    )
    return 0
