"""A GPU and a TensorRT of ordinary memory: the plan is an ONNX file, which ONNX Runtime runs.

It proves the session's own work: addresses, sizes, shapes, order of calls, parts of a batch, freeing. It proves nothing
about TensorRT.
"""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

STREAM = 7


class Status(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815


class Copy(enum.IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815


class StandInCuda:
    """What the session calls of ``cuda.bindings.runtime``."""

    cudaError_t = Status  # noqa: N815
    cudaMemcpyKind = Copy  # noqa: N815

    def __init__(self, compute_capability: tuple[int, int] = (9, 0), memory_bytes: int = 1 << 30) -> None:
        self.compute_capability = compute_capability
        self.free_bytes = memory_bytes
        self.memory: dict[int, np.ndarray] = {}
        self.streams = 0
        self.contexts: list[StandInContext] = []
        """Every context that was ever made on it."""

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, status.name.encode()

    def cudaGetDeviceCount(self) -> tuple[Status, int]:
        return Status.cudaSuccess, 1

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, Any]:
        major, minor = self.compute_capability
        return Status.cudaSuccess, SimpleNamespace(name=b"Stand-in" + bytes(248), major=major, minor=minor)

    def cudaStreamCreate(self) -> tuple[Status, int]:
        self.streams += 1
        return Status.cudaSuccess, STREAM

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        self.streams -= 1
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        if size > self.free_bytes:
            return Status.cudaErrorMemoryAllocation, 0
        block = np.full(size, 0xEE, np.uint8)
        self.memory[block.ctypes.data] = block
        return Status.cudaSuccess, block.ctypes.data

    def cudaFree(self, pointer: int) -> tuple[Status]:
        del self.memory[pointer]
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Copy, stream: int) -> tuple[Status]:
        on_device = to if kind == Copy.cudaMemcpyHostToDevice else source
        if stream != STREAM or on_device not in self.memory or size > self.memory[on_device].nbytes:
            return (Status.cudaErrorInvalidValue,)
        ctypes.memmove(to, source, size)
        return (Status.cudaSuccess,)


class StandInContext:
    def __init__(self, plan: bytes) -> None:
        self.session = ort.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self.address: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.batches: list[int] = []
        self.fails = False

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.fails:
            return False
        self.batches.append(self.shape[0])
        size = int(np.prod(self.shape))
        image = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address["image"])).reshape(self.shape)
        names = ["logits", "probabilities"]
        for name, values in zip(names, self.session.run(names, {"image": image.copy()}), strict=True):
            ctypes.memmove(self.address[name], np.ascontiguousarray(values).ctypes.data, values.nbytes)
        return True


class StandInLogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"


def stand_in_tensorrt(device: StandInCuda, version: str = "11.4.0") -> Any:
    """Give what the session calls of the package ``tensorrt``."""

    class StandInRuntime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if plan.startswith(b"refused"):
                self.logger.log(StandInLogger.ERROR, "no kernel\nfits")
                return None
            return SimpleNamespace(create_execution_context=lambda: self.context(plan))

        def context(self, plan: bytes) -> StandInContext:
            device.contexts.append(StandInContext(plan))
            return device.contexts[-1]

    return SimpleNamespace(__version__=version, ILogger=StandInLogger, Runtime=StandInRuntime)
