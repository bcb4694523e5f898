"""More machines: two workers of one pool, each with its own clone; files for clusters."""

import contextlib
import getpass
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from flows.pipeline import pipeline
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

from conftest import ROOT, done, run
from flows_tiny import WEIGHTS, Served, epoch_mark, free_port, make_tiny, steps, until, weights
from topwork.files import sha256_file
from topwork.scaffold.template import REQUIREMENTS
from training.machines import WEIGHTS as FINETUNED
from training.machines import Machines, environment
from training.tiny import make_project

MACHINES = ROOT / "docs" / "machines"
SHARING = {"revision": "origin/main", "pull": True, "push": True}
"""Params of a run on one of several machines."""
RECORDED = """if name == "left":
"""
RECORD = """    from topwork.project import runs
    runs.end(runs.begin("left"), None)
"""
"""As every stage of topwork's own does."""


@pytest.fixture
def clones(tmp_path: Path) -> tuple[Path, Path]:
    """Two clones of a project with a git remote and a shared DVC remote; the second one's cache
    is empty.
    """
    first = make_tiny(tmp_path / "tiny")
    step = (first / "step.py").read_text()
    assert RECORDED in step
    (first / "step.py").write_text(step.replace(RECORDED, RECORDED + RECORD))
    origin = str(tmp_path / "origin.git")
    done(first, "git", "init", "--quiet", "--bare", "--initial-branch", "main", origin)
    done(first, "dvc", "remote", "add", "--quiet", "--default", "shared", str(tmp_path / "remote"))
    done(first, "git", "commit", "--quiet", "--all", "--message", "remotes")
    done(first, "git", "remote", "add", "origin", origin)
    done(first, "git", "push", "--quiet", "origin", "main")
    done(first, "dvc", "push", "--quiet")
    done(tmp_path, "git", "clone", "--quiet", origin, "second")
    return first, tmp_path / "second"


@pytest.fixture
def first(clones: tuple[Path, Path]) -> Iterator[Served]:
    """The first machine, with the server."""
    served = Served(clones[0])
    served.start()
    yield served
    served.stop()


def records(project: Path) -> dict[str, bytes]:
    """Records of runs of stages."""
    return {path.name: path.read_bytes() for path in (project / ".topwork" / "runs").iterdir()}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_two_workers_with_clones_of_their_own_share_what_they_made(
    clones: tuple[Path, Path], first: Served
) -> None:
    folder, other = clones
    first.pace.write_text("3")
    one = first.submit(params={"finetune.seed": 1}, **SHARING)
    until(epoch_mark(folder, 0, 1).exists, 180, first.output)
    (worker,) = [part for part in first.processes("worker") if "start" in part.cmdline()]
    worker.suspend()  # whatever is asked for now is the other one's

    environment = first.client_environment() | {
        "TOPWORK_ROOT": str(other),
        "PYTHONPATH": os.pathsep.join([str(other), os.environ.get("PYTHONPATH", "")]),
    }
    words = ["-m", "prefect", "worker", "start", "--pool", "topwork", "--name", "second"]
    with subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, cwd=other
    ) as second:
        try:
            # of another deployment: one at a time of each, over all machines
            look = {"data": "committed", "only_new_data": False, "collision": "wait", **SHARING}
            two = first.submit("pipeline/on-new-data", params={"finetune.seed": 2}, **look)
            until(epoch_mark(other, 0, 2).exists, 180, first.output)
            assert first.state(one)["type"] == "RUNNING", "side by side"
            first.pace.write_text("0")
            assert first.ended(two, 240)["type"] == "COMPLETED", first.state(two)["message"]
            assert first.ended(one, 240)["type"] == "COMPLETED", first.state(one)["message"]
            made = [first.state(run)["message"].removeprefix("kept as ") for run in (one, two)]
            pushed = done(folder, "git", "ls-remote", "origin", "refs/exps/*")
            assert all(f"/{name}\n" in pushed for name in made)

            # what the first machine made is the second one's as well, and the other way round
            again = first.submit(params={"finetune.seed": 1}, **SHARING)
            assert first.ended(again, 240)["name"] == "Unchanged"
            assert first.state(again)["message"] == f"nothing has changed: as {made[0]}"
            assert weights(other, made[0]) == WEIGHTS
            assert records(other).items() >= records(folder).items()
        finally:
            for process in psutil.Process(second.pid).children(recursive=True):
                process.kill()
            second.kill()
    worker.resume()
    again = first.submit(params={"finetune.seed": 2}, **SHARING)
    assert first.ended(again, 240)["name"] == "Unchanged"
    assert first.state(again)["message"] == f"nothing has changed: as {made[1]}"
    assert weights(folder, made[1]) == WEIGHTS
    assert len(records(folder)) == 2
    assert records(folder) == records(other)
    assert sorted(made) == sorted(
        name
        for name in done(folder, "dvc", "exp", "list", "--name-only").split()
        if name in done(other, "dvc", "exp", "list", "--name-only").split()
    )


