"""Checks of this machine: what it can run and what is missing. Nothing is changed; no GPU library is loaded in vain."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from qdeploy.checks.holes import known_holes
from qdeploy.core.artifact import EXPORTS, SHIPPED, Artifact, read_artifact
from qdeploy.core.errors import EngineError, InputError, MissingDependencyError, QdeployError
from qdeploy.core.machine import (
    FAST_INT8_FLAGS,
    SPEED_FLAGS,
    affine_cores,
    cpu_flags,
    cpu_name,
    cpu_quota,
    memory_bytes,
    native_target,
    saturates,
    usable_cores,
)
from qdeploy.core.run_folder import RUNS
from qdeploy.core.telemetry import SWITCHES, set_by_user
from qdeploy.core.whole import require_writable
from qdeploy.data.places import cache_folder
from qdeploy.runtime.classifier import recommended_file
from qdeploy.runtime.engines.tensorrt_library import find_gpu, load_package
from qdeploy.runtime.session import ENGINES, Engine, open_session

LEAST_FREE_BYTES = 200 * 2**20
"""Least free memory (predict takes 100 MB) and disk space (run and export take 20 MB, the cache 12 KiB an image)."""
BASE = ("numpy", "pillow", "onnxruntime", "typer", "rich")
FOR_DEVELOPERS = "dev"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "missing", "warning", "problem"]
    """missing: not here and not needed by everyone; warning: works, and is better not left so; problem: broken."""
    detail: str
    fix: str = ""
    """What to run or do, if anything."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All findings."""

    checks: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return all(c.status != "problem" for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``qdeploy doctor``."""
        return {"ok": self.ok, "checks": [asdict(c) for c in self.checks]}


def diagnose() -> Diagnosis:
    """Look at Python, CPU, memory, folders, the shipped model, engines, GPU and extras."""
    return Diagnosis(checks=tuple(_findings()))


def _findings() -> Iterator[Finding]:
    found = f"{platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    yield Finding(name="python", status="ok", detail=f"{found} at {sys.executable}")
    yield _base()
    yield from holes_findings(_version)
    yield telemetry_finding()
    yield int8_finding()
    yield _cores()
    yield _memory()
    for what, folder in (("runs", RUNS), ("exports", EXPORTS), ("cache", cache_folder())):
        yield folder_finding(what, folder)
    yield gpu_finding()
    if torch_finding := training_gpu_finding():
        yield torch_finding
    try:
        artifact = read_artifact(recommended_file(SHIPPED), trusted=())  # it came with the package
    except QdeployError as error:
        yield Finding(name="shipped model", status="problem", detail=str(error), fix=_REINSTALL)
    else:
        yield Finding(name="shipped model", status="ok", detail=f"{artifact.card.name}, checksum verified")
        for name, engine in ENGINES.items():
            yield engine_finding(name, engine, artifact)
    yield from _extras()


_REINSTALL = "pip install --force-reinstall --no-deps qdeploy"


def _base() -> Finding:
    versions = {name: _version(name) for name in BASE}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        missing = ", ".join(absent)
        return Finding(name="base", status="problem", detail=f"not installed: {missing}", fix="pip install qdeploy")
    return Finding(name="base", status="ok", detail=", ".join(f"{k} {v}" for k, v in versions.items()))


def holes_findings(version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Warn of packages in whose installed version a vulnerability is known."""
    for hole in known_holes(version_of):
        yield Finding(
            name=f"known hole in {hole.package}",
            status="warning",
            detail=f"{hole.package} {version_of(hole.package)}: {hole.what} ({', '.join(hole.ids)})",
            fix=f"pip install -U '{hole.package}>={hole.fixed}'",
        )


def telemetry_finding() -> Finding:
    """Tell whether the libraries in use send usage events to their makers."""
    own = set_by_user()
    if not own:
        detail = f"{' and '.join(SWITCHES)} send no usage events: " + ", ".join(
            f"{name}={value}" for variables in SWITCHES.values() for name, value in variables.items()
        )
        return Finding(name="telemetry", status="ok", detail=detail)
    settings = "; ".join(f"{of}: {', '.join(f'{k}={v}' for k, v in values.items())}" for of, values in own.items())
    names = " ".join(name for of in own for name in SWITCHES[of])
    return Finding(
        name="telemetry",
        status="ok",
        detail=f"as you have set it ({settings}), these libraries may send usage events",
        fix=f"to send none: unset {names}",
    )


def int8_finding() -> Finding:
    """Return how fast INT8 is on this CPU, and which target to export."""
    flags, target = cpu_flags(), native_target()
    known = ", ".join(f for f in SPEED_FLAGS if f in flags) or "flags unknown"
    detail = f"{cpu_name()} ({known}); "
    if target == "arm":
        products = "i8mm" if "i8mm" in flags else "dot products" if "asimddp" in flags else ""
        if products:
            return Finding(name="cpu", status="ok", detail=f"{detail}{products}: fast INT8, target arm")
        detail += "no dot products: INT8 may be no faster than float; compare with `qdeploy bench`"
    elif target == "x86":
        fast = ", ".join(sorted(flags & FAST_INT8_FLAGS))
        return Finding(name="cpu", status="ok", detail=f"{detail}{fast}: fast INT8, target x86")
    elif "avx2" in flags:
        detail += (
            "AVX2 without VNNI: INT8 gains less, and files for other targets run on slower kernels, because 8-bit "
            "weights overflow in the fast ones"
        )
    else:
        detail += "neither VNNI nor AVX2: INT8 may be no faster than float; compare with `qdeploy bench`"
    return Finding(name="cpu", status="missing", detail=detail, fix=f"export with `int8` and `target={target}`")


def _cores() -> Finding:
    quota = cpu_quota()
    limit = "no quota" if quota is None else f"a quota of {quota:g}"
    detail = f"{usable_cores()} usable: {affine_cores()} by affinity, {limit}"
    return Finding(name="cores", status="ok", detail=detail)


def _memory() -> Finding:
    found = memory_bytes()
    if found is None:
        return Finding(name="memory", status="ok", detail="unknown on this system")
    total, free = found
    detail = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        return Finding(name="memory", status="problem", detail=detail, fix="free some: predict takes 100 MB")
    return Finding(name="memory", status="ok", detail=detail)


def folder_finding(name: str, folder: Path) -> Finding:
    """Tell whether a folder can be written to, and the free space of its disk; nothing is created."""
    where = {"cache": "set QDEPLOY_CACHE to a folder that you may write to"}.get(name, "work in another folder")
    try:
        require_writable(folder)
    except InputError as error:
        return Finding(name=name, status="problem", detail=error.what, fix=where)
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    detail = f"{folder} can be written, {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        return Finding(name=name, status="problem", detail=detail, fix=f"free some space, or {where}")
    return Finding(name=name, status="ok", detail=detail)


def gpu_finding() -> Finding:
    """Ask nvidia-smi, or look for the driver's libraries."""
    tool = shutil.which("nvidia-smi")
    if tool:
        fields = "name,driver_version,memory.total,compute_cap"
        try:
            done = subprocess.run(
                [tool, f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.SubprocessError) as error:
            return Finding(name="gpu", status="problem", detail=f"nvidia-smi: {error}", fix="install the driver again")
        text = "; ".join((done.stdout if done.returncode == 0 else done.stderr or done.stdout).split("\n")).strip("; ")
        if done.returncode == 0 and text:
            return Finding(name="gpu", status="ok", detail=text)
        return Finding(name="gpu", status="problem", detail=f"nvidia-smi: {text}", fix="install the driver again")
    library = find_library("nvidia-ml") or find_library("cuda")
    if library:
        return Finding(name="gpu", status="ok", detail=f"the driver's {library} is here, nvidia-smi is not")
    return Finding(name="gpu", status="missing", detail="no NVIDIA driver: everything runs on the CPU")


LEAST_CAPABILITY = ((13.0, 7.5), (12.8, 7.0), (0.0, 5.0))
"""The CUDA that a published PyTorch was built with, and the lowest compute capability that it has kernels for.

Those for 12.8 lose 7.0 from PyTorch 2.11 on; for 12.6 the last is 2.14 (pytorch/pytorch issues 172352 and 190385).
"""


def training_gpu_finding() -> Finding | None:
    """Tell whether the installed PyTorch has kernels for the GPU; None without either. PyTorch is not imported."""
    cuda, capability = torch_cuda(), gpu_capability()
    if cuda is None or capability is None:
        return None
    least = next(least for since, least in LEAST_CAPABILITY if cuda >= since)
    what = f"PyTorch for CUDA {cuda:g}, a GPU of compute capability {capability:g}"
    if capability >= least:
        return Finding(name="training on the GPU", status="ok", detail=what)
    return Finding(
        name="training on the GPU",
        status="problem",
        detail=f"{what}: it has no kernels below {least:g}",
        fix="install a build of PyTorch for CUDA 12.6 (the last is 2.14), or train with device=cpu",
    )


def torch_cuda() -> float | None:
    """Return the CUDA version that the installed PyTorch was built with; None without PyTorch or CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    found = re.search(r"^cuda\b.*= *'(\d+\.\d+)", version.read_text() if version.is_file() else "", flags=re.M)
    return float(found.group(1)) if found else None


def gpu_capability() -> float | None:
    """Return the lowest compute capability of this machine's NVIDIA GPUs; None if nvidia-smi tells none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None  # gpu_finding says so
    values = re.findall(r"^\s*(\d+\.\d+)\s*$", done.stdout, flags=re.M)
    return min(map(float, values), default=None)


def engine_finding(name: str, engine: Engine, artifact: Artifact) -> Finding:
    """Open the shipped model with an engine and compare with its goldens, or say what is lacking."""
    subject = f"engine {name}"
    if engine.builder:
        return _builder_finding(subject, engine, engine.builder)
    if engine.library == "openvino" and saturates(artifact.card.target):
        artifact = read_artifact(SHIPPED / "model.fp32.onnx", trusted=())  # it refuses the INT8 one on this CPU
    try:
        with open_session(artifact, name) as session:
            return Finding(name=subject, status="ok", detail=f"{session.engine}: goldens of the shipped model agree")
    except MissingDependencyError as error:
        return _missing(subject, error)
    except QdeployError as error:
        return Finding(name=subject, status="problem", detail=str(error), fix=f"pip install -U '{engine.install}'")


def _builder_finding(subject: str, engine: Engine, builder: str) -> Finding:
    """Look for the package and a GPU: no plan ships with the package, so nothing is run."""
    try:
        package = f"{builder} {load_package(builder).__version__}"
    except MissingDependencyError as error:
        return _missing(subject, error)
    try:
        gpu = find_gpu()
    except MissingDependencyError as error:
        return _missing(subject, error, f"{package} is installed, but no GPU runs its engines here: ")
    except EngineError as error:
        return Finding(name=subject, status="problem", detail=str(error), fix="install the driver again")
    return Finding(
        name=subject, status="ok", detail=f"{package} on {gpu.name}, compute capability {gpu.compute_capability}"
    )


def _missing(subject: str, error: MissingDependencyError, before: str = "") -> Finding:
    return Finding(name=subject, status="missing", detail=before + error.what, fix=error.command or error.fix)


def _extras() -> Iterator[Finding]:
    """Compare what each extra of the installed package asks for with what is installed."""
    try:
        lines = metadata.requires("qdeploy") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            name="extras", status="missing", detail="qdeploy itself is not installed", fix="pip install qdeploy"
        )
        return
    for extra, packages in _by_extra(lines).items():
        versions = {name: _version(name) for name in packages}
        absent = [name for name, version in versions.items() if version is None]
        here = ", ".join(f"{k} {v}" for k, v in versions.items() if v)
        if absent:
            detail = f"not installed: {', '.join(absent)}" + (f" (here: {here})" if here else "")
            yield Finding(name=f"extra {extra}", status="missing", detail=detail, fix=f"pip install 'qdeploy[{extra}]'")
        else:
            yield Finding(name=f"extra {extra}", status="ok", detail=here)


def _by_extra(lines: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        match = re.match(r"""([\w.-]+).*\bextra == ['"]([\w-]+)['"]""", line)
        if match and match[2] != FOR_DEVELOPERS:
            found.setdefault(match[2], []).append(match[1])
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
