"""Libraries beside a model file: a device without a compiler runs them, and takes none that is not its file's own."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.checks.verify import verify
from qdeploy.cli.main import run
from qdeploy.core.artifact import SHIPPED, read_artifact
from qdeploy.core.errors import InputError, MissingDependencyError
from qdeploy.core.signing import new_key, sign
from qdeploy.export import pipeline, write_kits
from qdeploy.export.libraries import CROSS_COMPILERS, library_compilers, write_libraries
from qdeploy.native import prebuilt
from qdeploy.native.library import compiler, load_library
from qdeploy.native.lowering import UnsupportedError
from qdeploy.native.prebuilt import DIGITS, MARK, architecture_here, library_file, sealed_library
from qdeploy.native.simulate import simulate
from qdeploy.native.source import program_of
from qdeploy.runtime.device import DeviceRecord, this_machine
from qdeploy.runtime.session import open_session
from tests.native.compiled import needs_compiler

linux = pytest.mark.skipif(architecture_here() is None, reason=f"no ELF libraries on {platform.system()}")
pytestmark = [needs_compiler, linux, pytest.mark.xdist_group("native engine")]
FILE = "model.int8.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped export with a library for this machine."""
    folder = tmp_path_factory.mktemp("prebuilt") / "export"
    shutil.copytree(SHIPPED, folder)
    (library,) = write_libraries(folder, "here")
    assert library == library_file(folder / FILE, str(architecture_here()))
    return folder


