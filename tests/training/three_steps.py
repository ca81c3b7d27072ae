"""Three training steps on a fixed global batch, each process on its share; process 0 saves the weights to argv[1].

Run alone or under torchrun by test_distributed.py. The norms use their running statistics, so that what is left
to differ between one process and two is the averaging of the gradients.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from qdeploy.core.preprocessing import Preprocessing
from qdeploy.models.layers import DropPath
from qdeploy.models.registry import create_model
from qdeploy.training.batches import Batch
from qdeploy.training.checkpoint import nested
from qdeploy.training.device import choose_precision
from qdeploy.training.distributed import joined
from qdeploy.training.learner import Learner, Tally
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.schedule import Settings

SETTINGS = Settings(lr=1e-3, momentum=0.9, ema=0.5, label_smoothing=0.1, auxiliary_weight=0.0, confidence=0.5)

with joined(torch.device("cpu")) as world:
    torch.manual_seed(0)
    model = create_model("nano-ar", 4)
    for module in model.modules():
        if isinstance(module, DropPath):
            module.base_rate = 0.0
    config = TrainConfig(clip_norm=0.1)
    learner = Learner(model, config, choose_precision("cpu", "off"), Preprocessing(), world)
    model.eval()
    model.train = lambda mode=True: model  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3):
        image = torch.randn(8, 3, 64, 64, generator=generator)[world.rank :: world.size]
        labels = torch.arange(8)[world.rank :: world.size] % 4
        batch = Batch(image=image, target=F.one_hot(labels, 4).float(), labels=labels)
        tally = Tally(world)
        learner.step(batch, SETTINGS, tally)
        losses.append(tally.score().loss)
    weights = nested("model", model.state_dict()) | nested("average", learner.average.twin.state_dict())
    everyone = [torch.cat([w.flatten() for w in weights.values() if w.is_floating_point()])]
    everyone = world.gather(everyone[0])
    assert all(torch.equal(everyone[0], other) for other in everyone), "the processes have drifted apart"
    if world.writes:
        save_file({**weights, "losses": torch.tensor(losses)}, sys.argv[1])
