"""The evidence of a run as one zip: whole, checkable anywhere, and harmless whoever made it."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from topwork.audit import bundle as module
from topwork.audit.bundle import check_bundle, write_bundle
from topwork.audit.revision import open_revision
from topwork.audit.signing import check_signature, sign
from topwork.audit.verification import verify
from topwork.cli import main
from topwork.errors import AuditError

METRICS = "out/metrics.json"
Contents = dict[str, bytes]


@pytest.fixture(scope="module")
def evidence(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("evidence") / "evidence.zip"
    revision = open_revision(recorded, "HEAD")
    write_bundle(revision, verify(revision, recompute=False), target)
    return target


def contents_of(path: Path) -> Contents:
    with zipfile.ZipFile(path) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist()}


def zipped(path: Path, contents: Contents) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in contents.items():
            bundle.writestr(name, content)
    return path


def test_a_bundle_holds_and_says_how_it_was_checked(
    evidence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "check", str(evidence)]) == 0
    printed = capsys.readouterr().out
    assert "all of it holds" in printed
    sha256 = hashlib.sha256(contents_of(evidence)["manifest.json"]).hexdigest()
    assert f"SHA-256 of its manifest: {sha256}" in printed
    checks = {check.what: check for check in check_bundle(evidence)}
    assert {"dvc.lock", "mAP from predictions", f"out {METRICS}"} <= set(checks)
    names = set(contents_of(evidence))
    assert {
        "verify.json",
        "lineage.html",
        "bom.json",
        "ro-crate-metadata.json",
        "check.py",
    } <= names
    assert sum(name.startswith("runs/") for name in names) == 11
    assert not [name for name in names if name.endswith((".safetensors", ".png"))]
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_the_same_run_gives_the_same_bundle(recorded: Path, evidence: Path, tmp_path: Path) -> None:
    revision = open_revision(recorded, "HEAD")
    again = tmp_path / "again.zip"
    sha256 = write_bundle(revision, verify(revision, recompute=False), again)
    assert again.read_bytes() == evidence.read_bytes()
    assert hashlib.sha256(contents_of(again)["manifest.json"]).hexdigest() == sha256


def test_the_bundles_own_script_checks_it(evidence: Path, tmp_path: Path) -> None:
    contents = contents_of(evidence)
    script = tmp_path / "check.py"
    script.write_bytes(contents["check.py"])
    command = [sys.executable, "-I", str(script), str(evidence)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "mAP from the predictions: " in ended.stdout
    spoilt = zipped(tmp_path / "spoilt.zip", {**contents, METRICS: b"{}"})
    ended = subprocess.run([*command[:-1], str(spoilt)], capture_output=True, text=True)
    assert ended.returncode != 0
    assert f"{METRICS} was changed" in ended.stderr


def better(contents: Contents) -> None:
    document = json.loads(contents[METRICS])
    document["map"] = 0.93
    contents[METRICS] = json.dumps(document).encode()


def known_to_the_manifest(contents: Contents) -> None:
    better(contents)
    reseal(contents, METRICS)


def reseal(contents: Contents, name: str) -> None:
    manifest = json.loads(contents["manifest.json"])
    content = contents[name]
    manifest["files"][name].update(
        sha256=hashlib.sha256(content).hexdigest(), size=len(content)
    )  # fmt: skip
    contents["manifest.json"] = json.dumps(manifest).encode()


def known_to_the_lock(contents: Contents) -> None:
    old = hashlib.md5(contents[METRICS], usedforsecurity=False).hexdigest()
    known_to_the_manifest(contents)
    new = hashlib.md5(contents[METRICS], usedforsecurity=False).hexdigest()
    contents["dvc.lock"] = contents["dvc.lock"].replace(old.encode(), new.encode())
    reseal(contents, "dvc.lock")


@pytest.mark.parametrize(
    ("tamper", "what", "words"),
    [
        (better, METRICS, "the manifest says"),
        (lambda c: c.pop("out/evaluate/verdict.json"), "out/evaluate/verdict.json", "taken out"),
        (lambda c: c.update(extra=b"x"), "extra", "the manifest doesn't have it"),
        (known_to_the_manifest, f"out {METRICS}", "dvc.lock has"),
        (known_to_the_lock, "mAP from predictions", "computed again, 0.93 recorded"),
    ],
    ids=["a file", "one fewer", "one more", "with its manifest", "with manifest and lock"],
)
def test_a_changed_bundle_is_named(
    evidence: Path, tmp_path: Path, tamper: Callable[[Contents], object], what: str, words: str
) -> None:
    contents = contents_of(evidence)
    tamper(contents)
    spoilt = zipped(tmp_path / "spoilt.zip", contents)
    broken = [check for check in check_bundle(spoilt) if check.status == "broken"]
    assert [check for check in broken if check.what == what and words in check.message], broken
    assert main(["audit", "check", str(spoilt)]) == 1


def linked(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as bundle:
        info = zipfile.ZipInfo("out/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(info, "/etc/passwd")


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            bundle.writestr("a", "2")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: zipped(p, {"../../stolen": b"x"}), "isn't a plain file inside of the bundle"),
        (lambda p: zipped(p, {"/etc/stolen": b"x"}), "isn't a plain file inside of the bundle"),
        (lambda p: zipped(p, {"a\\..\\b": b"x"}), "isn't a plain file inside of the bundle"),
        (lambda p: zipped(p, {"C:/stolen": b"x"}), "isn't a plain file inside of the bundle"),
        (linked, "isn't a plain file inside of the bundle"),
        (twice, "is in it twice"),
        (lambda p: zipped(p, {"a": b"x"}), "has no manifest.json"),
        (lambda p: zipped(p, {"manifest.json": b"[" * 200_000}), "isn't readable as JSON"),
        (lambda p: zipped(p, {"manifest.json": b"[]"}), "isn't that of a topwork bundle"),
        (lambda p: zipped(p, {"manifest.json": b" " * 9_000_000}), "larger than 8,000,000 bytes"),
        (lambda p: zipped(p, {"a": b"0" * 60_000_000}), "more than a bundle holds"),
        (lambda p: p.write_bytes(b"PK\3\4 and nothing more"), "not readable as a zip"),
        (lambda p: None, "no such file"),
    ],
    ids=[
        "a way out",
        "an absolute path",
        "backslashes",
        "a drive",
        "a link",
        "a name twice",
        "no manifest",
        "nested JSON",
        "another manifest",
        "a huge manifest",
        "a bomb",
        "no zip",
        "nothing",
    ],
)
def test_a_hostile_bundle_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], object],
    words: str,
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 50_000_000)
    monkeypatch.setattr(module, "MOST_MANIFEST", 8_000_000)
    path = tmp_path / "hostile.zip"
    write(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AuditError, match=words):
        check_bundle(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def validators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of the formats' own validators, in an environment of their own."""
    home = tmp_path_factory.mktemp("validators")
    venv.create(home, with_pip=True)
    wanted = ("roc-validator==0.13.0", "cyclonedx-python-lib[json-validation]==11.12.0")
    pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted]
    if subprocess.run(pip).returncode:
        pytest.skip(f"{' and '.join(wanted)} can't be installed here")
    return home / "bin"


