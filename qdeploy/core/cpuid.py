"""The CPU's instruction sets as CPUID reports them, which ONNX Runtime asks, too, to choose its kernels.

``/proc/cpuinfo`` exists on Linux only, and its answer can differ from the instruction's: in a sandbox that hides the
file, and under CPUID faulting. Nothing is compiled: a few bytes of machine code are written into memory and called.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from collections.abc import Callable
from functools import lru_cache

Registers = tuple[int, int, int, int]
"""Values of EAX, EBX, ECX and EDX."""
Cpuid = Callable[[int, int], Registers]
"""Return the registers for a leaf and a sub-leaf."""

_STORE = bytes.fromhex("418900 41895804 41894808 4189500c 5b c3")  # to [r8]: eax, ebx, ecx, edx; pop rbx; ret
_SYSTEM_V = bytes.fromhex("53 4989d0 89f8 89f1 0fa2") + _STORE  # push rbx; r8 = rdx; eax = edi; ecx = esi; cpuid
_WINDOWS = bytes.fromhex("53 89c8 89d1 0fa2") + _STORE  # push rbx; eax = ecx; ecx = edx; cpuid
_XGETBV = bytes.fromhex("31c9 0f01d0 c3")  # ecx = 0; xgetbv; ret: which registers the system saves
_XGETBV_AT = 64

_EAX, _EBX, _ECX, _EDX = range(4)
_AVX, _AVX512, _AMX = 0x6, 0xE6, 0x60000  # what of XCR0 the system must have switched on
_FLAGS: dict[str, tuple[int, int, int, int, int]] = {
    "sse4_1": (1, 0, _ECX, 19, 0),
    "fma": (1, 0, _ECX, 12, _AVX),
    "avx": (1, 0, _ECX, 28, _AVX),
    "avx2": (7, 0, _EBX, 5, _AVX),
    "avx512f": (7, 0, _EBX, 16, _AVX512),
    "avx512_vnni": (7, 0, _ECX, 11, _AVX512),
    "amx_bf16": (7, 0, _EDX, 22, _AMX),
    "amx_int8": (7, 0, _EDX, 25, _AMX),
    "avx_vnni": (7, 1, 0, 4, _AVX),
    "avx512_bf16": (7, 1, 0, 5, _AVX512),
}
"""Linux's name of a flag: leaf, sub-leaf, register, bit, and the bits of XCR0 that it needs."""
_OSXSAVE = 27


@lru_cache(maxsize=1)
def x86_flags() -> frozenset[str] | None:
    """Return the flags in ``_FLAGS`` that this CPU and system offer; None if it is no x86-64 or cannot be asked."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.maxsize < 2**32:
        return None
    try:
        cpuid, xcr0 = _functions()
    except (OSError, ValueError, AttributeError):  # a system that lets no page become code
        return None
    return flags_of(cpuid, xcr0)


def flags_of(cpuid: Cpuid, xcr0: Callable[[], int]) -> frozenset[str]:
    """Return the flags that CPUID reports and the operating system has switched on.

    Args:
        cpuid: Returns the registers for a leaf and a sub-leaf.
        xcr0: Returns the register of what the system saves; called only if CPUID says that it can be read.
    """
    highest = cpuid(0, 0)[_EAX]
    leaf_1 = cpuid(1, 0)
    leaf_7 = cpuid(7, 0) if highest >= 7 else (0, 0, 0, 0)
    leaves = {(1, 0): leaf_1, (7, 0): leaf_7, (7, 1): cpuid(7, 1) if leaf_7[_EAX] >= 1 else (0, 0, 0, 0)}
    saved = xcr0() if leaf_1[_ECX] >> _OSXSAVE & 1 else 0
    return frozenset(
        name
        for name, (leaf, sub, register, bit, needs) in _FLAGS.items()
        if leaves[leaf, sub][register] >> bit & 1 and saved & needs == needs
    )


def _functions() -> tuple[Cpuid, Callable[[], int]]:
    """Place the machine code in memory and return it as functions.

    Raises:
        OSError: If the system refuses.
    """
    address = _page((_WINDOWS if sys.platform == "win32" else _SYSTEM_V).ljust(_XGETBV_AT, b"\xcc") + _XGETBV)
    code = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)
    xgetbv = ctypes.CFUNCTYPE(ctypes.c_uint32)(address + _XGETBV_AT)

    def cpuid(leaf: int, sub: int) -> Registers:
        registers = (ctypes.c_uint32 * 4)()
        code(leaf, sub, ctypes.addressof(registers))
        eax, ebx, ecx, edx = registers
        return eax, ebx, ecx, edx

    return cpuid, xgetbv


def _page(code: bytes) -> int:
    """Return the address of a page of memory that holds code; it is never writable and executable at once."""
    if sys.platform == "win32":
        return _windows_page(code)
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    _kept.append(memory)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        raise OSError(ctypes.get_errno(), "no page can be made executable")
    return address


_kept: list[mmap.mmap] = []
"""Pages whose code may be called for as long as the process lives."""


def _windows_page(code: bytes) -> int:
    kernel = ctypes.CDLL("kernel32")  # on 64 bits there is one calling convention
    kernel.VirtualAlloc.restype = ctypes.c_void_p
    kernel.VirtualAlloc.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32)
    kernel.VirtualProtect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p)
    commit_and_reserve, read_write, read_execute = 0x3000, 0x04, 0x20
    address = kernel.VirtualAlloc(None, len(code), commit_and_reserve, read_write)
    if not address:
        raise OSError("no page of memory for code")
    ctypes.memmove(address, code, len(code))
    before = ctypes.c_uint32()
    if not kernel.VirtualProtect(address, len(code), read_execute, ctypes.byref(before)):
        raise OSError("no page can be made executable")
    return int(address)
