"""`topwork verify-graft SOURCE RESULT RECEIPT`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two files and the receipt."""
    parser.epilog = (
        "Example: topwork verify-graft out/fetch/pretrained.safetensors"
        " out/surgery/grafted.safetensors out/surgery/receipt.json"
    )
    parser.add_argument("source", type=Path, help="weights before the graft")
    parser.add_argument("result", type=Path, help="weights after the graft")
    parser.add_argument("receipt", type=Path, help="the receipt.json that the surgery wrote")
    parser.add_argument(
        "--builder",
        help=(
            "in place of the builder that the weights name (its file moved), and to say that you"
            " trust it"
        ),
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what was verified; a difference is an error."""
    from topwork.commands.reading import trusted
    from topwork.surgery.verification import verify_graft

    held = verify_graft(
        arguments.source,
        arguments.result,
        arguments.receipt,
        builder=arguments.builder,
        trust=trusted(arguments.builder),
    )
    for sentence in held:
        print(f"holds  {sentence}")
    return 0
