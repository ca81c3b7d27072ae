"""A short fine-tune that lets the float weights expect INT8: quantization-aware training on the inference form.

Weights and the inputs of Conv2d and Linear are rounded in the forward pass, the gradient passes straight through
(Bengio et al. 2013; Jacob et al. 2018). The teacher is the model as it came. What comes back holds float weights and
no rounding: it is traced, calibrated and quantized like any other.

BatchNorms keep their statistics and stay where they are. One behind a convolution needs no folding first: a scale per
output channel turns with the gain, so rounding before it and rounding the folded weight are the same.

Array names: N images, B batch, S height and width, K classes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from qdeploy.core.errors import InputError, VerdictError, near_miss
from qdeploy.data.dataset import Dataset, Split

EVALUATION_BATCH = 128
LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The configuration of a fine-tune."""

    epochs: int = 2
    """Passes over the training images."""
    batch_size: int = 64
    lr: float = 3e-5
    """AdamW's learning rate at the start; falls to 0 along a cosine. At 8 bits more moves the model further than
    rounding does (nano-ar, signal to noise of the logits: 3e-4 10 dB, 1e-4 18 dB, 3e-5 20 dB); at 4 bits 3e-4 is
    better."""
    distillation: float = 10.0
    """Weight of the divergence from the float model's probabilities, beside the cross-entropy's 1 (nano-ar: with
    weight 1 20 dB, with 10 25 dB)."""
    flip: bool = False
    """Mirror half of the images; in two epochs it cost accuracy (nano-ar at 4 bits: 71 % instead of 75 %)."""
    bits: int = 8
    """Bits of weights and activations."""
    calibration_images: int = 256
    """Training images whose extremes are the activations' ranges, measured again after each epoch."""
    float_modules: tuple[str, ...] = ()
    """Names of modules that INT8 leaves in float; each covers what is inside it."""
    seed: int = 0
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"fine-tuning: {name} must be between {low:g} and {high:g}, found {value}")
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"fine-tuning: device must be cpu or cuda, found '{self.device}'")


_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1000),
    "batch_size": (1, 65_536),
    "lr": (1e-8, 1),
    "distillation": (0, 1000),
    "bits": (2, 8),
    "calibration_images": (1, 100_000),
    "seed": (0, 2**32 - 1),
}


def finetune(
    deployed: nn.Module, dataset: Dataset, config: FinetuneConfig, note: Callable[[str], None] = lambda _: None
) -> nn.Module:
    """Train a copy of a model to be quantized, and give it back in float.

    Args:
        deployed: The inference form: uint8 images ``[B, S, S, 3]`` in, logits and probabilities ``[B, K]`` out. It is
            not changed.
        dataset: Its training split is learned; its validation split chooses the epoch, the untrained model included.
        config: How long and how hard.
        note: Called with a line before the first and after each epoch.

    Returns:
        The copy on the CPU, in eval mode and without gradients.

    Raises:
        InputError: If a float module is unknown, or there is no such device or nothing to train.
        VerdictError: If the loss is no longer finite.
    """
    device = _device(config.device)
    teacher = copy.deepcopy(deployed).eval().requires_grad_(False).to(device)
    student = copy.deepcopy(teacher).requires_grad_(True)
    fake = FakeQuantized(student, layers_to_quantize(student, config.float_modules), config.bits)
    run = _Run(teacher, fake, dataset, config, device)
    run.measure_ranges()
    best_score, best = run.score(), _weights(student)
    note(f"fine-tuning: {best_score[0]:.2f} % of the validation images right with {config.bits} bits, before")
    begin = time.perf_counter()
    for epoch in range(config.epochs):
        run.train_epoch()
        run.measure_ranges()
        score = run.score()
        left_s = (time.perf_counter() - begin) / (epoch + 1) * (config.epochs - epoch - 1)
        note(f"fine-tuning: epoch {epoch + 1}/{config.epochs}, {score[0]:.2f} % right, {left_s:.0f} s left")
        if score > best_score:
            best_score, best = score, _weights(student)
    student.load_state_dict(best)
    return student.requires_grad_(False).cpu()


def layers_to_quantize(model: nn.Module, float_modules: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """Return the Conv2d and Linear layers by name, less those inside of modules that stay in float.

    Raises:
        InputError: If there is no module of such a name, or no layer remains.
    """
    known = dict(model.named_modules())
    for name in float_modules:
        if name not in known or not name:
            raise InputError(f"fine-tuning: the model has no module '{name}'{near_miss(name, known)} to leave in float")
    inside = tuple(f"{name}." for name in float_modules)
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in known.items()
        if isinstance(module, LAYERS) and not f"{name}.".startswith(inside)
    }
    if not layers:
        raise InputError("fine-tuning: the model has no Conv2d or Linear layer to quantize; export it without")
    return layers