@pytest.mark.long
def test_the_bill_of_materials_is_what_its_schema_asks_for(
    evidence: Path, validators: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from cyclonedx.schema import SchemaVersion;"
        " from cyclonedx.validation.json import JsonStrictValidator;"
        " found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read());"
        " print('valid' if found is None else found)"
    )
    text = contents_of(evidence)["bom.json"].decode()
    for bom, expected in ((text, "valid"), (text.replace("library", "thing"), "'thing' is not")):
        command = [validators / "python", "-c", code]
        ended = subprocess.run(command, input=bom, capture_output=True, text=True, check=True)
        assert ended.stdout.startswith(expected)


@pytest.mark.long
@pytest.mark.parametrize("profile", ["ro-crate-1.1", "workflow-run-crate-0.5"])
def test_the_crate_is_what_its_profile_asks_for(
    evidence: Path, validators: Path, tmp_path: Path, profile: str
) -> None:
    """The crate's JSON-LD contexts come from the network, or from the validator's cache
    (`rocrate-validator cache warm`) that TOPWORK_TEST_CONTEXTS names.
    """
    cache = os.environ.get("TOPWORK_TEST_CONTEXTS")
    command = [validators / "rocrate-validator", "validate", "--no-paging"]
    command += ["--offline", "--cache-path", cache] if cache else []
    command += ["--profile-identifier", profile]
    for broken in (False, True):
        folder = tmp_path / str(broken)
        with zipfile.ZipFile(evidence) as bundle:
            bundle.extractall(folder)
        if broken:
            crate = folder / "ro-crate-metadata.json"
            crate.write_text(crate.read_text().replace('"mainEntity"', '"nothing"'))
        ended = subprocess.run([*command, folder], capture_output=True, text=True)
        text = ended.stdout + ended.stderr
        if "URLError" in text or "ConnectionError" in text:
            pytest.skip("the crate's JSON-LD contexts can't be reached from here")
        assert ("is a valid" in text, "is not a valid" in text) == (not broken, broken), text


def test_a_signature_without_the_extra_is_a_clear_error(
    evidence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(AuditError, match=r"need the extra `sign`.*pip install 'topwork\[sign\]'"):
        sign(evidence, tmp_path / "key.pem")


def key_pair(folder: Path) -> tuple[Path, Path]:
    """A private and a public key, as `openssl ecparam -genkey` writes them."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir()
    private, public = folder / "key.pem", folder / "key.pub"
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_a_signature_holds_and_a_changed_byte_breaks_it(evidence: Path, tmp_path: Path) -> None:
    reason = "the extra `sign` isn't installed: python -m pip install 'topwork[sign]'"
    pytest.importorskip("model_signing", reason=reason)
    private, public = key_pair(tmp_path / "ours")
    _, other = key_pair(tmp_path / "theirs")
    bundle = tmp_path / "evidence.zip"
    bundle.write_bytes(evidence.read_bytes())
    assert check_signature(bundle, public).message == "there is no evidence.zip.sig"
    assert sign(bundle, private) == tmp_path / "evidence.zip.sig"
    assert check_signature(bundle, public).status == "holds"
    assert check_signature(bundle, other).status == "broken"
    with pytest.raises(AuditError, match=r"key\.pub: can't be signed with.*openssl ecparam"):
        sign(evidence, public)
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    assert check_signature(bundle, public).status == "broken"
