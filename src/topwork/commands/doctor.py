"""`topwork doctor`: what would stop a run, and about how long one takes."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = (
        "Example: topwork doctor\n\nNothing is downloaded or changed. Exit code: 0 fine, 1 a fault"
        " that would stop a run."
    )
    parser.add_argument(
        "--no-time", action="store_true", help="don't time the detector (some seconds)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a line a check, then the time; exit code 1 where there is a fault."""
    from topwork.doctor.findings import Finding, examine
    from topwork.doctor.machine import checks
    from topwork.doctor.project import Project
    from topwork.doctor.run_time import estimate
    from topwork.errors import TopworkError

    project = Project()
    found: list[Finding] = []
    for finding in examine([*project.checks(), *checks(project)]):
        found.append(finding)
        level = "FAULT" if finding.level == "fault" else finding.level
        print(f"{level:<6}{finding.check:<13}{finding.text}", flush=True)
    if not arguments.no_time:
        try:
            print(f"{'':<6}{'time':<13}{estimate(project)}")
        except TopworkError as error:
            faulty = any(str(error) == finding.text for finding in found)
            reason = "not known before the above is mended" if faulty else str(error)
            print(f"{'':<6}{'time':<13}{reason}")
    faults = sum(finding.level == "fault" for finding in found)
    notes = sum(finding.level == "note" for finding in found)
    print(
        f"{faults} fault{'s' if faults != 1 else ''}, {notes} note{'s' if notes != 1 else ''}"
        f"{'' if faults else ': dvc repro'}"
    )
    return 1 if faults else 0
