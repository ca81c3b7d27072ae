"""``qdeploy tune``: the best file, engine, threads and batch for this machine, by measurement."""

from qdeploy.bench.tune.limits import Limits
from qdeploy.bench.tune.report import CandidateReport, TuneReport
from qdeploy.bench.tune.run import TuneConfig, tune

__all__ = ["CandidateReport", "Limits", "TuneConfig", "TuneReport", "tune"]