@pytest.fixture
def device(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy on a machine without a compiler, and with nothing in its cache."""
    folder = tmp_path / "device"
    shutil.copytree(made, folder)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    return folder


def beside(folder: Path) -> Path:
    return library_file(folder / FILE, str(architecture_here()))


def test_a_process_without_a_compiler_predicts(device: Path) -> None:
    words = ["predict", "examples/bag.png", "--model", str(device / FILE), "--engine", "native", "--json"]
    done = subprocess.run([sys.executable, "-m", "qdeploy", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["predictions"][0]["label"] == "Bag"
    assert not list((device.parent / "cache").glob("native/*"))


def test_its_answers_are_the_simulators_bits(device: Path) -> None:
    artifact = read_artifact(device / FILE)
    program, images = program_of(artifact), artifact.card.goldens.images[:1]
    logits, _ = open_session(artifact, "native").infer(images)
    assert np.array_equal(logits[0], simulate(program, images[0])[program.logits.name].reshape(-1))


def test_the_bytes_that_were_checked_are_loaded(device: Path) -> None:
    """Two libraries in memory are two; one that was loaded already is there once; and a name alone loads nothing."""
    int8, fp32 = (read_artifact(device / name) for name in (FILE, "model.fp32.onnx"))
    other = library_file(fp32.path, str(architecture_here()))
    other.write_bytes(sealed_library(beside(device).read_bytes().rpartition(MARK)[0], fp32))
    first, second, again = (load_library(a)[0] for a in (int8, fp32, int8))
    assert first._handle != second._handle
    assert again is first
    flipped(beside(device))
    with pytest.raises(MissingDependencyError, match="is damaged"):
        load_library(int8)


def flipped(library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)


def of_another_cpu(library: Path) -> None:
    data = bytearray(library.read_bytes().rpartition(MARK)[0])
    data[18:20] = (243).to_bytes(2, "little")
    library.write_bytes(sealed_library(bytes(data), read_artifact(library.with_name(FILE))))


def of_another_file(library: Path) -> None:
    data = library.read_bytes().rpartition(MARK)[0]
    library.write_bytes(sealed_library(data, read_artifact(library.with_name("model.fp32.onnx"))))


def without_end(library: Path) -> None:
    library.write_bytes(library.read_bytes()[: -DIGITS - 1])


def renamed(library: Path) -> None:
    library.rename(library_file(library.with_name(FILE), "s390x"))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (flipped, "is damaged: its checksum does not match"),
    "cut": (without_end, "is damaged: its checksum does not match"),
    "of another CPU": (of_another_cpu, "is for CPUs of the kind riscv64"),
    "of another file": (of_another_file, "was compiled from another file than model.int8.onnx"),
    "only for another CPU": (renamed, "s390x.so beside the file is not for this kind of CPU"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_told_in_one_line(device: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, why = CHANGES[name]
    change(beside(device))
    assert run(["predict", "examples/bag.png", "--model", str(device / FILE), "--engine", "native"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert why in error
    assert "the native engine needs a C compiler; install gcc or clang" in error


def test_with_a_compiler_the_user_is_told_and_it_is_compiled(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(made, folder)
    flipped(beside(folder))
    with open_session(read_artifact(folder / FILE), "native") as session:
        assert session.note is not None
        assert session.note.startswith(f"compiled here, since {beside(folder)} is damaged")
    assert verify(folder).ok is False


def test_a_library_must_be_signed_where_files_must(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, words = tmp_path / "key", ["predict", "examples/bag.png", "--model", str(device / FILE), "--engine", "native"]
    public = new_key(key)
    assert run(["sign", str(device), "--key", str(key)]) == 0
    assert f"{beside(device)}.sig: signed" in capsys.readouterr().out
    monkeypatch.setenv("QDEPLOY_TRUSTED_KEYS", str(public))
    assert run(words) == 0
    assert verify(device).ok
    Path(f"{beside(device)}.sig").unlink()
    assert run(words) == 2
    assert f"{beside(device)} is not signed" in capsys.readouterr().err
    assert not verify(device).ok


HOOK = """
#include <stdio.h>
__attribute__((constructor)) static void loaded(void) {
    FILE *f = fopen(MARK, "w");
    if (f) fclose(f);
}
"""


@pytest.fixture(scope="module")
def watched(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export whose library writes the file ``loaded`` beside itself as soon as it is loaded."""
    folder = tmp_path_factory.mktemp("watched") / "export"
    shutil.copytree(made, folder)
    kit = write_kits(SHIPPED, ["native"], folder.parent)["native"]
    (kit / "hook.c").write_text(HOOK)
    mark = f'-DMARK="{folder / "loaded"}"'
    words = [str(compiler()), "-O1", "-fPIC", "-shared", mark, "hook.c", "model.c", "-o", "hooked.so"]
    subprocess.run(words, cwd=kit, check=True)
    beside(folder).write_bytes(sealed_library((kit / "hooked.so").read_bytes(), read_artifact(folder / FILE)))
    record = DeviceRecord(
        file=FILE,
        sha256=read_artifact(folder / FILE).sha256,
        engine="native",
        threads=1,
        batch=1,
        machine=this_machine(),
    )
    (folder / "device.json").write_text(json.dumps(record.to_dict()))
    return folder


@pytest.mark.parametrize(
    ("words", "loads"),
    [
        (["predict", "examples/bag.png", "--model"], False),
        (["verify"], False),
        (["tune", "--seconds", "0.2", "--memory-mb", "4000"], False),
        (["predict", "examples/bag.png", "--engine", "native", "--model"], True),
    ],
)
def test_a_library_runs_only_where_it_is_asked_for(watched: Path, words: list[str], loads: bool) -> None:
    """Whoever makes a folder can write any ``device.json``, and put a program beside the model."""
    (watched / "loaded").unlink(missing_ok=True)
    device_file = (watched / "device.json").read_bytes()
    done = subprocess.run([sys.executable, "-m", "qdeploy", *words, str(watched)], capture_output=True, text=True)
    (watched / "device.json").write_bytes(device_file)
    assert done.returncode == 0, done.stderr
    assert (watched / "loaded").exists() == loads
    assert "Bag" in done.stdout or words[0] != "predict"


def test_without_a_compiler_a_device_file_says_what_runs_the_library(
    watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    assert run(["predict", "examples/bag.png", "--model", str(watched)]) == 2
    assert (
        f"{beside(watched).name} is a program and runs only if --engine native asks for it" in capsys.readouterr().err
    )


def test_keys_that_python_names_hold_for_the_library(device: Path, tmp_path: Path) -> None:
    public = new_key(tmp_path / "release.key")
    sign(device / FILE, (device / FILE).read_bytes(), tmp_path / "release.key")
    with pytest.raises(MissingDependencyError, match=rf"{beside(device).name} is not signed"):
        qdeploy.load(device / FILE, engine="native", trusted_keys=[public])
    sign(beside(device), beside(device).read_bytes(), tmp_path / "release.key")
    assert qdeploy.load(device / FILE, engine="native", trusted_keys=[public])("examples/bag.png").label == "Bag"


def test_kits_command_adds_them(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "export"
    shutil.copytree(SHIPPED, folder)
    assert run(["kit", "ray", str(folder), "--native-library", "here", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["libraries"] == [str(beside(folder))]
    assert beside(folder).read_bytes() == beside(made).read_bytes()
    assert run(["kit", "ray", "--native-library", "here", "--out", str(tmp_path)]) == 2


def test_a_compiler_that_is_not_there_is_named(device: Path) -> None:
    for name, command in (("no-such-cc", "no-such-cc"), ("riscv64", CROSS_COMPILERS["riscv64"])):
        with pytest.raises(MissingDependencyError, match=f"{command} for a native library was not found; install it"):
            write_libraries(device, name)


EXPORT = (
    *("quantize", str(SHIPPED / "model.fp32.onnx"), "--data", "fashion-mnist-mini", "--native-library", "here"),
    *("--calibration", "minmax", "--float-layers", "none", "--allow-slower", "--allow-drop"),
)


@pytest.mark.slow
def test_a_compiler_that_fails_costs_no_more_than_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "false")
    out = tmp_path / "export"
    assert run([*EXPORT, "--out", str(out)]) != 0
    said = capsys.readouterr().err
    assert f"{out} is whole but for its libraries, which `qdeploy kit` makes, too, by --native-library" in said
    assert "could not compile" in said
    assert verify(out).ok
    monkeypatch.delenv("CC")
    assert run(["kit", "native", str(out), "--native-library", "here"]) == 0
    assert beside(out).exists()


@pytest.mark.slow
def test_what_has_no_kernel_is_refused_before_the_long_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*words: object) -> None:
        raise UnsupportedError("Loop", "it has no kernel")

    monkeypatch.setattr(pipeline, "program_from", refuse)
    monkeypatch.setattr(pipeline, "int8_step", lambda *words: pytest.fail("INT8 has begun"))
    out = tmp_path / "export"
    assert run([*EXPORT, "--out", str(out)]) == 2
    assert "Loop: it has no kernel" in capsys.readouterr().err
    assert not out.exists()


def test_a_library_of_another_generator_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prebuilt.kernels_sha256()
    for file in Path(prebuilt.__file__).parent.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(prebuilt, "__file__", str(tmp_path / "prebuilt.py"))
    assert prebuilt.kernels_sha256() == before
    (tmp_path / "passes.py").write_text("# tables by another rule\n")
    assert prebuilt.kernels_sha256() != before


def test_nothing_named_is_refused() -> None:
    with pytest.raises(InputError, match="`native_library` names nothing; give here, aarch64"):
        library_compilers(" ,")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "qemu"), [("aarch64", "qemu-aarch64"), ("armhf", "qemu-arm")])
def test_a_library_for_another_cpu_gives_the_same_bits_there(name: str, qemu: str, tmp_path: Path) -> None:
    tool = CROSS_COMPILERS[name]
    if missing := [t for t in (tool, qemu) if not shutil.which(t)]:
        pytest.skip(f"not installed: {missing[0]}")
    shutil.copy(SHIPPED / FILE, tmp_path)
    (library,) = write_libraries(tmp_path / FILE, name)
    assert library.name == f"{FILE}.{name}.so"
    artifact = read_artifact(tmp_path / FILE)
    image = artifact.card.goldens.images[0]
    (tmp_path / "main.c").write_text(_MAIN % (image.size, len(artifact.card.labels)))
    words = [tool, "-O1", "main.c", "-ldl", "-o", "main"]
    assert subprocess.run(words, cwd=tmp_path).returncode == 0
    place = f"/usr/{tool.removesuffix('-gcc')}"
    done = subprocess.run(
        [qemu, "-L", place, "./main", str(library)], input=image.tobytes(), cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0
    program = program_of(artifact)
    assert done.stdout == simulate(program, image)[program.logits.name].tobytes()


_MAIN = """
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef struct { void *arena; const void *kernels; } net;
int main(int argc, char **argv) {
  static uint8_t image[%d];
  float logits[%d], probabilities[sizeof logits / sizeof *logits];
  void *library = dlopen(argv[argc - 1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%%s\\n", dlerror()), 1;
  size_t (*bytes)(void);
  int (*init)(net *, void *, size_t, const char *);
  void (*run)(const net *, const uint8_t *, float *, float *);
  *(void **)&bytes = dlsym(library, "qdeploy_native_arena_bytes");
  *(void **)&init = dlsym(library, "qdeploy_native_init");
  *(void **)&run = dlsym(library, "qdeploy_native_run");
  net context;
  if (init(&context, aligned_alloc(64, (bytes() + 63) / 64 * 64), bytes(), NULL)) return 2;
  if (fread(image, 1, sizeof image, stdin) != sizeof image) return 3;
  run(&context, image, logits, probabilities);
  return fwrite(logits, 1, sizeof logits, stdout) != sizeof logits;
}
"""
