"""``qdeploy tune``: the best file, engine, threads and batch for this machine, by measurement."""

from qdeploy.runtime.tune.limits import Limits
from qdeploy.runtime.tune.report import Candidate, TuneReport
from qdeploy.runtime.tune.run import TuneConfig, tune

__all__ = ["Candidate", "Limits", "TuneConfig", "TuneReport", "tune"]
