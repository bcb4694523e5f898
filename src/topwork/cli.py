"""The command `topwork`: one module in `topwork.commands` a subcommand, imported only when it is
called.
"""

import argparse
import sys
from importlib import import_module

from topwork import __version__
from topwork.errors import TopworkError
from topwork.extras import missing_extra

COMMANDS = {
    "init": "start a project in a folder: the demo, ready to run and to be pointed at own data",
    "doctor": "what would stop a run here, what mends it, and about how long a run takes",
    "fetch": "download pretrained weights, checked and safe",
    "inspect": "look into weights: tensors, class axes, rows by class name",
    "plan": "print what a surgery would do, row by row, and change nothing",
    "verify-graft": "recompute a surgery's receipt from the two weights files",
    "diff": "show what moved between two weights files, tensor by tensor and row by row",
    "validate": "check a data set: every fault by file and id, nothing rewritten",
    "predict": "run a detector on images: pictures and JSON",
    "compare": "hold experiments side by side: params, data, weights, metrics",
    "champion": "the detector in use: show it, promote another that isn't worse, demote it",
    "export": "write ONNX, checked against PyTorch, and a model card",
    "summary": "the last run's table, its contracts, and where its report lies",
    "audit": "past experiments: list, show, verify, recompute, explain, hand on evidence",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; an error that a user can fix becomes one paragraph on stderr and exit
    code 1.
    """
    argv = sys.argv[1:] if argv is None else argv
    name = next((argument for argument in argv if not argument.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="topwork",
        description="Reproducible head surgery for object detectors, and proof of what was kept.",
        epilog="Example: topwork inspect out/fetch/pretrained.safetensors",
    )
    parser.add_argument("--version", action="version", version=f"topwork {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, text in COMMANDS.items():
        subparser = commands.add_parser(
            command,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command == name:
            import_module(_module(command)).add_arguments(subparser)
    arguments = parser.parse_args(argv)
    try:
        return int(import_module(_module(arguments.command)).run(arguments))
    except TopworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (message := missing_extra(error)) is None:
            raise
        print(f"error: topwork {arguments.command}: {message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _module(command: str) -> str:
    return f"topwork.commands.{command.replace('-', '_')}"


if __name__ == "__main__":
    raise SystemExit(main())
