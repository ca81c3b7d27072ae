"""Signatures against OpenSSL's own, and the rule that only signed files open, wherever a model file is opened."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

import qdeploy
from qdeploy.checks.doctor import diagnose
from qdeploy.checks.verify import verify
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.signing import TRUSTED, new_key, sign, signature_of
from tests.resealed import reseal
from tests.serve.running import in_thread, until

BAG = str(Path(__file__).parents[2] / "examples" / "bag.png")
Capture = pytest.CaptureFixture[str]
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(SHIPPED / "model.int8.onnx", tmp_path / "model.int8.onnx"))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """The public key of ``tmp_path / "a.key"``."""
    return new_key(tmp_path / "a.key")


def signed(model: Path, key: str = "a.key") -> Path:
    return sign(model, model.read_bytes(), model.with_name(key))


def openssl(*words: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["openssl", *map(str, words)], capture_output=True)


@needs_openssl
def test_openssl_checks_what_qdeploy_signed(model: Path, public: Path) -> None:
    signature = signed(model)
    assert signature.stat().st_size == 64
    words = ("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, "-in", model, "-sigfile", signature)
    assert openssl(*words).returncode == 0
    signature.write_bytes(bytes(64))
    assert openssl(*words).returncode != 0


@needs_openssl
def test_qdeploy_checks_what_openssl_signed(model: Path, tmp_path: Path) -> None:
    key, public = tmp_path / "theirs.key", tmp_path / "theirs.pub"
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", key).returncode == 0
    assert openssl("pkey", "-in", key, "-pubout", "-out", public).returncode == 0
    words = ("pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", model, "-out", signature_of(model))
    assert openssl(*words).returncode == 0
    assert read_artifact(model, trusted=[public]).data == model.read_bytes()
    theirs = signature_of(model).read_bytes()
    assert signed(model, "theirs.key").read_bytes() == theirs  # Ed25519 has one signature of a message


def test_a_key_is_the_owners_alone_and_is_never_replaced(tmp_path: Path, public: Path) -> None:
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    before = (tmp_path / "a.key").read_bytes()
    with pytest.raises(InputError, match="a key that is replaced is lost"):
        new_key(tmp_path / "a.key")
    (tmp_path / "b.key.pub").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"b\.key\.pub exists"):
        new_key(tmp_path / "b.key")
    assert (tmp_path / "a.key").read_bytes() == before
    assert not (tmp_path / "b.key").exists()


def test_the_model_file_stays_as_it_is(model: Path, public: Path) -> None:
    before = model.read_bytes()
    signed(model)
    assert model.read_bytes() == before
    assert qdeploy.load(model, trusted_keys=[public])(BAG).label == "Bag"


def change(model: Path) -> None:
    """Another card, and a checksum that belongs to it."""
    reseal(model, model, lambda card: card["labels"].reverse())


def cut(model: Path) -> None:
    signature_of(model).write_bytes(signature_of(model).read_bytes()[:63])


def lengthen(model: Path) -> None:
    with signature_of(model).open("ab") as stream:
        stream.write(b"\0")


def strange(model: Path) -> None:
    new_key(model.with_name("strange.key"))
    signed(model, "strange.key")


def of_another(model: Path) -> None:
    other = Path(shutil.copy(SHIPPED / "model.fp32.onnx", model.with_name("model.fp32.onnx")))
    shutil.copy(signed(other), signature_of(model))


def endless(model: Path) -> None:
    signature_of(model).unlink()
    signature_of(model).symlink_to("/dev/zero")


@pytest.mark.parametrize("attack", [change, cut, lengthen, strange, of_another, endless])
def test_what_was_not_signed_does_not_open(
    model: Path, public: Path, attack: object, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    signed(model)
    assert callable(attack)
    attack(model)
    assert read_artifact(model).card.labels  # without the rule it does
    monkeypatch.setenv(TRUSTED, str(public))
    for words in (["predict", "--model", str(model), BAG], ["inspect", str(model)], ["eval", str(model)]):
        assert run(words) == 2
        (line,) = [li for li in capsys.readouterr().err.splitlines() if li.startswith("qdeploy: ")]
        assert "is not what was signed, or not by" in line or "is a device" in line
    assert run(["verify", str(model)]) == 1
    with pytest.raises(ArtifactError):
        qdeploy.load(model)


def test_without_a_signature_a_file_does_not_open(
    model: Path, public: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for trusted in (str(public), f"{public}{os.pathsep}{public}", f"{os.pathsep}{public}"):
        monkeypatch.setenv(TRUSTED, trusted)
        with pytest.raises(
            ArtifactError, match=r"is not signed: there is no model\.int8\.onnx\.sig beside it; `qdeploy"
        ):
            qdeploy.load(model)
        with pytest.raises(ArtifactError, match="is not signed"):
            qdeploy.load()  # what ships in the package is no exception
    monkeypatch.setenv(TRUSTED, "")
    assert qdeploy.load(model)(BAG).label == "Bag"
    with pytest.raises(ArtifactError, match="is not signed"):
        qdeploy.load(model, trusted_keys=[public])


@pytest.mark.slow  # doctor opens every engine
def test_the_doctor_looks_at_the_shipped_model_all_the_same(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUSTED, str(public))
    assert next(c for c in diagnose().checks if c.name == "shipped model").status == "ok"


def test_one_of_several_keys_is_enough(model: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = new_key(model.with_name("b.key"))
    signed(model, "b.key")
    monkeypatch.setenv(TRUSTED, f"{public}{os.pathsep}{other}")
    assert qdeploy.load(model)(BAG).label == "Bag"
    (check,) = [c for c in verify(model).checks if c.name.endswith("signature")]
    assert (check.ok, check.detail) == (True, f"by {other}")
    assert not verify(model, keys=[public]).ok


def test_a_server_opens_only_signed_files_and_waits_for_a_signature(model: Path, public: Path) -> None:
    fp32 = Path(shutil.copy(SHIPPED / "model.fp32.onnx", model.with_name("new.onnx")))
    with pytest.raises(ArtifactError, match="is not signed"), in_thread([model], trusted_keys=(public,)):
        pass
    signed(model)
    with in_thread([f"m={model}"], trusted_keys=(public,)) as server:
        os.replace(fp32, model)  # its signature comes later, as a copy's does
        until("it is refused", lambda: server.seen("model-refused"))
        assert server.get("/report").json["models"][0]["precision"] == "int8"
        assert "is not what was signed" in server.get("/report").json["models"][0]["problem"]
        signed(model)
        until("it serves", lambda: server.get("/report").json["models"][0]["precision"] == "fp32")


def test_the_command(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED, "export")
    assert run(["sign", "--new-key", "k"]) == 0
    assert "k: keep it secret; k.pub: give it to" in capsys.readouterr().out
    assert run(["sign", "export", "--key", "k", "--json"]) == 0
    assert capsys.readouterr().out.count(".onnx.sig") == 2
    assert run(["verify", "export", "--key", "k.pub"]) == 0
    assert capsys.readouterr().out.count("signature: by k.pub") == 2
    Path("damaged.onnx").write_bytes(Path("export/model.int8.onnx").read_bytes()[:-9])
    for words, text in (
        (["sign", "export"], "a signature needs a model file and a --key; or make a key with --new-key"),
        (["sign", "--key", "k"], "a signature needs"),
        (["sign"], "a signature needs"),
        (["sign", "--new-key", "k"], "k exists"),
        (["sign", "export", "--key", "k.pub"], "k.pub is no private key in PEM"),
        (["sign", "export", "--key", "none"], "the key none cannot be read: No such file"),
        (["sign", "damaged.onnx", "--key", "k"], "damaged.onnx is not an ONNX file or engine, or is damaged"),
        (["sign", "k", "--key", "k"], "k is not an ONNX file"),
        (["verify", "export", "--key", "k"], "k is no public key in PEM"),
        (["verify", "export", "--key", "/dev/zero"], "is a device or pipe"),
    ):
        assert run(words) == 2, words
        assert text in capsys.readouterr().err, words


@needs_openssl
def test_a_key_of_another_kind_is_told(model: Path, tmp_path: Path) -> None:
    key, public = tmp_path / "rsa.key", tmp_path / "rsa.pub"
    assert openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", key).returncode == 0
    assert openssl("pkey", "-in", key, "-pubout", "-out", public).returncode == 0
    with pytest.raises(InputError, match="a key of another kind than Ed25519"):
        sign(model, b"", key)
    signature_of(model).write_bytes(bytes(64))
    with pytest.raises(InputError, match="a key of another kind than Ed25519"):
        read_artifact(model, trusted=[public])
