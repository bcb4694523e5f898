"""The machine's facts: packages, interpreter, git and DVC, disk, device, remote, Prefect's API."""

import importlib.util
import os
import shutil
import subprocess
import tomllib
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import topwork
from topwork.doctor.findings import Check, NoteError
from topwork.doctor.project import Project
from topwork.errors import DeviceError, TopworkError
from topwork.extras import EXTRAS
from topwork.inference.device import choose_device

COPIES = 14
"""What a run writes over the size of the pretrained weights: pretrained, grafted and fine-tuned,
each in the workspace and in DVC's cache, and two checkpoints with the optimizer's state.
"""
BESIDES_GB = 0.5
"""Tables, predictions, report."""
PATIENCE_S = 3.0


def checks(project: Project) -> list[Check]:
    """The checks of the machine that the project in the current folder would run on."""
    return [
        Check("packages", _check_packages),
        Check("interpreter", _check_interpreter),
        Check("repository", _check_repository),
        Check("remote", _check_remote),
        Check("device", lambda: _check_device(project)),
        Check("disk", lambda: _check_disk(project)),
        Check("prefect", _check_prefect),
    ]


def _check_packages() -> str:
    missing = {
        extra: [name for name in packages if importlib.util.find_spec(name) is None]
        for extra, packages in EXTRAS.items()
    }
    if missing["pipeline"]:
        raise TopworkError(
            f"{', '.join(missing['pipeline'])} aren't installed, and the stages need them: pip"
            " install 'topwork[pipeline]'"
        )
    if missing["flows"] and Path("flows").is_dir():
        raise TopworkError(
            "flows/ is here and prefect isn't installed: pip install 'topwork[flows]', or run the"
            " pipeline by `dvc repro`"
        )
    have = [extra for extra, lacking in missing.items() if not lacking]
    return f"extras {', '.join(have)}"


def _check_interpreter() -> str:
    """DVC runs stages by the `python` that PATH finds first."""
    found = shutil.which("python")
    if found is None:
        raise TopworkError(
            "no `python` in PATH, and DVC runs the stages by it. Activate the environment that"
            " topwork is installed in: source .venv/bin/activate"
        )
    command = [found, "-c", "import topwork; print(topwork.__file__)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TopworkError(
            f"`python` in PATH is {found}, and doesn't run ({error}); DVC runs the stages by it."
            " Activate the environment that topwork is installed in: source .venv/bin/activate"
        ) from error
    ours = Path(topwork.__file__).resolve()
    if done.returncode or Path(done.stdout.strip()).resolve() != ours:
        other = "has no topwork" if done.returncode else f"has another one, {done.stdout.strip()}"
        raise TopworkError(
            f"`python` in PATH is {found}, which {other}; DVC runs the stages by it. Activate the"
            " environment that this command is installed in: source .venv/bin/activate"
        )
    return f"python in PATH is {found}"


def _check_repository() -> str:
    if shutil.which("dvc") is None:
        raise TopworkError(
            "no `dvc` in PATH. Activate the environment that topwork is installed in: source"
            " .venv/bin/activate"
        )
    top = _above(".git")
    if top is None:
        raise TopworkError("no git repository here, which DVC needs: git init")
    if _above(".dvc", until=top) is None:
        inside = " --subdir" if top != Path.cwd() else ""
        raise TopworkError(f"no DVC repository here: dvc init{inside}")
    if not Path("dvc.yaml").is_file():
        raise TopworkError(
            "no dvc.yaml here, which is the pipeline. Run inside a topwork project, or make one:"
            " topwork init FOLDER --data PATH"
        )
    return "git and DVC are initialised"


def _above(name: str, until: Path | None = None) -> Path | None:
    """The nearest folder from here upwards that holds `name`."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / name).exists():
            return folder
        if folder == until:
            break
    return None


def _check_remote() -> str:
    """From DVC's own config files, without its import."""
    home = _above(".dvc")
    files = [home / ".dvc" / name for name in ("config", "config.local")] if home else []
    config = ConfigParser(interpolation=None, strict=False)
    try:
        config.read(files, encoding="utf-8")
    except ConfigError as error:
        raise TopworkError(f".dvc/config: not readable ({error}). Mend it by hand.") from error
    remotes = [name.strip("'").removeprefix('remote "').strip('"') for name in config.sections()]
    remotes = [
        name
        for name, section in zip(remotes, config.sections(), strict=True)
        if "remote" in section
    ]
    default = config.get("core", "remote", fallback=None)
    if not remotes:
        raise NoteError(
            "none: results stay on this machine. For a team or a backup: dvc remote add --default"
            " storage URL"
        )
    if default is None:
        raise NoteError(
            f"{', '.join(remotes)}, none of them the default: dvc remote default {remotes[0]}"
        )
    if default not in remotes:
        raise TopworkError(
            f".dvc/config: the default remote is {default!r}, and there are {', '.join(remotes)}:"
            f" dvc remote default {remotes[0]}"
        )
    return default


def _check_device(project: Project) -> str:
    params = project.params
    device = choose_device(params.runtime.device)
    processes = params.finetune.processes
    if processes > 1 and device.type == "cuda":
        import torch

        if processes > torch.cuda.device_count():
            raise DeviceError(
                f"finetune.processes is {processes}, and torch sees {torch.cuda.device_count()}"
                " CUDA devices; each process takes one. Lower finetune.processes."
            )
    return f"{device} (runtime.device: {params.runtime.device})"


def _check_disk(project: Project) -> str:
    weights = project.detector.weights
    size = (
        sum(tensor.numel() * 4 for tensor in weights.state_dict.values())
        if weights is not None
        else 180_000_000
    )
    return room(size, shutil.disk_usage(".").free)


def room(weights: int, free: int) -> str:
    """Hold the free bytes against what a run with weights of so many bytes writes.

    Raises:
        TopworkError: they are too few.
    """
    needed, have = COPIES * weights / 1e9 + BESIDES_GB, free / 1e9
    if have < needed:
        raise TopworkError(
            f"{have:.1f} GB are free here, and a run writes about {needed:.1f} GB. Make room (`dvc"
            " gc --workspace` removes results of earlier runs), or put DVC's cache elsewhere: dvc"
            " cache dir FOLDER"
        )
    return f"{have:.1f} GB free, about {needed:.1f} GB are needed"


def _check_prefect() -> str:
    """The API that flows would report to, where one is configured."""
    url = os.environ.get("PREFECT_API_URL") or _profile_url()
    if not Path("flows").is_dir() or not url:
        return "no server is configured; a flow starts one of its own"
    try:
        with urlopen(f"{url.rstrip('/')}/health", timeout=PATIENCE_S):
            return f"its API answers at {url}"
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TopworkError(
            f"PREFECT_API_URL is {url}, and nothing answers there ({reason}). Start the server"
            " (`python -m flows.serve`), or go without: prefect config unset PREFECT_API_URL (or"
            " unset the variable)"
        ) from error


def _profile_url() -> str | None:
    """PREFECT_API_URL of Prefect's active profile."""
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    try:
        known = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return None
    found = known.get("profiles", {}).get(known.get("active"), {}).get("PREFECT_API_URL")
    return str(found) if found else None
