"""Runs commands where any word to the outside and any file beside our own would show.

The home folder is empty. The network is a new namespace of the kernel's, with no interface that is up: whatever a
process tries to send there, a name to look up say, goes nowhere and is counted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

COUNTERS = ("IpOutRequests", "IpOutNoRoutes", "TcpActiveOpens", "UdpOutDatagrams", "Ip6OutRequests", "Ip6OutNoRoutes")
_KEPT = ("PATH", "LANG", "LC_", "TMPDIR", "PYTHON", "OMP_", "LD_", "QDEPLOY_TEST_CPU", "QDEPLOY_ORT_WEB", "VIRTUAL_ENV")
"""What of the environment a user's shell would have too; under ``CI``, say, ONNX Runtime sends nothing in any case."""
REPORTS = (Path("/proc/net/snmp"), Path("/proc/net/snmp6"))
SCRIPT = f'report=$1; shift; "$@"; code=$?; cat {REPORTS[0]} {REPORTS[1]} > "$report"; exit $code'


@cache
def namespace() -> tuple[str, ...] | None:
    """Return the words that run a command without a network; None where the kernel does not let us."""
    for words in (("unshare", "--net"), ("unshare", "--net", "--map-root-user")):
        if shutil.which(words[0]) and subprocess.run([*words, "true"], capture_output=True).returncode == 0:
            return words
    return None


def quiet_environment(home: Path) -> dict[str, str]:
    """Return the environment of a user whose home folder is this one, who has set nothing."""
    kept = {k: v for k, v in os.environ.items() if k.startswith(_KEPT)}
    return {**kept, "HOME": str(home)}


def run_quietly(
    command: Sequence[str | Path], home: Path, cwd: Path, extra: Mapping[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, int]]:
    """Run a command without a network; return what became of it, and the counters that are not zero."""
    words = namespace()
    assert words is not None
    report = home.parent / "network"
    done = subprocess.run(
        [*words, "sh", "-c", SCRIPT, "sh", report, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**quiet_environment(home), **(extra or {})},
    )
    return done, sent(report.read_text())


def sent(report: str | None = None) -> dict[str, int]:
    """Return the counters that are not zero; of this process's own network, if no report is given.

    ``/proc/net/snmp`` has two lines for each protocol, ``/proc/net/snmp6`` one for each counter.
    """
    if report is None:
        report = "".join(path.read_text() for path in REPORTS)
    found: dict[str, int] = {}
    names: list[str] = []
    for line in report.splitlines():
        protocol, *values = line.split()
        if not protocol.endswith(":"):
            found[protocol] = int(values[0])
        elif names and names[0].startswith(protocol[:-1]) and values[0].lstrip("-").isdigit():
            found.update(zip(names, map(int, values), strict=True))
        else:
            names = [protocol[:-1] + value for value in values]
    return {name: found[name] for name in COUNTERS if found[name]}


def strange_files(home: Path) -> list[str]:
    """List the files below a home folder that are not in qdeploy's cache."""
    own = home / ".cache" / "qdeploy"
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and own not in p.parents)
