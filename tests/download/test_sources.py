"""Every kind of source, the lock, the stage and the command."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from torch import Tensor, nn

from download.misbehaving import Misbehaving, Reply
from download.test_transport import proxy
from topwork.classes import BACKGROUND, category_set
from topwork.cli import main
from topwork.download.cache import Cache
from topwork.download.lock import Known, absolute_name, read_lock, record, write_lock
from topwork.download.sources import fetch
from topwork.errors import ChecksumError, TopworkError, WeightsError
from topwork.params.document import parse_params
from topwork.params.fetch import FetchParams
from topwork.stages import fetch as stage
from topwork.weights.fit import check_fit
from topwork.weights.format import Weights, read_weights, write_weights
from weights.test_load_raw import Evil

BUILDER = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.head = nn.Linear(4, num_classes)

def build(num_classes):
    return Tiny(num_classes)
"""


def tiny(columns: int = 3, prefix: str = "") -> dict[str, Tensor]:
    torch.manual_seed(0)
    layers = {"trunk": nn.Linear(3, 4), "head": nn.Linear(4, columns)}
    return {
        f"{prefix}{name}.{key}": tensor
        for name, layer in layers.items()
        for key, tensor in layer.state_dict().items()
    }


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def builder(plain_environment: None) -> None:
    Path("detector.py").write_text(BUILDER)


def local(**kwargs: Any) -> FetchParams:
    return FetchParams(
        **{
            "source": "w.pth",
            "builder": "detector.py:build",
            "classes": ["person", "dog"],
            **kwargs,
        }
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def quiet(text: str) -> None:
    """Nobody listens."""


# local files


def test_local_file() -> None:
    messages: list[str] = []
    Path("w.pth").write_bytes(saved(tiny()))
    weights = fetch(local(), notify=messages.append)
    assert weights.columns == (BACKGROUND, "person", "dog")
    assert all(torch.equal(weights.state_dict[name], tensor) for name, tensor in tiny().items())
    digest = sha256(Path("w.pth").read_bytes())
    assert weights.provenance["sha256"] == digest
    assert weights.provenance["builder_sha256"] == sha256(BUILDER.encode())
    assert read_lock() == {"w.pth": digest}
    assert messages == [
        f"w.pth: seen for the first time, SHA-256 {digest} written to weights.lock. Commit it: from"
        " now on no other content is accepted."
    ]
    fetch(local(), notify=messages.append)
    assert len(messages) == 1


def test_changed_file_needs_to_be_accepted() -> None:
    Path("w.pth").write_bytes(saved(tiny()))
    before = fetch(local(), notify=quiet).provenance["sha256"]
    Path("w.pth").write_bytes(saved({name: tensor + 1 for name, tensor in tiny().items()}))
    after = sha256(Path("w.pth").read_bytes())
    with pytest.raises(
        ChecksumError,
        match=(
            rf"w\.pth: SHA-256 found {after}, expected {before} \(weights\.lock\).*topwork fetch"
            r" w\.pth --accept"
        ),
    ):
        fetch(local(), notify=quiet)
    assert read_lock() == {"w.pth": before}
    messages: list[str] = []
    fetch(local(), accept=True, notify=messages.append)
    assert read_lock() == {"w.pth": after}
    assert f"changed (before: {before})" in messages[0]


def test_pinned_hash() -> None:
    Path("w.pth").write_bytes(saved(tiny()))
    digest = sha256(Path("w.pth").read_bytes())
    fetch(local(sha256=digest.upper()), notify=quiet)
    with pytest.raises(
        ChecksumError,
        match=rf"found {digest}, expected {'0' * 64} \(fetch\.sha256 in params\.yaml\)",
    ):
        fetch(local(sha256="0" * 64), accept=True, notify=quiet)


def test_a_pin_that_contradicts_the_lock() -> None:
    Path("w.pth").write_bytes(saved(tiny()))
    digest = sha256(Path("w.pth").read_bytes())
    write_lock({"w.pth": "0" * 64})
    messages: list[str] = []
    fetch(local(sha256=digest), notify=messages.append)
    assert read_lock() == {"w.pth": digest}, "params.yaml is the user's own word, and newer"
    assert "changed (before: 000" in messages[0]


def test_nothing_is_locked_when_the_file_is_refused() -> None:
    Path("w.pth").write_bytes(saved(nn.Linear(2, 2)))
    with pytest.raises(WeightsError, match=r"w\.pth: refused"):
        fetch(local(), notify=quiet)
    assert not Path("weights.lock").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"builder": None},
            r"w\.pth: doesn't name its detector\. Name it under fetch\.builder",
        ),
        (
            {"classes": None},
            r"w\.pth: comes without class names\. Name its columns under fetch\.classes.*coco-91",
        ),
        (
            {"source": "v.pth"},
            (
                r"fetch\.source: v\.pth: no such file, expected a file, or a source of another kind"
                r" \(demo, torchvision:"
            ),
        ),
        ({"source": "s3://bucket/w.pth"}, r"fetch\.source: s3://bucket/w\.pth: no such file"),
        ({"source": "."}, r"fetch\.source: \.: a folder, expected a file"),
    ],
    ids=["no builder", "no classes", "missing", "unknown kind", "folder"],
)
def test_what_is_missing_is_named(change: dict[str, Any], message: str) -> None:
    Path("w.pth").write_bytes(saved(tiny()))
    with pytest.raises(WeightsError, match=message):
        fetch(local(**change), notify=quiet)