def layers_of_nodes(deployed: nn.Module, nodes: Iterable[str], size: int) -> tuple[str, ...]:
    """Return the Conv2d and Linear layers that nodes of the traced graph come from, as names for ``float_modules``.

    A node is named ``module/Operator``. A convolution that swallowed a BatchNorm has the BatchNorm's name, so one
    image is run to see which convolution each BatchNorm reads.
    """
    made: dict[int, tuple[str, Tensor]] = {}
    """Layer name and tensor by the tensor's ``id``; the tensor is kept, or another could get its ``id``."""
    owner: dict[str, str] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, LAYERS):
                owner[name] = name
                made[id(output)] = name, output
            elif inputs and id(inputs[0]) in made:
                owner[name] = made[id(inputs[0])][0]

        return see

    kinds = (*LAYERS, nn.BatchNorm2d)
    handles = [m.register_forward_hook(hook(name)) for name, m in deployed.named_modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            deployed(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    finally:
        for handle in handles:
            handle.remove()
    modules = (node.rpartition("/")[0] for node in nodes)
    return tuple(sorted({owner[module] for module in modules if module in owner}))


class FakeQuantized:
    """A model whose layers compute with rounded weights and inputs; the module itself stays as it is.

    A layer that is never called (its weight is used by other code) is not rounded, and neither does the export's
    quantizer know it as a layer.
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], bits: int) -> None:
        self.model, self.layers, self.bits = model, layers, bits
        self.ranges: dict[str, tuple[Tensor, Tensor]] = {}
        """Smallest and largest value of each called layer's input; zero is inside."""

    @torch.no_grad()
    def observe(self, batches: Iterator[Tensor]) -> None:
        """Take the extremes of the float model's activations as ranges."""
        found: dict[str, tuple[Tensor, Tensor]] = {}

        def widen(name: str, x: Tensor) -> Tensor:
            low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
            before = found.get(name, (low, high))
            found[name] = torch.minimum(low, before[0]), torch.maximum(high, before[1])
            return x

        with self._inputs_through(widen):
            for image in batches:
                self.model(image)
        self.ranges = found

    def logits(self, image_BSSC: Tensor) -> Tensor:
        """Classify images with rounded weights and inputs; gradients reach the float weights."""
        weights = {
            f"{name}.weight": fake_quantize_weight(layer.get_parameter("weight"), self.bits)
            for name, layer in self.layers.items()
            if name in self.ranges
        }

        def round_input(name: str, x: Tensor) -> Tensor:
            return fake_quantize_activation(x, *self.ranges[name], self.bits) if name in self.ranges else x

        with self._inputs_through(round_input):
            logits, _ = functional_call(self.model, weights, (image_BSSC,), tie_weights=False)
        return logits

    @contextmanager
    def _inputs_through(self, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Pass each layer's input through a function."""

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
            return lambda _, inputs: (change(name, inputs[0]), *inputs[1:]) if inputs else inputs

        handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def fake_quantize_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """Round a weight to a symmetric grid with a scale per output channel (axis 0); gradients pass unchanged."""
    most = 2 ** (bits - 1) - 1
    scale = weight.detach().flatten(1).abs().amax(dim=1) / most
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most)


def fake_quantize_activation(x: Tensor, low: Tensor, high: Tensor, bits: int = 8) -> Tensor:
    """Round to an asymmetric grid over ``low <= 0 <= high``; gradients pass unchanged inside, not outside."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    zero = (-low / scale).round().clamp(0, levels).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, levels)


class _Run:
    """One fine-tune under way."""

    def __init__(
        self, teacher: nn.Module, fake: FakeQuantized, dataset: Dataset, config: FinetuneConfig, device: torch.device
    ) -> None:
        self.teacher, self.fake, self.config, self.device = teacher, fake, config, device
        self.train, self.val = dataset.splits["train"], dataset.splits["val"]
        self.rng = np.random.default_rng(config.seed)
        self.calibration = self.rng.permutation(len(self.train))[: config.calibration_images]
        self.optimizer = torch.optim.AdamW(fake.model.parameters(), lr=config.lr, weight_decay=0.0)
        steps = config.epochs * math.ceil(len(self.train) / config.batch_size)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def measure_ranges(self) -> None:
        """Measure the activations of the weights as they are now."""
        self.fake.observe(image for image, _ in self._batches(self.train, self.calibration, EVALUATION_BATCH))

    def train_epoch(self) -> None:
        """Pass over the training images once."""
        total = torch.zeros((), device=self.device)
        for image, label in self._batches(self.train, self.rng.permutation(len(self.train)), self.config.batch_size):
            if self.config.flip:
                mirrored = torch.from_numpy(self.rng.random(len(image)) < 0.5).to(self.device)
                image = torch.where(mirrored[:, None, None, None], image.flip(2), image)
            logits = self.fake.logits(image)
            loss = F.cross_entropy(logits, label)
            if self.config.distillation:
                loss = loss + self.config.distillation * self._divergence(image, logits)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
        if not torch.isfinite(total):
            raise VerdictError(f"fine-tuning diverged: the loss is {total.item()}; lower lr, now {self.config.lr:g}")

    @torch.no_grad()
    def score(self) -> tuple[float, float]:
        """Return the rounded model's validation accuracy in percent, and how near it is to the teacher."""
        right, distance = 0.0, 0.0
        for image, label in self._batches(self.val, np.arange(len(self.val)), EVALUATION_BATCH):
            logits = self.fake.logits(image)
            right += float((logits.argmax(dim=1) == label).sum())
            distance += float(self._divergence(image, logits)) * len(label)
        return 100 * right / len(self.val), -distance

    def _divergence(self, image: Tensor, logits_BK: Tensor) -> Tensor:
        with torch.no_grad():
            target, _ = self.teacher(image)
        inputs = logits_BK.log_softmax(dim=1)
        return F.kl_div(inputs, target.log_softmax(dim=1), reduction="batchmean", log_target=True)

    def _batches(self, split: Split, order: NDArray[np.int64], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(order), size):
            index = order[start : start + size]
            image, label = torch.from_numpy(split.pixels[index]), torch.from_numpy(split.labels[index])
            yield image.to(self.device), label.to(self.device)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("fine-tuning: device cuda is not there; use cpu")
    return torch.device(name)
