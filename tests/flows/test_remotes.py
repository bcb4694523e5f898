"""DVC remotes over real protocols: what one clone pushes, another pulls, and has nothing to do."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from conftest import done
from flows_tiny import WEIGHTS, free_port, until

pytestmark = pytest.mark.long

DVC = ("python", "-m", "dvc")
SSHD = Path("/usr/sbin/sshd")
SSHD_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment(folder: Path, *wanted: str, with_ours: bool) -> Path:
    """Programs of a new environment, which may find this one's packages too."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if with_ours:
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    installed = subprocess.run([*install, *wanted], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{', '.join(wanted)}: not installed: {installed.stderr.strip()[-300:]}")
    return folder / "bin"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This environment's, with DVC's packages for SSH and S3."""
    folder = tmp_path_factory.mktemp("programs") / "venv"
    return environment(folder, f"dvc[ssh,s3]=={version('dvc')}", with_ours=True)


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Options of a DVC remote on an SSH server of its own."""
    if not SSHD.exists():
        pytest.skip("no SSH server: apt-get install openssh-server")
    # refuses to start without: the folder in which it gives up root's rights
    separation = Path("/run/sshd")
    if os.getuid() == 0:
        separation.mkdir(exist_ok=True)
    port = free_port()
    for key in ("host_key", "user_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key]
        subprocess.run(make, check=True)
    config = tmp_path / "sshd_config"
    config.write_text(SSHD_CONFIG.format(port=port, folder=tmp_path))
    with subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=subprocess.PIPE) as server:
        until(lambda: listens(port) or server.poll() is not None, 20, "it listens")
        assert server.poll() is None, server.stderr and server.stderr.read()
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout
        yield {
            "url": f"ssh://{user.strip()}@127.0.0.1:{port}{tmp_path / 'store'}",
            "keyfile": str(tmp_path / "user_key"),
        }
        server.terminate()


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Options of a DVC remote on an S3 server of its own."""
    # apart from DVC's packages: both pin botocore
    moto = environment(tmp_path / "moto", "moto[server]", with_ours=False)
    port = free_port()
    words = [moto / "python", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        until(lambda: listens(port), 60, "it listens")
        address = f"http://127.0.0.1:{port}"
        httpx.put(f"{address}/yard").raise_for_status()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield {"url": "s3://yard/store", "endpointurl": address}
        server.terminate()


@pytest.fixture
def folder() -> Iterator[dict[str, str]]:
    """Options of a DVC remote in a folder."""
    with tempfile.TemporaryDirectory() as name:
        yield {"url": name}


@pytest.mark.parametrize("protocol", ["folder", "ssh", "s3"])
def test_what_was_pushed_is_pulled_elsewhere_and_nothing_runs(
    tiny: Path,
    tmp_path: Path,
    programs: Path,
    protocol: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remote: dict[str, str] = request.getfixturevalue(protocol)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))  # what `done` runs
    done(tiny, *DVC, "remote", "add", "--quiet", "--default", "shared", remote.pop("url"))
    for option, value in remote.items():
        done(tiny, *DVC, "remote", "modify", "--quiet", "shared", option, value)
    done(tiny, *DVC, "repro", "--quiet")
    done(tiny, "git", "add", "--all")
    done(tiny, "git", "commit", "--quiet", "--message", "a run")
    done(tiny, *DVC, "push", "--quiet")
    lock = (tiny / "dvc.lock").read_bytes()
    # whatever comes from now on comes from the remote
    done(tmp_path, "git", "clone", "--quiet", str(tiny), "elsewhere")
    shutil.rmtree(tiny)
    elsewhere = tmp_path / "elsewhere"
    assert not (elsewhere / "out" / "weights").exists()
    done(elsewhere, *DVC, "pull", "--quiet")
    assert (elsewhere / "out" / "weights").read_text() == WEIGHTS
    output = done(elsewhere, *DVC, "repro")
    assert "Running stage" not in output
    assert output.count("didn't change, skipping") == 5, "the data and four stages"
    assert (elsewhere / "dvc.lock").read_bytes() == lock
    assert done(elsewhere, *DVC, "status", "--cloud") == "Cache and remote 'shared' are in sync.\n"
