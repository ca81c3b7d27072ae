"""The disguises work: CPUID answers as the CPU would, and ONNX Runtime computes as it does there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qdeploy.core.artifact import SHIPPED
from tests.emulation.disguise import CPUS, disguise, disguise_program, unavailable

pytestmark = pytest.mark.slow
NO_VNNI = ("haswell", "skylake-x")
SATURATED_DB = 35
"""28 dB measured with saturating kernels, 145 dB with others."""

FLAGS = {
    "nehalem": set(),
    "sandybridge": {"osxsave", "avx"},
    "haswell": {"osxsave", "avx", "fma", "avx2"},
    "skylake-x": {"osxsave", "avx", "fma", "avx2", "avx512f", "avx512bw"},
    "alderlake": {"osxsave", "avx", "fma", "avx2", "avx_vnni"},
    "icelake": {"osxsave", "avx", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni"},
}
"""What Intel's processors have of the flags that matter to 8-bit kernels."""

# push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid; store eax, ebx, ecx, edx at [r8]; pop rbx; ret
CPUID_PROGRAM = """
import ctypes, mmap, threading
page = mmap.mmap(-1, mmap.PAGESIZE)
page.write(bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
executable = ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
assert executable == 0
code = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)
def cpuid(leaf, sub):
    registers = (ctypes.c_uint32 * 4)()
    code(leaf, sub, ctypes.addressof(registers))
    return list(registers)
places = {
    "osxsave": (1, 0, 2, 27), "avx": (1, 0, 2, 28), "fma": (1, 0, 2, 12), "avx2": (7, 0, 1, 5),
    "avx512f": (7, 0, 1, 16), "avx512bw": (7, 0, 1, 30), "avx512_vnni": (7, 0, 2, 11), "amx_int8": (7, 0, 3, 25),
    "avx_vnni": (7, 1, 0, 4), "avx_vnni_int8": (7, 1, 3, 4),
}
def show():
    print(*(n for n, (leaf, sub, register, bit) in places.items() if cpuid(leaf, sub)[register] >> bit & 1))
show()
thread = threading.Thread(target=show)
thread.start()
thread.join()
"""

GOLDENS_PROGRAM = """
import sys
from pathlib import Path
import onnxruntime
from qdeploy.core.artifact import read_artifact
artifact = read_artifact(Path(sys.argv[1]))
goldens = artifact.card.goldens
session = onnxruntime.InferenceSession(artifact.data, providers=["CPUExecutionProvider"])
print(goldens.sqnr_db(session.run(["logits"], {"image": goldens.images})[0].tolist()))
"""

C_PROGRAM = """
#include <cpuid.h>
int main(void) { unsigned a, b, c, d; return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1); }
"""


def playable(*names: str) -> list[object]:
    """Return parameters, of which those that this computer cannot play are skipped."""
    reasons = {name: unavailable(name) for name in names}
    return [pytest.param(n, marks=pytest.mark.skipif(r is not None, reason=str(r))) for n, r in reasons.items()]


def run(cpu: str, folder: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | disguise(cpu, folder)
    return subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("cpu", playable(*CPUS))
def test_cpuid_answers_as_that_cpu_in_every_thread(cpu: str, disguises: Path) -> None:
    done = run(cpu, disguises, CPUID_PROGRAM)
    assert [set(line.split()) for line in done.stdout.splitlines()] == [FLAGS[cpu]] * 2, done.stderr


@pytest.mark.parametrize("cpu", playable(*CPUS))
def test_onnx_runtime_saturates_where_that_cpu_would(cpu: str, disguises: Path) -> None:
    done = run(cpu, disguises, GOLDENS_PROGRAM, str(SHIPPED / "model.int8.onnx"))
    assert done.returncode == 0, done.stderr
    assert (float(done.stdout) < SATURATED_DB) == (cpu in NO_VNNI), done.stdout


@pytest.mark.parametrize("cpu", playable("haswell", "icelake"))
def test_a_compiled_program_can_be_disguised(cpu: str, disguises: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "vnni.c", tmp_path / "vnni"
    source.write_text(C_PROGRAM)
    subprocess.run(["cc", "-o", program, source], check=True)
    disguise_program(program)
    assert subprocess.run([program], env=os.environ | disguise(cpu, disguises)).returncode == (cpu == "icelake")


@pytest.mark.parametrize("cpu", playable("nehalem"))
def test_a_real_fault_still_ends_the_program(cpu: str, disguises: Path) -> None:
    assert run(cpu, disguises, "import ctypes; ctypes.string_at(8)").returncode == -signal.SIGSEGV


def test_an_unknown_cpu_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no CPU 'i486'; known: nehalem"):
        disguise("i486", tmp_path)
