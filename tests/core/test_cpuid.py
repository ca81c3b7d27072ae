"""What CPUID says, against Linux's own reading of it and made-up answers."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from qdeploy.core import machine
from qdeploy.core.cpuid import flags_of, x86_flags
from qdeploy.core.machine import SPEED_FLAGS, cpu_flags, native_target, saturates
from qdeploy.runtime.engines.onnxruntime_options import EXACT_PRODUCTS, WAITING, cpu_engine, cpu_note, session_entries

AVX512_STATE, AVX_STATE = 0xE7, 0x7
AVX2, AVX512F, VNNI, AVX_VNNI, AMX_INT8 = (7, 0, 1, 5), (7, 0, 1, 16), (7, 0, 2, 11), (7, 1, 0, 4), (7, 0, 3, 25)
OSXSAVE = (1, 0, 2, 27)
x86_linux = pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="no x86")

undisguised = pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="this process may see another CPU than Linux")


def answering(
    *bits: tuple[int, int, int, int], highest: int = 7, sub_leaves: int = 1
) -> Callable[..., tuple[int, ...]]:
    """Return a CPUID with these bits: leaf, sub-leaf, register, bit."""

    def answer(leaf: int, sub: int) -> tuple[int, ...]:
        assert leaf <= highest, "a leaf that this CPU has not"
        registers = [highest if leaf == 0 else sub_leaves if (leaf, sub) == (7, 0) else 0, 0, 0, 0]
        for at, below, register, bit in bits:
            if (at, below) == (leaf, sub):
                registers[register] |= 1 << bit
        return tuple(registers)

    return answer


def no_state() -> int:
    raise AssertionError("XGETBV is an illegal instruction here")


@pytest.mark.parametrize(
    ("bits", "state", "expected"),
    [
        ((OSXSAVE, AVX2, AVX512F, VNNI, AVX_VNNI), AVX512_STATE, {"avx2", "avx512f", "avx512_vnni", "avx_vnni"}),
        ((OSXSAVE, AVX2, AVX512F, VNNI, AVX_VNNI), AVX_STATE, {"avx2", "avx_vnni"}),  # a system that saves no AVX-512
        ((OSXSAVE, AVX2, AMX_INT8), AVX512_STATE, {"avx2"}),
        ((OSXSAVE, AVX2, AMX_INT8), AVX512_STATE | 0x60000, {"avx2", "amx_int8"}),
    ],
)
def test_a_flag_counts_if_the_system_saves_its_registers(
    bits: tuple[tuple[int, int, int, int], ...], state: int, expected: set[str]
) -> None:
    assert flags_of(answering(*bits), lambda: state) == expected  # type: ignore[arg-type]


def test_old_cpus_are_not_asked_what_they_do_not_know() -> None:
    assert flags_of(answering((1, 0, 2, 19), highest=1), no_state) == {"sse4_1"}  # type: ignore[arg-type]
    old = answering(OSXSAVE, AVX2, AVX_VNNI, sub_leaves=0)
    assert flags_of(old, lambda: AVX_STATE) == {"avx2"}  # type: ignore[arg-type]


@x86_linux
@undisguised
def test_it_agrees_with_linux() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    linux = set(next(line for line in lines if line.startswith("flags")).split())
    assert x86_flags() == frozenset(linux & set(SPEED_FLAGS))


@x86_linux
@undisguised
def test_where_no_page_can_become_code_linux_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("operation not permitted")

    before = cpu_flags()
    monkeypatch.setattr("mmap.mmap", refused)
    for function in (x86_flags, cpu_flags):
        function.cache_clear()
    try:
        assert x86_flags() is None
        assert cpu_flags() & set(SPEED_FLAGS) == before
    finally:
        for function in (x86_flags, cpu_flags):
            function.cache_clear()


@pytest.mark.parametrize(
    ("architecture", "flags", "target", "exact"),
    [
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, "x86", set()),
        ("x86_64", {"avx2", "avx_vnni"}, "x86", set()),
        ("x86_64", {"avx2", "avx512f"}, "x86-avx2", {"x86", "arm", "portable", "openvino", "tensorrt"}),
        ("x86_64", {"avx2"}, "x86-avx2", {"x86", "arm", "portable", "openvino", "tensorrt"}),
        ("AMD64", set(), "x86-avx2", {"x86", "arm", "portable", "openvino", "tensorrt"}),  # flags unknown: to be safe
        ("aarch64", {"asimd"}, "arm", set()),
    ],
)
def test_exact_products_are_asked_for_exactly_where_they_are_needed(
    architecture: str, flags: set[str], target: str, exact: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdeploy.runtime.engines import onnxruntime_options

    monkeypatch.setattr("platform.machine", lambda: architecture)
    for module in (machine, onnxruntime_options):
        monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))
    assert native_target() == target
    for made_for in ("float", "x86", "x86-avx2", "arm", "portable", "openvino", "tensorrt"):
        needed = made_for in exact
        assert saturates(made_for) is needed
        assert session_entries(made_for) == ({**WAITING, **EXACT_PRODUCTS} if needed else WAITING)
        assert cpu_engine("1.32.0", "library", made_for).endswith("exact products") is needed
        note = cpu_note(Path("model.int8.onnx"), made_for)
        assert (note is not None) is (needed and "avx2" in flags)
