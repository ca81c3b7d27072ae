"""Encrypted model files: what opens them, what does not, and that their contents never reach a disk."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import qdeploy
from qdeploy.checks.verify import verify
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.encryption import KEY_COMMAND, KEY_FILE, encrypted, new_model_key, read_model_key
from qdeploy.core.errors import ArtifactError, InputError
from qdeploy.core.files import sha256_of
from qdeploy.core.signing import new_key, sign

PLAIN = SHIPPED / "model.int8.onnx"
BAG = str(Path(__file__).parents[2] / "examples" / "bag.png")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_model_key(path := tmp_path / "model.key")
    return path


@pytest.fixture
def model(tmp_path: Path, key: Path) -> Path:
    path = tmp_path / "model.int8.onnx"
    path.write_bytes(encrypted(PLAIN.read_bytes(), read_model_key(key)))
    return path


def test_the_format_is_aes_256_gcm(model: Path, key: Path) -> None:
    data, secret = model.read_bytes(), bytes.fromhex(key.read_text())
    assert AESGCM(secret).decrypt(data[16:28], data[28:], data[:16]) == PLAIN.read_bytes()
    assert encrypted(b"x", secret) != encrypted(b"x", secret), "every file has a nonce of its own"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="a key that is replaced is lost"):
        new_model_key(key)


def test_it_answers_as_the_plain_file_does(model: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = qdeploy.load(PLAIN)(BAG).scores
    secret = read_model_key(key)
    asked: list[int] = []

    def hook() -> bytes:
        asked.append(1)
        return secret

    assert qdeploy.load(model, key=secret)(BAG).scores == expected
    assert qdeploy.load(model, key=hook)(BAG).scores == expected
    assert qdeploy.load(PLAIN, key=hook)(BAG).scores == expected
    assert asked == [1], "a plain file needs no key"
    monkeypatch.setenv(KEY_FILE, str(key))
    assert qdeploy.load(model)(BAG).scores == expected
    monkeypatch.setenv(KEY_FILE, "not there")
    monkeypatch.setenv(KEY_COMMAND, f"cat '{key}'")
    assert qdeploy.load(model)(BAG).scores == expected


def test_its_hash_and_signature_are_those_of_the_file_on_disk(model: Path, key: Path, tmp_path: Path) -> None:
    secret = read_model_key(key)
    assert read_artifact(model, key=secret).sha256 == sha256_of(model.read_bytes())
    public = new_key(tmp_path / "release.key")
    assert run(["sign", str(PLAIN), "--key", "none"]) == 2
    sign(model, model.read_bytes(), tmp_path / "release.key")
    assert read_artifact(model, trusted=[public], key=secret).data == PLAIN.read_bytes()


def test_sign_and_verify_take_an_encrypted_file(
    model: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_FILE, str(key))
    public = new_key(tmp_path / "release.key")
    assert run(["sign", str(model), "--key", str(tmp_path / "release.key")]) == 0
    found = {c.name: c.ok for c in verify(model, keys=[public]).checks}
    assert found["model.int8.onnx: signature"]
    assert found["model.int8.onnx: goldens"]
    assert False not in found.values()


@pytest.mark.parametrize("at", [0, 16, 28, -1])
def test_a_changed_bit_or_another_key_is_refused(model: Path, key: Path, tmp_path: Path, at: int) -> None:
    secret, data = read_model_key(key), bytearray(model.read_bytes())
    data[at] ^= 1
    model.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"another key, or damaged|not an ONNX file"):
        read_artifact(model, key=secret)


def test_another_key_is_refused(model: Path) -> None:
    with pytest.raises(ArtifactError, match="encrypted with another key"):
        read_artifact(model, key=bytes(32))
    for wrong, found in ((bytes(31), "31 bytes"), ("a" * 32, "str"), (lambda: None, "NoneType")):
        with pytest.raises(InputError, match="must be 32 bytes") as caught:
            read_artifact(model, key=wrong)  # type: ignore[arg-type]
        assert found in str(caught.value)


@pytest.mark.parametrize("length", [16, 20, 28, 44])
def test_a_cut_file_is_refused(model: Path, key: Path, length: int) -> None:
    model.write_bytes(model.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="another key, or damaged"):
        read_artifact(model, key=read_model_key(key))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, f"is encrypted; name its key's file in {KEY_FILE}, or a command in {KEY_COMMAND}"),
        ({KEY_FILE: "not there"}, "the key not there cannot be read: No such file"),
        ({KEY_FILE: "/dev/zero"}, "the key /dev/zero is a device or pipe"),
        ({KEY_FILE: BAG}, "gives no key, found 501 bytes"),
        ({KEY_COMMAND: "no-such-program"}, "cannot be started: "),
        ({KEY_COMMAND: "'"}, "cannot be started: No closing quotation"),
        ({KEY_COMMAND: "cat /dev/zero"}, "gives no key, found 4096 bytes"),
        ({KEY_COMMAND: "false"}, "ended with exit code 1"),
        ({KEY_COMMAND: "echo 12"}, "gives no key, found 3 bytes; a key is 64 hexadecimal digits"),
    ],
)
def test_no_key_is_one_line(
    model: Path, variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for name in (KEY_FILE, KEY_COMMAND):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["predict", BAG, "--model", str(model)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_what_would_write_its_contents_is_refused(
    model: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv(KEY_FILE, str(key))
    (tmp_path / "report.json").write_text('{"recommended": "model.int8.onnx"}')
    words = [
        ["predict", BAG, "--engine", "native", "--model", str(model)],
        ["kit", "c", str(tmp_path), "--out", str(tmp_path / "kits")],
        ["calibrate", str(model), "--data", "fashion-mnist-mini", "--out", str(tmp_path / "other.onnx")],
        ["quantize", str(model), "--data", "fashion-mnist-mini", "--out", str(tmp_path / "quantized")],
        ["encrypt", str(model), "--key", str(key), "--out", str(tmp_path / "twice.onnx")],
    ]
    for command in words:
        assert run(command) == 2, command
        assert "is encrypted, and" in capsys.readouterr().err, command
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.int8.onnx", "model.key", "report.json"]


def test_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PLAIN, "model.onnx")
    assert run(["encrypt", "--new-key", "k"]) == 0
    assert run(["encrypt", "model.onnx", "--key", "k", "--out", "e.onnx", "--json"]) == 0
    monkeypatch.setenv(KEY_FILE, "k")
    assert run(["inspect", "e.onnx"]) == 0
    capsys.readouterr()
    for words, said in (
        (["encrypt"], "an encryption needs a model file, a --key and --out; or make a key with --new-key"),
        (["encrypt", "model.onnx", "--key", "k"], "an encryption needs"),
        (["encrypt", "model.onnx", "--new-key", "n", "--key", "k", "--out", "f.onnx"], "an encryption needs"),
        (["encrypt", "--new-key", "k"], "k exists"),
        (["encrypt", "model.onnx", "--key", "k", "--out", "e.onnx"], "e.onnx exists"),
        (["encrypt", "k", "--key", "k", "--out", "f.onnx"], "k is not an ONNX file or engine"),
    ):
        assert run(words) == 2
        assert said in capsys.readouterr().err
    assert not Path("f.onnx").exists()
    assert not Path("n").exists()


WATCHED = """
import sys
opened = []
def hook(event, words):
    if event == "open" and isinstance(words[0], (str, bytes)) and set(str(words[1])) & set("wax+"):
        opened.append(str(words[0]))
sys.addaudithook(hook)
from qdeploy.cli.main import run
code = run(sys.argv[1:])
print("opened:", opened)
sys.exit(code)
"""


def test_a_process_that_predicts_writes_nothing_readable(model: Path, key: Path, tmp_path: Path) -> None:
    """A process with a HOME and a TMPDIR of its own opens no file for writing but an empty mark in its cache."""
    (home := tmp_path / "home").mkdir()
    cache = home / "cache"
    places = {"HOME": str(home), "TMPDIR": str(home), "QDEPLOY_CACHE": str(cache)}
    words = [sys.executable, "-c", WATCHED, "predict", BAG, "--model", str(model)]
    environment = {**os.environ, **places, KEY_FILE: str(key), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, env=environment, cwd=home, capture_output=True, text=True)
    assert "Bag" in done.stdout, done.stderr
    assert "opened: []" in done.stdout
    left = [p for p in home.rglob("*") if p.is_file()]
    assert [p.parent for p in left] == [cache / "tried"], "the cache remembers that the graph was tried"
    assert left[0].read_bytes() == b""
