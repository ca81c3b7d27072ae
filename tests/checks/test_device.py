"""A kit's goldens on a device: the kit's own program on this CPU, one that errs, and what is no device at all."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qdeploy.checks.device import Device, DeviceError, command_of, verify_device
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED
from qdeploy.core.errors import InputError
from qdeploy.export import write_kits
from qdeploy.native.photos import read_photos
from tests.native.compiled import COMPILER

pytestmark = pytest.mark.skipif(not (COMPILER and shutil.which("make")), reason="no C compiler or make is installed")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of the shipped model, built; and ``exact``, its program as on a board without resizing."""
    folder = write_kits(SHIPPED, ["native"], tmp_path_factory.mktemp("kit"))["native"]
    make = ["make", "-s", "CFLAGS=-O1 -Werror"]
    subprocess.run(make, cwd=folder, check=True)
    (folder / "classify").rename(folder / "any")
    text = (folder / "wire_stdio.c").read_text()
    text = text.replace("wire_any_size = 1", "wire_any_size = 0")
    (folder / "wire_stdio.c").write_text(
        text.replace("photo = malloc(", "photo = width * height > 4096 ? NULL : malloc(")
    )
    subprocess.run(make, cwd=folder, check=True)
    (folder / "classify").rename(folder / "exact")
    (folder / "any").rename(folder / "classify")
    return folder


def photos_by(program: Path) -> str:
    return f"'{program}' --photos"


def python(body: str) -> str:
    """Return the command of a device that says what a body in Python prints."""
    return f"'{sys.executable}' -c '{body}'"


@pytest.mark.parametrize(("program", "sides"), [("classify", "133x95"), ("exact", "64x64")])
def test_a_device_with_the_kits_bits_is_sound(kit: Path, program: str, sides: str) -> None:
    done: list[tuple[int, int]] = []
    result = verify_device(kit, photos_by(kit / program), lambda *at: done.append(at))
    assert result.ok
    assert [c.name.partition(",")[0] for c in result.checks] == [
        "device: model",
        *(f"device: photo {i}" for i in (1, 2, 3, 4)),
    ]
    assert done[-1] == (4, 4)
    assert result.checks[2].name.endswith(f", {sides}")
    assert result.checks[2].detail == "label 7, all bits of 10 logits"


def test_one_bit_is_a_difference(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copytree(kit, tmp_path / "kit"))
    goldens = bytearray((other / "model.goldens").read_bytes())
    goldens[-4] ^= 1  # the last bit of the last logit
    (other / "model.goldens").write_bytes(goldens)
    words = ["verify", str(other), "--device", photos_by(kit / "classify"), "--json"]
    assert run(words) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [c["ok"] for c in checks] == [True, True, True, True, False]
    assert checks[-1]["detail"].startswith("1 of 10 logits differ, the first (class 9): ")
    assert run(["verify", str(kit), "--device", photos_by(kit / "classify")]) == 0
    assert f"{kit}: 5 checks, 0 failed, 0 not possible here" in capsys.readouterr().out


def test_a_device_with_another_model_is_told_apart(kit: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(kit, tmp_path / "kit"))
    card = json.loads((other / "model.card.json").read_text())
    (other / "model.card.json").write_text(json.dumps({**card, "sha256": "0" * 64}))
    (check,) = verify_device(other, photos_by(kit / "classify")).checks
    assert check.ok is False
    assert check.detail.endswith("another than the kit's " + "0" * 64)


def test_a_device_that_stops_or_errs_is_a_difference(kit: Path) -> None:
    sha256 = json.loads((kit / "model.card.json").read_text())["sha256"]
    greeting = f"boot\\nqdeploy-native 1 {sha256} 64 10 any"
    hello = f'import sys; sys.stdin.read(1); print("{greeting}", flush=True); sys.stdin.buffer.read(64 * 64 * 3); '
    for body, why in (
        ("sys.exit(1)", "the device ended without an answer"),
        ('print("error hot", flush=True)', "the device says: hot"),
        ('print("logits 1 zz", flush=True)', "the device gives no logits, found 'logits 1 zz'"),
        ('print("logits 1 00000000", flush=True)', "the device gives 1 logits, 10 expected"),
        ('print("logits 1" + 10*" 00000000", flush=True)', "10 of 10 logits differ"),
    ):
        result = verify_device(kit, python(hello + body), answer_s=20.0)
        assert result.checks[1].ok is False
        assert result.checks[1].detail.startswith(why)


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("", "`device` is empty"),
        ("'unclosed", "`device` is no command: No closing quotation"),
        ("/no/such/program", "/no/such/program cannot be started: No such file or directory"),
        (python('import sys; sys.exit("no board")'), r"ended without an answer \(no board\)"),
        (python("import time; time.sleep(60)"), "gave no answer within 0.5 s"),
        (python('print("qdeploy-native 1 x y z")'), "does not say what its model is"),
        ("ssh://host", "must be ssh://"),
        ("ssh:///folder", "must be ssh://"),
        ("ssh://-oProxyCommand=x/folder", "must be ssh://"),
        ("ssh://host:99999/folder", "must be ssh://"),
    ],
)
def test_what_is_no_device_is_bad_input(kit: Path, device: str, why: str) -> None:
    begin = time.monotonic()
    with pytest.raises(InputError, match=why):
        verify_device(kit, device, answer_s=0.5 if "sleep" in device else 30.0)
    assert time.monotonic() - begin < 20