def test_absolute_paths_stay_out_of_lock_and_provenance(tmp_path: Path) -> None:
    (tmp_path / "abs.pth").write_bytes(saved(tiny()))
    weights = fetch(local(source=str(tmp_path / "abs.pth")), notify=quiet)
    assert str(tmp_path) not in json.dumps(weights.provenance) + Path("weights.lock").read_text()


def test_two_absolute_files_of_one_name_are_two_sources(tmp_path: Path) -> None:
    for folder, scale in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        state = {name: tensor * scale for name, tensor in tiny().items()}
        (tmp_path / folder / "best.pth").write_bytes(saved(state))
    for folder in ("a", "b", "a"):
        fetch(local(source=str(tmp_path / folder / "best.pth")), notify=quiet)
    assert len(read_lock()) == 2
    (tmp_path / "b" / "best.pth").write_bytes(saved(tiny()))  # that of a
    with pytest.raises(ChecksumError, match=r"^best\.pth@[0-9a-f]{8}: .*the source has changed"):
        fetch(local(source=str(tmp_path / "b" / "best.pth")), notify=quiet)


def test_locks_lie_in_the_cache_and_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    Path("w.pth").write_bytes(saved(tiny()))
    cache = Cache(tmp_path / "cache")
    for number in range(3):
        fetch(local(), lock=Path(f"{number}.lock"), cache=cache, notify=quiet)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert len(list((tmp_path / "cache" / "locks").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_is_read_only_stops_no_local_file(tmp_path: Path) -> None:
    Path("w.pth").write_bytes(saved(tiny()))
    (tmp_path / "cache").mkdir(mode=0o555)
    fetch(local(), cache=Cache(tmp_path / "cache"), notify=quiet)
    assert len(read_lock()) == 1


@pytest.mark.parametrize("prefix", ["model/module.", None, "model"])
def test_the_hint_of_a_wrapped_checkpoint_is_the_prefix_that_works(prefix: str | None) -> None:
    Path("w.pth").write_bytes(saved({"model": tiny(prefix="module."), "optimizer": {"state": {}}}))
    if prefix == "model/module.":
        assert fetch(local(prefix=prefix), notify=quiet).state_dict.keys() == tiny().keys()
        return
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny().items()}
    with pytest.raises(WeightsError, match=r"`fetch\.prefix: model/module\.`"):
        check_fit(fetch(local(prefix=prefix), notify=quiet), shapes)


def test_commands_find_a_builder_of_the_project_as_stages_do(tmp_path: Path) -> None:
    """`module:function` in the current folder; the command is a program of its own folder."""
    (tmp_path / "own_builder_of_project.py").write_text(BUILDER)
    (tmp_path / "w.pth").write_bytes(saved(tiny()))
    builder = "own_builder_of_project:build"
    command = [str(Path(sys.executable).parent / "topwork"), "fetch", "w.pth"]
    command += ["--builder", builder, "--classes", "person,dog", "--out", "w.safetensors"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("error")) == (0, 0), ran.stderr


def test_prefix() -> None:
    Path("w.pth").write_bytes(saved({"state_dict": tiny(prefix="model."), "epoch": 3}))
    weights = fetch(local(prefix="state_dict/model."), notify=quiet)
    assert weights.state_dict.keys() == tiny().keys()
    assert weights.provenance["prefix"] == "state_dict/model."


def test_own_weights_bring_everything() -> None:
    write_weights(
        Path("w.safetensors"),
        Weights(
            tiny(),
            (BACKGROUND, "person", "dog"),
            "detector.py:build",
            provenance={"source": "elsewhere"},
        ),
    )
    weights = fetch(FetchParams(source="w.safetensors", builder="detector.py:build"), notify=quiet)
    assert weights.columns == (BACKGROUND, "person", "dog")
    assert weights.builder == "detector.py:build"
    assert weights.provenance["origin"] == {"source": "elsewhere"}
    with pytest.raises(WeightsError, match=r"fetch\.classes: found 91 columns, the weights have 3"):
        fetch(
            FetchParams(source="w.safetensors", builder="detector.py:build", classes="coco-91"),
            notify=quiet,
        )
    with pytest.raises(
        WeightsError,
        match=(
            r"w\.safetensors: .* column 1 is 'person', fetch\.classes has 'dog'; column 2 is"
            r" 'dog', .*'person'"
        ),
    ):
        fetch(
            FetchParams(
                source="w.safetensors", builder="detector.py:build", classes=["dog", "person"]
            ),
            notify=quiet,
        )


def test_a_file_doesnt_choose_which_code_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    """A builder is a function that is called with the file's arguments; `logging:basicConfig` would
    empty a file of its choice.
    """
    Path("trap.py").write_text("def build(num_classes, name):\n    open(name, 'w').close()\n")
    write_weights(
        Path("w.safetensors"),
        Weights(tiny(), (BACKGROUND, "person"), "trap.py:build", {"name": "made"}),
    )
    assert main(["fetch", "w.safetensors"]) == 1
    assert (
        "w.safetensors: its metadata asks for the builder 'trap.py:build' with {'name': 'made'}"
        in capsys.readouterr().err
    )
    assert not Path("made").exists()
    assert not Path("weights.lock").exists()
    assert main(["fetch", "w.safetensors", "--builder", "trap.py:build"]) == 1, (
        "no detector, but called: the trap is real"
    )
    assert Path("made").exists()


def test_torchvisions_builders_need_no_word() -> None:
    write_weights(
        Path("w.safetensors"), Weights(tiny(), (BACKGROUND, "person", "dog"), "ssd300_vgg16")
    )
    assert fetch(FetchParams(source="w.safetensors"), notify=quiet).builder == "ssd300_vgg16"


def test_the_command_that_accepts_names_the_file_as_given(tmp_path: Path) -> None:
    """The lock holds the bare name of an absolute path; the command must find the file."""
    path = tmp_path / "abs.pth"
    path.write_bytes(saved(tiny()))
    write_lock({absolute_name(path): "0" * 64})
    with pytest.raises(
        ChecksumError, match=rf"^abs\.pth@\w+: SHA-256 .*topwork fetch {path} --accept"
    ):
        fetch(local(source=str(path)), notify=quiet)


# lock


@pytest.mark.parametrize(
    "text",
    ["- a\n", "a: 1\n", "a: deadbeef\n", "a: [\n", "\x00"],
    ids=["list", "number", "short", "broken", "binary"],
)
def test_damaged_lock(text: str) -> None:
    Path("weights.lock").write_text(text)
    with pytest.raises(
        WeightsError, match=r"weights\.lock: .* Restore it: git checkout -- weights\.lock"
    ):
        read_lock()


def test_lock_round_trip() -> None:
    assert read_lock() == {}
    lock = {'odd "name": #1': "0" * 64, "ä": "1" * 64, "a": "12" * 32}
    write_lock(lock)
    assert read_lock() == lock
    record("b", "3" * 64)
    assert read_lock() == {**lock, "b": "3" * 64}
    first = Path("weights.lock").read_text()
    assert first.startswith("# SHA-256 of each weights source")
    assert "--accept" in first


def test_known_quotes_the_command() -> None:
    with pytest.raises(ChecksumError, match=r"topwork fetch 'my weights\.pth' --accept"):
        Known("my weights.pth", locked="0" * 64).verify("1" * 64)


# http


def test_url(server: Misbehaving) -> None:
    content = saved(tiny())
    server.plan["/w.pth?token=s3cret"] = Reply(content)
    params = local(source=f"{server.url}/w.pth?token=s3cret")
    weights = fetch(params, notify=quiet)
    assert weights.provenance["source"] == f"{server.url}/w.pth?token=***"
    assert weights.provenance["file"] == "w.pth"
    assert "s3cret" not in Path("weights.lock").read_text()
    assert (
        fetch(params.model_copy(update={"offline": True}), notify=quiet).provenance
        == weights.provenance
    )


def test_url_whose_content_changes(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, new = saved(tiny()), saved({name: tensor + 1 for name, tensor in tiny().items()})
    url = f"{server.url}/w.pth"
    server.plan["/w.pth"] = Reply(old)
    fetch(local(source=url), notify=quiet)
    server.plan["/w.pth"] = Reply(new, etag='"v2"')
    monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(
        ChecksumError,
        match=f"found {sha256(new)}, expected {sha256(old)} .*topwork fetch {url} --accept",
    ):
        fetch(local(source=url), notify=quiet)
    fetch(local(source=url), accept=True, notify=quiet)
    assert read_lock() == {url: sha256(new)}
    write_lock({url: sha256(old)})
    server.plan["/w.pth"] = Reply(old)
    assert fetch(local(source=url), notify=quiet).provenance["sha256"] == sha256(old), (
        "a cache with other content doesn't stand in the way"
    )


def test_accept_goes_to_the_source_not_to_the_cache(server: Misbehaving) -> None:
    url = f"{server.url}/w.pth"
    server.plan["/w.pth"] = [
        Reply(saved(tiny())),
        Reply(saved({name: tensor + 1 for name, tensor in tiny().items()}), etag='"v2"'),
    ]
    first = fetch(local(source=url), notify=quiet).provenance["sha256"]
    second = fetch(local(source=url), accept=True, notify=quiet).provenance["sha256"]
    assert first != second
    assert read_lock() == {url: second}


def test_a_refused_answer_isnt_taken_from_the_cache_ever_after(server: Misbehaving) -> None:
    """First a login page, then the file."""
    url = f"{server.url}/w.pth"
    server.plan["/w.pth"] = [Reply(b"<html>Sign in"), Reply(saved(tiny()))]
    with pytest.raises(
        WeightsError, match=rf"{url}: begins with '<html>Si'.*looks like a web page"
    ):
        fetch(local(source=url), notify=quiet)
    assert not Path("weights.lock").exists()
    assert fetch(local(source=url), notify=quiet).provenance["sha256"] == sha256(saved(tiny()))


def test_capitals_in_the_address(server: Misbehaving) -> None:
    server.plan["/w.pth"] = Reply(saved(tiny()))
    weights = fetch(local(source=f"{server.url.replace('http', 'HTTP')}/w.pth"), notify=quiet)
    assert weights.provenance["source"] == f"{server.url}/w.pth"


def test_malicious_pickle_over_http(
    server: Misbehaving, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{server.url}/w.pth"
    server.plan["/w.pth"] = Reply(saved({"head": Evil(Path("made"))}))
    line = [
        "fetch",
        url,
        "--builder",
        "detector.py:build",
        "--classes",
        "person,dog",
        "--out",
        "w.safetensors",
    ]
    assert main(line) == 1
    err = capsys.readouterr().err
    assert re.search(
        rf"error: {url}: refused: it asks for `(posix|os)\.system`, and loading it would run code",
        err,
    )
    assert not any(Path(name).exists() for name in ("made", "weights.lock", "w.safetensors"))


@pytest.mark.parametrize(
    ("value", "offline"),
    [("1", True), ("yes", True), ("0", False), ("", False), ("false", False), ("OFF", False)],
)
def test_offline_switch_of_the_environment(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch, value: str, offline: bool
) -> None:
    server.plan["/w.pth"] = Reply(saved(tiny()))
    monkeypatch.setenv("TOPWORK_OFFLINE", value)
    if offline:
        with pytest.raises(WeightsError, match=r"not in the cache .*fetch\.offline is on"):
            fetch(local(source=f"{server.url}/w.pth"), notify=quiet)
    else:
        fetch(local(source=f"{server.url}/w.pth"), notify=quiet)
    assert len(server.seen) == (not offline)


def test_environment_switches(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    server.plan["/m/a/w.pth"] = Reply(saved(tiny()))
    params = local(source="https://weights.example/a/w.pth")
    monkeypatch.setenv("TOPWORK_MIRROR", f"{server.url}/m")
    monkeypatch.setenv("TOPWORK_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"https://weights\.example/a/w\.pth: not in the cache"):
        fetch(params, notify=quiet)
    monkeypatch.setenv("TOPWORK_OFFLINE", "0")
    assert fetch(params, notify=quiet).provenance["source"] == params.source


# dvc


def git(folder: Path, *arguments: str) -> str:
    identity = [
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "commit.gpgsign=false",
    ]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def published_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository with two versions of best.pth, pushed to a remote next to it, its own cache
    emptied.
    """
    from dvc.repo import Repo

    above = tmp_path_factory.mktemp("published")
    folder = above / "models"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("DVC_SITE_CACHE_DIR", str(above / "site"))
        publish(folder, Repo)
    return above


def publish(folder: Path, repository: Any) -> None:
    git(folder, "init")
    repo = repository.init(str(folder))
    with repo.config.edit() as config:
        config["core"]["remote"] = "store"
        config["remote"]["store"] = {"url": str(folder.parent / "store")}
    for version, shift in (("v1", 0), ("v2", 1)):
        (folder / "best.pth").write_bytes(
            saved({name: tensor + shift for name, tensor in tiny().items()})
        )
        repo.add(str(folder / "best.pth"))
        repo.push()
        git(folder, "add", "-A")
        git(folder, "commit", "-m", version)
        git(folder, "tag", version)
    repo.close()
    (folder / "best.pth").unlink()
    shutil.rmtree(folder / ".dvc" / "cache")


@pytest.fixture
def models(published_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own copy of the repository; the remote is shared."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return Path(shutil.copytree(published_models / "models", tmp_path / "models"))


def test_dvc(models: Path) -> None:
    messages: list[str] = []
    first = fetch(local(source="dvc:../models#best.pth@v1"), notify=messages.append)
    assert torch.equal(first.state_dict["head.bias"], tiny()["head.bias"])
    assert first.provenance["source"] == "dvc:../models#best.pth@v1"
    newest = fetch(local(source="dvc:../models#best.pth"), notify=messages.append)
    assert torch.equal(newest.state_dict["head.bias"], tiny()["head.bias"] + 1)
    shutil.rmtree(models)
    again = fetch(local(source="dvc:../models#best.pth@v1", offline=True), notify=messages.append)
    assert again.provenance == first.provenance
    assert set(read_lock()) == {"dvc:../models#best.pth@v1", "dvc:../models#best.pth"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "dvc:../models#worst.pth@v1",
            r"dvc:\.\./models#worst\.pth@v1: worst\.pth not found in \.\./models at v1",
        ),
        (
            "dvc:../models#best.pth@v3",
            (
                r"dvc:\.\./models#best\.pth@v3: DVC can't get it \(.*v3.*Try by hand: dvc get"
                r" \.\./models best\.pth --rev v3"
            ),
        ),
        ("dvc:../nowhere#best.pth", r"dvc:\.\./nowhere#best\.pth: DVC can't get it"),
        ("dvc:best.pth", r"dvc:best\.pth: expected dvc:REPO#PATH@REV"),
        (
            "dvc:https://me:s3cret@example.org/models.git#best.pth",
            r"https://example\.org/models\.git: the address holds a user or password",
        ),
        (
            "dvc:https://127.0.0.1:9/models.git#best.pth",
            r"dvc:https://127\.0\.0\.1:9/models\.git#best\.pth: DVC can't get it \(.*refused",
        ),
    ],
    ids=["path", "revision", "repository", "form", "credentials", "nobody there"],
)
def test_dvc_errors(models: Path, source: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        fetch(local(source=source), notify=quiet)
    assert "s3cret" not in str(caught.value)
    assert not list((models.parent / "cache").rglob("part"))


def test_dvc_offline_and_too_big(models: Path) -> None:
    with pytest.raises(WeightsError, match=r"not in the cache .*fetch\.offline is on"):
        fetch(local(source="dvc:../models#best.pth", offline=True), notify=quiet)
    with pytest.raises(WeightsError, match=r"bytes, the limit is 1,073\. Raise fetch\.max_gib"):
        fetch(local(source="dvc:../models#best.pth", max_gib=1e-6), notify=quiet)


# hub


@contextmanager
def hub(
    server: Misbehaving, content: bytes, digest: str | None = None, file: str = "sub/w.pth"
) -> Iterator[str]:
    """A hub on loopback: its API's answer about one repository, and the file at one commit, which
    lies in a store on another host.
    """
    commit = "c" * 40
    sibling: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": "b"}
    if digest is not None:
        sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 1}
    info = {
        "_id": "1",
        "id": "acme/tiny",
        "modelId": "acme/tiny",
        "sha": commit,
        "private": False,
        "tags": [],
        "downloads": 0,
        "siblings": [sibling],
    }
    answer = Reply(json.dumps(info).encode(), headers={"Content-Type": "application/json"})
    store = server.url.replace("127.0.0.1", "localhost")
    server.plan |= {
        "/api/models/acme/tiny/revision/v1?blobs=true": answer,
        f"/acme/tiny/resolve/{commit}/{quote(file)}": Reply(
            status=302, headers={"Location": f"{store}/blob?Signature=abc"}
        ),
        "/blob?Signature=abc": [Reply(content, cut=100), Reply(content)],
    }
    yield server.url


def test_hub(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    content = saved(tiny())
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    with hub(server, content, sha256(content)) as endpoint:
        params = local(source="hf:acme/tiny/sub/w.pth@v1", mirror=endpoint)
        messages: list[str] = []
        weights = fetch(params, notify=messages.append)
    assert weights.provenance["source"] == "hf:acme/tiny/sub/w.pth@v1"
    assert weights.provenance["file"] == "w.pth"
    assert [
        (request.path[:5], request.headers.get("authorization")) for request in server.seen
    ] == [
        ("/api/", "Bearer hf_s3cret"),
        *[("/acme", "Bearer hf_s3cret"), ("/blob", None)] * 2,
    ], "the store has no business with the token"
    assert server.ranges()[-1] == "bytes=100-", "our own download, with all it can do"
    assert "hf_s3cret" not in "".join(messages)
    assert (
        fetch(params.model_copy(update={"offline": True}), notify=quiet).provenance
        == weights.provenance
    )


def test_hub_file_with_an_odd_name(server: Misbehaving) -> None:
    pytest.importorskip("huggingface_hub")
    content = saved(tiny())
    with hub(server, content, sha256(content), file="sub/w 1+ä.pth") as endpoint:
        weights = fetch(
            local(source="hf:acme/tiny/sub/w 1+ä.pth@v1", mirror=f"{endpoint}/"), notify=quiet
        )
    assert weights.provenance["file"] == "w 1+ä.pth"


def test_hub_that_isnt_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    with pytest.raises(
        WeightsError,
        match=(
            r"hf:acme/tiny/w\.pth@v1: the hub at http://127\.0\.0\.1:9 doesn't give it"
            r" \(.*refused.*fetch\.mirror"
        ),
    ):
        fetch(local(source="hf:acme/tiny/w.pth@v1", mirror="http://127.0.0.1:9"), notify=quiet)


def test_hub_token_that_cant_stand_in_a_header(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr\net")
    with pytest.raises(
        WeightsError, match=r"the credentials for 127\.0\.0\.1 hold .*HF_TOKEN"
    ) as caught:
        fetch(local(source="hf:acme/tiny/w.pth@v1", mirror=server.url), notify=quiet)
    assert "s3cr" not in str(caught.value)
    assert server.seen == []


def test_hub_token_is_not_sent_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror by plain http on another machine: a proxy on loopback sees what would go over the
    wire.
    """
    hub_library = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    # it keeps connections, and with them the proxy of when it was first used
    hub_library.close_session()
    with proxy() as (address, asked):
        monkeypatch.setenv("HTTP_PROXY", address)
        with pytest.raises(WeightsError, match=r"the hub at http://hub\.example doesn't give it"):
            fetch(local(source="hf:acme/tiny/w.pth@v1", mirror="http://hub.example"), notify=quiet)
    hub_library.close_session()
    assert asked
    assert not any("authorization" in headers for _, headers in asked)


def test_hub_errors(server: Misbehaving) -> None:
    pytest.importorskip("huggingface_hub")
    content = saved(tiny())
    with hub(server, content, "0" * 64) as endpoint:
        with pytest.raises(ChecksumError, match=f"found {sha256(content)}, expected {'0' * 64}"):
            fetch(local(source="hf:acme/tiny/sub/w.pth@v1", mirror=endpoint), notify=quiet)
        with pytest.raises(
            WeightsError,
            match=r"hf:acme/tiny/other\.pth@v1: found sub/w\.pth there, expected other\.pth",
        ):
            fetch(local(source="hf:acme/tiny/other.pth@v1", mirror=endpoint), notify=quiet)
        with pytest.raises(
            WeightsError,
            match=r"hf:acme/tiny/sub/w\.pth@v9: the hub at \S+ doesn't give it .*HF_TOKEN",
        ):
            fetch(local(source="hf:acme/tiny/sub/w.pth@v9", mirror=endpoint), notify=quiet)
    with pytest.raises(WeightsError, match="expected hf:OWNER/REPO/FILE@REVISION"):
        fetch(local(source="hf:acme/tiny"), notify=quiet)
    with pytest.raises(WeightsError, match=r"hf:acme/tiny/w\.pth@v1: not in the cache"):
        fetch(local(source="hf:acme/tiny/w.pth@v1", offline=True), notify=quiet)


# stage and command


def params_of(params: FetchParams) -> Any:
    return parse_params(
        {
            "dataset": {"root": "data", "train": {"annotations": "a.json"}},
            "fetch": params.model_dump(exclude_defaults=True),
            "surgery": {"classes": {"person": "keep"}},
        }
    )


def in_weights(content: bytes) -> FetchParams:
    """A weights file and its builder where DVC watches them."""
    Path("weights").mkdir(exist_ok=True)
    Path("weights/w.pth").write_bytes(content)
    Path("weights/detector.py").write_text(BUILDER)
    return local(source="weights/w.pth", builder="weights/detector.py:build")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": "w.pth"},
            (
                r"fetch\.source: w\.pth: is in the project where DVC doesn't watch it.*Move it to"
                r" weights/ and write `weights/w\.pth`"
            ),
        ),
        (
            {"builder": "detector.py:build"},
            r"fetch\.builder: detector\.py: is in the project.*write `weights/detector\.py`",
        ),
        (
            {"builder": "other_detector:build"},
            r"fetch\.builder: .*other_detector\.py: is in the project",
        ),
        ({"classes": "names.txt"}, r"fetch\.classes: names\.txt: is in the project"),
    ],
    ids=["weights", "builder", "module", "names"],
)
def test_a_file_that_dvc_does_not_watch_is_refused(
    changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = in_weights(saved(tiny()))
    Path("w.pth").write_bytes(saved(tiny()))
    Path("names.txt").write_text("person\ndog\n")
    Path("other_detector.py").write_text(BUILDER)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with pytest.raises(WeightsError, match=message):
        stage.run(params_of(params.model_copy(update=changes)))
    assert not Path("out").exists()


def test_a_copy_of_the_project_looks_at_the_lock_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DVC runs queued and temporary experiments: in a copy, with DVC_ROOT naming the
    original.
    """
    params = in_weights(saved(tiny()))
    stage.run(params_of(params))
    original = Path.cwd()
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(original))
    changed = in_weights(saved({name: tensor + 1 for name, tensor in tiny().items()}))
    with pytest.raises(
        ChecksumError,
        match=r"weights/w\.pth: SHA-256 found .*weights\.lock.*the source has changed",
    ):
        stage.run(params_of(changed))
    in_weights(saved(tiny()))
    stage.run(params_of(params))
    assert read_lock() == read_lock(original / "weights.lock")


def test_a_file_that_git_does_not_track_is_named_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = in_weights(saved(tiny()))
    original = Path.cwd()
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(original))
    with pytest.raises(
        WeightsError,
        match=(
            r"fetch\.source: weights/w\.pth: is in the project but not in this experiment's"
            r" copy.*dvc add"
        ),
    ):
        stage.run(params_of(params))


def test_stage() -> None:
    params = in_weights(saved(tiny()))
    stage.run(params_of(params))
    weights = read_weights(Path("out/fetch/pretrained.safetensors"), trust=True)
    provenance = json.loads(Path("out/fetch/provenance.json").read_text())
    assert provenance["columns"] == [BACKGROUND, "person", "dog"]
    assert provenance["tensors"] == 4
    assert provenance["values"] == 3 * 4 + 4 + 4 * 3 + 3
    assert (
        weights.provenance["sha256"]
        == provenance["sha256"]
        == sha256(Path("weights/w.pth").read_bytes())
    )
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    stage.run(params_of(params))
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({k: v for k, v in tiny().items() if k != "head.bias"}, r"1 missing: head\.bias \[3\]\."),
        ({**tiny(), "extra.weight": torch.ones(2, 2)}, r"1 left over: extra\.weight \[2, 2\]\."),
        (
            tiny(columns=5),
            (
                r"2 of another shape: head\.weight \(found \[5, 4\], expected \[3, 4\]\),"
                r" head\.bias \(found \[5\], expected \[3\]\)\. The class columns"
            ),
        ),
        (
            tiny(prefix="module."),
            (
                r"The names begin with 'module\.', and without it every tensor"
                r" fits.*`fetch\.prefix: module\.`"
            ),
        ),
    ],
    ids=["missing", "extra", "misshapen", "prefixed"],
)
def test_tensors_that_dont_fit(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(
        WeightsError, match=rf"w\.pth: .*detector\.py:build with 3 columns\. .*{message}"
    ):
        stage.run(params_of(in_weights(saved(tensors))))
    assert not Path("out").exists()


def test_source_that_changes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    params = in_weights(saved(tiny()))

    def touch(weights: Weights) -> None:
        Path("weights/w.pth").write_bytes(b"changed")

    monkeypatch.setattr(stage, "check_fits_builder", touch)
    with pytest.raises(TopworkError, match=r"w\.pth: changed while the stage was reading it"):
        stage.run(params_of(params))
    assert not Path("out").exists()


def test_stage_with_the_demo() -> None:
    stage.run(params_of(FetchParams()))
    provenance = json.loads(Path("out/fetch/provenance.json").read_text())
    assert provenance["source"] == "demo"
    assert read_lock() == {}, "the package itself vouches for the demo"
    assert Path("weights.lock").is_file(), "DVC tracks it as an out"


def test_real_weights(real: Path) -> None:
    folder = real / "ssdlite_mobilenet_v2_coco"
    stage.run(
        params_of(
            FetchParams(
                source=str(folder / "ssdlite_mobilenet_v2_coco.pth"),
                sha256="b35faabfd4719401c76e6c3ab04a37c4eebe51008f2117b0d4a042888ca0427f",
                builder=f"{folder / 'builder.py'}:build",
                classes="coco-91",
            )
        )
    )
    weights = read_weights(Path("out/fetch/pretrained.safetensors"), trust=True)
    assert weights.columns == category_set("coco-91")
    raw = torch.load(folder / "ssdlite_mobilenet_v2_coco.pth", weights_only=True)
    assert weights.state_dict.keys() == raw.keys()
    assert all(torch.equal(weights.state_dict[name], tensor) for name, tensor in raw.items())


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    Path("w.pth").write_bytes(saved(tiny()))
    line = ["fetch", "w.pth", "--builder", "detector.py:build", "--classes", "person,dog"]
    assert main([*line, "--out", "w.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert "columns  3 (2 classes: person, dog)" in out
    assert "written  w.safetensors" in out
    assert "seen for the first time" in err
    assert read_weights(Path("w.safetensors"), trust=True).columns == (BACKGROUND, "person", "dog")
    Path("w.pth").write_bytes(saved(tiny(columns=4)))
    assert main(line) == 1
    assert "topwork fetch w.pth --accept" in capsys.readouterr().err
    assert main([*line, "--accept"]) == 1
    assert "2 of another shape: head.weight" in capsys.readouterr().err


def test_command_without_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch"]) == 1
    assert "no source named, and no params.yaml here" in capsys.readouterr().err
    Path("w.pth").write_bytes(saved(tiny()))
    Path("params.yaml").write_text(
        "dataset: {root: data, train: {annotations: a.json}}\nsurgery: {classes: {person: keep}}\n"
        "fetch: {source: w.pth, builder: 'detector.py:build', classes: [person, dog]}\n"
    )
    assert main(["fetch"]) == 0
    assert main(["fetch", "w.pth"]) == 0, "params.yaml speaks of this source"


def test_command_with_one_class() -> None:
    Path("w.pth").write_bytes(saved(tiny(columns=2)))
    assert (
        main(
            [
                "fetch",
                "w.pth",
                "--builder",
                "detector.py:build",
                "--classes",
                "helmet,",
                "--out",
                "w.safetensors",
            ]
        )
        == 0
    )
    assert read_weights(Path("w.safetensors"), trust=True).columns == (BACKGROUND, "helmet")


def test_command_doesnt_write_over_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    content = saved(tiny())
    Path("w.pth").write_bytes(content)
    assert (
        main(
            [
                "fetch",
                "w.pth",
                "--builder",
                "detector.py:build",
                "--classes",
                "person,dog",
                "--out",
                "./w.pth",
            ]
        )
        == 1
    )
    assert "--out w.pth: is the source itself" in capsys.readouterr().err
    assert Path("w.pth").read_bytes() == content


def test_command_bad_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "w.pth", "--sha256", "12"]) == 1
    assert "--sha256: found '12'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["max_gib", "timeout_s"])
def test_limits_are_finite(option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option}\n +Input should be a finite number"):
        local(**{option: float("inf")})


def test_command_lists_and_cleans(server: Misbehaving, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--list"]) == 0
    assert "torchvision:fasterrcnn_resnet50_fpn/COCO_V1" in capsys.readouterr().out
    server.plan["/w.pth"] = Reply(saved(tiny()))
    fetch(local(source=f"{server.url}/w.pth"), notify=quiet)
    assert main(["fetch", "--clean-cache"]) == 0
    assert "0.0 MB removed" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="not in the cache"):
        fetch(local(source=f"{server.url}/w.pth", offline=True), notify=quiet)


def test_command_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fetch", "--help"])
    assert "topwork fetch torchvision:fasterrcnn_resnet50_fpn/COCO_V1" in capsys.readouterr().out
