"""Training: ``train(config)``, ``resume(folder)`` and the configurations they take."""

from qdeploy.training.loop import resume, train
from qdeploy.training.plan import Plan, plan
from qdeploy.training.recipes import RECIPES, TrainConfig, config_from_recipe
from qdeploy.training.run_files import TrainResult

__all__ = ["RECIPES", "Plan", "TrainConfig", "TrainResult", "config_from_recipe", "plan", "resume", "train"]