def test_bad_input_is_exit_code_2(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = photos_by(kit / "classify")
    for words, why in (
        (["verify", "--device", device], "give the kit's folder"),
        (["verify", str(tmp_path), "--device", device], "is no native kit"),
        (["verify", str(kit), "--device", device, "--data", "fashion-mnist-mini"], "leave out --data and --key"),
        (["verify", str(kit), "--device", "no-such-program"], "cannot be started"),
    ):
        assert run(words) == 2
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1
    other = Path(shutil.copytree(kit, tmp_path / "kit"))
    (other / "model.goldens").write_bytes((kit / "model.goldens").read_bytes()[:-1])
    assert run(["verify", str(other), "--device", device]) == 2
    assert "is no file of golden photos, or damaged" in capsys.readouterr().err


def test_the_program_refuses_what_is_no_photo_and_goes_on(kit: Path) -> None:
    photos = read_photos(kit / "model.goldens").photos
    with Device(command_of(photos_by(kit / "exact"))) as device:
        assert not device.model.any_size
        with pytest.raises(DeviceError, match="no memory for a photo of this size"):
            device.answer(photos[1])
        with pytest.raises(DeviceError, match="no PPM of 8 bits"):
            device.answer(photos[0][:0])
        assert device.answer(photos[0]).label == 3


def test_an_address_becomes_a_command_of_ssh() -> None:
    begin = ["ssh", "-T", "-o", "BatchMode=yes"]
    assert command_of("ssh://pi/opt/my%20kit") == [*begin, "--", "pi", "cd '/opt/my kit' && exec ./classify --photos"]
    assert command_of("ssh://me@pi:2222/~/kit")[4:] == [
        "-p",
        "2222",
        "--",
        "me@pi",
        "cd ~/kit && exec ./classify --photos",
    ]


SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")


@pytest.fixture
def ssh_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A real sshd on the loopback, and an ``ssh`` on the path that knows its keys."""
    if not (SSHD and shutil.which("ssh-keygen") and shutil.which("ssh")):
        pytest.skip("sshd, ssh or ssh-keygen is not installed (openssh-server, openssh-client)")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host", "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": tmp_path / "user.pub", "StrictModes": "no",
    }  # fmt: skip
    (tmp_path / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # for sshd to give up its rights in
    own = f"-i '{tmp_path}/user' -o StrictHostKeyChecking=no -o UserKnownHostsFile='{tmp_path}/known' -o LogLevel=ERROR"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F none {own} "$@"\n')
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield port
    server.terminate()
    server.wait()


@pytest.mark.slow
def test_a_device_over_ssh(kit: Path, ssh_port: int) -> None:
    user = getpass.getuser()
    assert verify_device(kit, f"ssh://{user}@127.0.0.1:{ssh_port}{kit}").ok
    with pytest.raises(InputError, match=r"ended without an answer \(.*/no/such/kit"):
        verify_device(kit, f"ssh://{user}@127.0.0.1:{ssh_port}/no/such/kit")


@pytest.mark.slow
def test_a_device_with_an_emulated_cpu(kit: Path, tmp_path: Path) -> None:
    compiler, qemu = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    if not (shutil.which(compiler) and shutil.which(qemu)):
        pytest.skip(f"{compiler} or {qemu} is not installed")
    other = Path(shutil.copytree(kit, tmp_path / "kit"))
    subprocess.run(["make", "-s", "clean"], cwd=other, check=True)
    subprocess.run(["make", "-s", f"CC={compiler}", "CFLAGS=-O2"], cwd=other, check=True)
    assert verify_device(other, f"{qemu} -L /usr/aarch64-linux-gnu '{other}/classify' --photos").ok