SLURM_CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=32 RealMemory=2000 Gres=gpu:4
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={host}2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=one Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=both Nodes={host},{host}2 MaxTime=INFINITE State=UP
"""
"""Two machines, which both are this one, with four GPUs each that are none."""
DEVICES = ("null", "zero", "full", "random")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slurm, for `sbatch` and its like in this process's environment."""
    for program in ("slurmctld", "slurmd", "munged", "sbatch"):
        if not (shutil.which(program) or Path("/usr/sbin", program).exists()):
            pytest.skip("no Slurm: apt-get install slurm-wlm munge")
    host = socket.gethostname().partition(".")[0]
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as programs:
        folder = Path(name)
        folder.chmod(0o755)  # munged asks for it
        about = {"host": host, "user": getpass.getuser()}
        ports = [free_port() for _ in range(3)]
        (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, ports=ports, **about))
        (folder / "gres.conf").write_text(
            "".join(f"NodeName={host},{host}2 Name=gpu File=/dev/{name}\n" for name in DEVICES)
        )
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        (folder / "state").mkdir()
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
        files = {"socket": "sock", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
        for words in (
            ["munged", "--foreground", *options, f"--log-file={folder}/munge.log"],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", host],
            ["slurmd", "-D", "-N", f"{host}2"],
        ):
            program = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            programs.callback(program.wait)
            programs.callback(program.terminate)
            time.sleep(1)
        states = ("sinfo", "--noheader", "--Node", "--format=%T")
        until(lambda: set(done(folder, *states).split()) == {"idle"}, 60, "the nodes are ready")
        yield


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_slurm_job_takes_a_run_and_a_cancelled_one_is_gone_on_with(
    clones: tuple[Path, Path], first: Served, slurm: None
) -> None:
    _, other = clones
    (worker,) = [part for part in first.processes("worker") if "start" in part.cmdline()]
    worker.suspend()
    (other / ".venv").symlink_to(sys.prefix)
    shutil.copyfile(MACHINES / "worker.sbatch", other / "worker.sbatch")
    smaller = ("--cpus-per-task=1", "--mem=500M", "--output=/dev/null", "--parsable")

    def idle() -> bool:
        return not done(other, "squeue", "--noheader")

    def submit_job() -> str:
        ended = subprocess.run(
            ["sbatch", *smaller, "worker.sbatch"],
            cwd=other,
            env=first.client_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return ended.stdout.strip()

    first.pace.write_text("2")
    cancelled = first.submit(**SHARING)
    job = submit_job()
    until(epoch_mark(other, 1).exists, 120, first.output)
    done(other, "scancel", job)
    until(lambda: not steps(other), 60, "it ends with its job")
    first.pace.write_text("0")
    until(idle, 120, "the job has ended")
    again = first.submit("pipeline/on-new-data", data="committed", only_new_data=False, **SHARING)
    submit_job()
    assert first.ended(again, 240)["type"] == "COMPLETED"
    name = first.state(again)["message"].removeprefix("kept as ")
    assert weights(other, name) == WEIGHTS
    logs = first.post("/logs/filter", logs={"flow_run_id": {"any_": [again]}}, limit=200)
    assert "epoch 0" not in [entry["message"] for entry in logs], "what was trained isn't again"
    assert first.ended(cancelled, 60)["type"] in ("CRASHED", "CANCELLED")
    until(idle, 120, "the job ends with its run")
    worker.resume()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_slurm_job_trains_over_two_machines(slurm: None, tmp_path: Path) -> None:
    machines = Machines(tmp_path, make_project(tmp_path / "first", train=32, epochs=2))
    expected = machines.run(1, 8)
    shared = machines.folders[0]  # a disk that both see
    machines.write(shared, 2, 4)
    (shared / ".venv").symlink_to(sys.prefix)
    words = ("sbatch", "--parsable", "--partition", "both")
    script = str(MACHINES / "finetune.sbatch")
    refused = run(shared, *words, "--gres=gpu:8", script)
    assert "Requested node configuration is not available" in refused.stderr
    job = subprocess.run(
        [*words, script], cwd=shared, env=environment(), capture_output=True, text=True, check=True
    ).stdout.strip()
    until(lambda: not done(shared, "squeue", "--noheader"), 300, "the job has ended")
    log = (shared / f"slurm-{job}.log").read_text()
    assert (shared / FINETUNED).is_file(), log
    assert sha256_file(shared / FINETUNED) == expected


def test_scripts_are_bash() -> None:
    scripts = sorted(MACHINES.glob("*.sbatch"))
    assert len(scripts) == 2
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        head, _, body = script.read_text().partition("set -euo pipefail\n")
        assert "#SBATCH --" in head
        assert "#SBATCH" not in body, "Slurm reads none after the first command"


KINDS = ("docker", "kubernetes")


def register(served: Served, file: Path, kind: str) -> subprocess.CompletedProcess[str]:
    """Make a pool of a kind, and register a file's deployments."""
    template = MACHINES / f"{kind}.json"
    more = ("--base-job-template", str(template)) if template.exists() else ()
    pool = ("work-pool", "create", f"topwork-{kind}", "--type", kind, "--overwrite", *more)
    for words in (pool, ("--no-prompt", "deploy", "--all", "--prefect-file", str(file))):
        ended = subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            cwd=served.project,
            env=served.client_environment(),
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            break
    return ended


def test_the_image_is_made_of_what_a_project_has() -> None:
    """Read, not built: no Docker here."""
    text = (MACHINES / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert {line[0] for line in lines} <= {"FROM", "RUN", "COPY", "ENV"}
    of = {line[0]: line[1:] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    image, _, tag = of["FROM"][0].partition(":")
    assert image == "python"
    assert SpecifierSet(project["requires-python"]).contains(tag.removesuffix("-slim"))
    copied, target = of["COPY"]
    assert copied == REQUIREMENTS
    assert of["RUN"][-2:] == ["--requirement", target]
    flows = (ROOT / "flows" / "__init__.py").read_text(encoding="utf-8")
    for setting in of["ENV"]:
        name, value = setting.split("=")
        assert value in ("1", "false")
        assert name == "DVC_NO_ANALYTICS" or name in flows, name


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_deployments_for_containers_are_taken_by_the_server(
    served: Served, tmp_path: Path, kind: str
) -> None:
    taken = register(served, MACHINES / f"{kind}.yaml", kind)
    assert taken.returncode == 0, taken.stdout + taken.stderr
    deployment = served.get(f"/deployments/name/pipeline/nightly-{kind}")
    assert deployment["global_concurrency_limit"]["limit"] == 1
    asked = set(deployment["parameters"])
    assert asked <= set(inspect.signature(pipeline.fn).parameters)
    text = (MACHINES / f"{kind}.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(
        text.replace("image: registry.example.org/yard:1", "image: 1")
    )
    refused = register(served, tmp_path / "wrong.yaml", kind)
    assert refused.returncode != 0, "the server looks at job variables"
    assert "of the given schemas" in refused.stdout + refused.stderr


@pytest.mark.long
def test_what_a_container_does_first_makes_the_clone_once(
    clones: tuple[Path, Path], served: Served, tmp_path: Path
) -> None:
    text = (MACHINES / "docker.yaml").read_text()
    assert (
        YAML(typ="safe").load(MACHINES / "kubernetes.yaml")["pull"]
        == (YAML(typ="safe").load(text)["pull"])
    )
    text = text.replace("https://git.example.org/yard.git", str(tmp_path / "origin.git"))
    text = text.replace("/srv/yard", str(tmp_path / "work" / "yard"))
    code = (
        "import json, asyncio, os, sys\n"
        "from prefect.deployments.steps.core import run_steps\n"
        "asyncio.run(run_steps(json.loads(sys.argv[1])))\n"
        "print(os.getcwd())\n"
    )
    pull = json.dumps(YAML(typ="safe").load(text)["pull"])
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", code, pull],
            env=served.client_environment(),
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == str(tmp_path / "work" / "yard")
    assert (tmp_path / "work" / "yard" / "dvc.yaml").is_file()


CHECK = """
import asyncio, json, sys
from prefect_docker.worker import DockerWorkerJobConfiguration, DockerWorker
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
kind, variables, template = json.loads(sys.argv[1])
configuration = {"docker": DockerWorkerJobConfiguration,
                 "kubernetes": KubernetesWorkerJobConfiguration}[kind]
template = template or DockerWorker.get_default_base_job_template()
made = asyncio.run(configuration.from_template_and_values(template, variables))
print(json.dumps(made.model_dump(mode="json")))
"""


@pytest.mark.long
def test_workers_make_of_them_what_is_meant(served: Served, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    wanted = ["prefect-docker", "prefect-kubernetes", f"prefect=={version('prefect')}"]
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"{', '.join(wanted)}: not installed: {installed.stderr.strip()[-300:]}")
    made = {}
    for kind in KINDS:
        (deployment,) = YAML(typ="safe").load(MACHINES / f"{kind}.yaml")["deployments"]
        template = MACHINES / f"{kind}.json"
        about = json.dumps(
            [
                kind,
                deployment["work_pool"]["job_variables"],
                json.loads(template.read_text()) if template.exists() else None,
            ]
        )
        ended = subprocess.run(
            [python, "-c", CHECK, about],
            env=served.client_environment(),
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        made[kind] = json.loads(ended.stdout.splitlines()[-1])
    assert made["docker"]["volumes"] == ["yard:/srv"]
    assert made["docker"]["container_create_kwargs"] == {"runtime": "nvidia"}
    job = made["kubernetes"]["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert container["image"] == "registry.example.org/yard:1"
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "yard"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {"work", "shm"}
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
