"""Training: ``train(config)``, ``resume(folder)`` and the configurations they take."""

from qdeploy.training.plan import Plan, plan
from qdeploy.training.recipes import RECIPES, TrainConfig, config_from_recipe
from qdeploy.training.run_files import TrainResult
from qdeploy.training.seeds import SeedsResult, train_seeds
from qdeploy.training.start import resume, train

__all__ = [
    "RECIPES",
    "Plan",
    "SeedsResult",
    "TrainConfig",
    "TrainResult",
    "config_from_recipe",
    "plan",
    "resume",
    "train",
    "train_seeds",
]
