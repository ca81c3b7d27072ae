from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.core.errors import InputError, VerdictError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.core.run_folder import read_run
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.int8.finetune import (
    FakeQuantized,
    FinetuneConfig,
    fake_quantize_activation,
    fake_quantize_weight,
    finetune,
    layers_of_nodes,
    layers_to_quantize,
)
from qdeploy.export.sources.trace import trace
from qdeploy.models.folding import deploy
from qdeploy.models.registry import create_model, model_from_record
from qdeploy.training import TrainResult
from tests.export.test_other_models import lived_in

RULES = Preprocessing()
SIZE = 8


class Net(nn.Module):
    """What a user may bring: a BatchNorm behind a convolution, a Dropout, a layer that another one uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.norm(self.conv(image))).mean(dim=(2, 3))))


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return deploy(lived_in(Net()), RULES.mean, RULES.std)


def small_data(count: int = 64) -> Dataset:
    """Give images whose class is their brightest quarter."""
    rng = np.random.default_rng(0)
    splits = {}
    for name in ("train", "val", "test"):
        labels = rng.integers(0, 4, count)
        pixels = rng.integers(0, 120, (count, SIZE, SIZE, 3), dtype=np.uint8)
        for image, k in zip(pixels, labels, strict=True):
            image[4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4, k % 3] += 120
        hashes = tuple(f"{name}{i}" for i in range(count))
        splits[name] = Split(pixels=pixels, labels=labels.astype(np.int64), hashes=hashes)
    rules = replace(RULES, size=32)
    return Dataset(name="quarters", classes=tuple("abcd"), preprocessing=rules, splits=splits, problems=())


def round_by_hand(x: np.ndarray[Any, Any], low: float, high: float, levels: int) -> np.ndarray[Any, Any]:
    scale = (high - low) / levels
    zero = round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, levels) - zero) * scale


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_rounded_per_output_channel_and_gradients_pass(bits: int) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(5, 3, 3, 3) * torch.tensor([1.0, 10, 0.1, 1e-3, 0]).reshape(-1, 1, 1, 1)).requires_grad_()
    found = fake_quantize_weight(weight, bits)
    for row, expected in zip(found.detach().numpy(), weight.detach().numpy(), strict=True):
        scale = max(float(np.abs(expected).max()), 1e-30) / (2 ** (bits - 1) - 1)
        assert np.allclose(row, np.round(expected / scale) * scale, rtol=1e-5, atol=0)
        assert len(np.unique(row)) <= 2**bits - 1
    found.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize("bits", [8, 4])
def test_activations_are_rounded_in_their_range_and_gradients_pass_inside(bits: int) -> None:
    x = torch.linspace(-2, 5, 701, requires_grad=True)
    found = fake_quantize_activation(x, torch.tensor(-1.0), torch.tensor(4.0), bits)
    expected = round_by_hand(x.detach().numpy(), -1.0, 4.0, 2**bits - 1)
    half_way = np.abs(np.abs(found.detach().numpy() - expected) - 5 / (2**bits - 1)) < 1e-5
    assert (np.isclose(found.detach().numpy(), expected, atol=1e-5) | half_way).all()
    assert half_way.mean() < 0.02
    assert (found == 0).any()  # zero is exact
    found.sum().backward()
    assert x.grad is not None
    assert (x.grad[(x > -0.9) & (x < 3.9)] == 1).all()
    assert (x.grad[(x < -1.4) | (x > 4.4)] == 0).all()


def test_a_model_computes_with_rounded_weights_and_inputs() -> None:
    module, image = small_net(), torch.from_numpy(small_data().splits["train"].pixels)
    net = module.get_submodule("model")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fake = FakeQuantized(module, layers_to_quantize(module), 4)
    fake.observe(iter(image.split(7)))
    assert set(fake.ranges) == {"model.conv", "model.fc"}  # one is never called
    with torch.no_grad():
        found = fake.logits(image)
        mean, std = torch.tensor(RULES.mean), torch.tensor(RULES.std)
        x = ((image.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        # by the folded convolution, as the exporter makes it
        conv, norm, fc = net.get_submodule("conv"), net.get_submodule("norm"), net.get_submodule("fc")
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        folded = conv.get_parameter("weight") * gain.reshape(-1, 1, 1, 1)
        scale = folded.abs().amax(dim=(1, 2, 3), keepdim=True) / 7
        x_q = torch.from_numpy(round_by_hand(x.double().numpy(), min(0.0, float(x.min())), float(x.max()), 15)).float()
        y = F.conv2d(x_q, (folded / scale).round() * scale, norm.bias - norm.running_mean * gain, padding=1)
        exact = F.conv2d(x, folded, norm.bias - norm.running_mean * gain, padding=1)
        pooled, pooled_exact = F.relu(y).mean(dim=(2, 3)), F.relu(exact).mean(dim=(2, 3))
        pooled_q = round_by_hand(pooled.double().numpy(), 0.0, float(pooled_exact.max()), 15)
        w = fc.get_parameter("weight")
        step = w.abs().amax(dim=1, keepdim=True) / 7
        expected = torch.from_numpy(pooled_q).float() @ ((w / step).round() * step).T + fc.get_parameter("bias")
        plain = module(image)[0]
    assert (found - plain).abs().max() > 0.01
    close = (found - expected).abs().amax(dim=1) < 1e-3
    assert close.float().mean() > 0.9  # a value half-way between two steps may be rounded either way
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module(image)[0], plain)  # nothing of it stays


@pytest.mark.slow
def test_a_harshly_quantized_model_regains_accuracy(trained: TrainResult) -> None:
    record, weights = read_run(Path(trained.run))
    model = model_from_record(record.model.family, record.model.config)
    model.load_state_dict(load_tensors(weights))
    deployed = deploy(model, RULES.mean, RULES.std)
    dataset = load_dataset()
    sizes = {"train": 1024, "val": 100, "test": 400}
    splits = {name: s.take(np.arange(sizes[name], dtype=np.int64)) for name, s in dataset.splits.items()}
    lines: list[str] = []
    config = FinetuneConfig(bits=4, epochs=2, batch_size=24, lr=3e-4, calibration_images=96)
    tuned = finetune(deployed, replace(dataset, splits=splits), config, lines.append)
    before, after = accuracy(deployed, splits), accuracy(tuned, splits)
    assert after > before + 10, (before, after)
    assert len(lines) == 3
    assert "epoch 1/2" in lines[1]
    assert "0 s left" in lines[2]


def accuracy(module: nn.Module, splits: dict[str, Split]) -> float:
    """Give the percent of test images that a module gets right at 4 bits."""
    fake = FakeQuantized(module, layers_to_quantize(module), 4)
    fake.observe(iter(torch.from_numpy(splits["train"].pixels[:96]).split(48)))
    with torch.no_grad():
        logits = torch.cat([fake.logits(image) for image in torch.from_numpy(splits["test"].pixels).split(100)])
    return 100 * float((logits.argmax(dim=1).numpy() == splits["test"].labels).mean())


def test_what_comes_back_is_plain_float_and_repeatable() -> None:
    module, data = small_net(), small_data()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    config = FinetuneConfig(
        epochs=3, lr=2e-2, batch_size=10, calibration_images=16, flip=True, bits=5, distillation=0.1
    )
    tuned = finetune(module, data, config)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    state = tuned.state_dict()
    assert list(state) == list(before)
    changed = {name for name in before if not torch.equal(state[name], before[name])}
    assert {"model.conv.weight", "model.fc.weight", "model.norm.weight"} <= changed
    assert not any("running" in name or "unused" in name for name in changed)
    assert not any(p.requires_grad for p in tuned.parameters())
    assert not any(m.training or m._forward_pre_hooks for m in tuned.modules())
    again = finetune(module, data, config).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    other = finetune(module, data, replace(config, seed=1)).state_dict()
    assert not all(torch.equal(value, other[name]) for name, value in state.items())
    graph = trace(tuned, SIZE)
    assert not any("Quantize" in node.op_type for node in graph.graph.node)


def test_an_epoch_that_makes_it_worse_is_not_kept() -> None:
    data = small_data()
    good = finetune(small_net(), data, FinetuneConfig(epochs=12, lr=2e-2, batch_size=8, distillation=0.0))
    lines: list[str] = []
    wild = finetune(good, data, FinetuneConfig(epochs=1, lr=1.0, batch_size=8, distillation=0.0), lines.append)
    before, after = (float(line.split(" %")[0].split()[-1]) for line in lines)
    assert after < before
    assert all(torch.equal(value, good.state_dict()[name]) for name, value in wild.state_dict().items())


def test_float_modules_are_not_rounded() -> None:
    module = small_net()
    assert set(layers_to_quantize(module)) == {"model.conv", "model.fc", "model.unused"}
    assert set(layers_to_quantize(module, ("model.conv",))) == {"model.fc", "model.unused"}
    nano = deploy(create_model("nano", 10).eval(), RULES.mean, RULES.std)
    inside = [name for name in layers_to_quantize(nano) if name.startswith("stem.")]
    assert inside
    assert set(layers_to_quantize(nano)) - set(layers_to_quantize(nano, ("stem",))) == set(inside)


def test_nodes_of_the_graph_lead_back_to_their_layers() -> None:
    module = small_net()
    graph = trace(module, SIZE)
    nodes = [n.name for n in graph.graph.node if n.op_type in ("Conv", "Gemm")]
    assert nodes == ["model.norm/Conv", "model.fc/Gemm"]
    assert layers_of_nodes(module, nodes, SIZE) == ("model.conv", "model.fc")
    assert layers_of_nodes(module, nodes[:1], SIZE) == ("model.conv",)
    assert layers_of_nodes(module, ["model/Softmax", "model.drop/Mul"], SIZE) == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 0}, "fine-tuning: epochs must be between 1 and 1000, found 0"),
        ({"lr": 2.0}, "lr must be between 1e-08 and 1, found 2.0"),
        ({"lr": float("nan")}, "lr must be between 1e-08 and 1, found nan"),
        ({"bits": 16}, "bits must be between 2 and 8, found 16"),
        ({"distillation": -1.0}, "distillation must be between 0 and 1000, found -1"),
        ({"device": "tpu"}, "device must be cpu or cuda, found 'tpu'"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        FinetuneConfig(**changes)


def test_what_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = small_net(), small_data()
    with pytest.raises(InputError, match=r"no module 'model.con' \(did you mean 'model.conv'"):
        finetune(module, data, FinetuneConfig(float_modules=("model.con",)))
    with pytest.raises(InputError, match="no Conv2d or Linear layer to quantize"):
        finetune(module, data, FinetuneConfig(float_modules=("model",)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda is not there"):
        finetune(module, data, FinetuneConfig(device="cuda"))
    with torch.no_grad():
        module.get_parameter("model.fc.bias").fill_(float("inf"))
    with pytest.raises(VerdictError, match="diverged: the loss is nan; lower lr, now 3e-05"):
        finetune(module, data, FinetuneConfig(epochs=1))
