from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from qdeploy.core.errors import InputError
from qdeploy.training import config_from_recipe, plan
from tests.conftest import MakeImages

MEASURE = """
import torch
from qdeploy.core.machine import peak_memory_bytes
from qdeploy.models.registry import create_model

torch.set_num_threads(1)
model = create_model("micro", 200).to(memory_format=torch.channels_last).train()
optimizer = torch.optim.AdamW(model.parameters())
average = [p.detach().clone() for p in model.parameters()]
def step(count):
    image = torch.rand(count, 3, 64, 64).to(memory_format=torch.channels_last)
    loss = torch.nn.functional.cross_entropy(model(image), torch.zeros(count, dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
step(2)
before = peak_memory_bytes()
step(98)
print(peak_memory_bytes() - before)
"""


def test_the_predicted_memory_of_a_batch_is_what_a_process_takes() -> None:
    """A fresh process; the difference between a batch of 2 and one of 98, so that libraries do not count."""
    small, large = (plan(config_from_recipe("small", model="micro", batch_size=n, amp="off")) for n in (2, 98))
    predicted = large.memory_bytes - small.memory_bytes
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(predicted, rel=0.35)


def test_parameters_are_counted_at_the_classes_of_the_data(image_folder: MakeImages) -> None:
    folder = str(image_folder(("cat", "cow", "dog"), count=1))
    found = {data: plan(config_from_recipe("small", model="nano-ar", data=data)) for data in (folder, "cifar-100")}
    assert [p.classes for p in found.values()] == [3, 100]
    assert found["cifar-100"].params - found[folder].params == 97 * 65  # the last layer: 64 weights and a bias
    with pytest.raises(InputError, match="no data folder or data set named 'nowhere'"):
        plan(config_from_recipe("small", data="nowhere"))


def test_the_reported_model_s_memory_is_that_of_the_design() -> None:
    """4.03 GB of saved tensors in half precision at batch 256 were counted independently for 5.9 GAP."""
    half = plan(config_from_recipe("qonstraint-5.9", device="cpu", amp="bf16"), num_classes=200)
    assert half.activation_bytes == pytest.approx(4.03e9, rel=0.1)
    assert half.state_bytes == 5 * 4 * 96_595_744
    assert half.memory_bytes < 9.2e9  # the paper's card
    full = plan(config_from_recipe("qonstraint-5.9", device="cpu", amp="off"), num_classes=200)
    assert 1.5 < full.activation_bytes / half.activation_bytes < 2.1
    assert torch.get_default_dtype() is torch.float32
