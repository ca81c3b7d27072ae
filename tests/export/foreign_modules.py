"""Modules as people write them: each with what becomes of it, and a word of the reason where it is refused."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

SIZE, CLASSES = 24, 3
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A module, and what becomes of it."""

    make: Callable[[], nn.Module]
    refused: tuple[str, ...] = ()
    """Words of the refusal; none where it is exported."""
    said: str = ""
    """What a note says."""
    slow: bool = False
    """Whether another case of the default suite is of the same kind."""


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU, mean, linear; functions may change the input, the maps, the mean or the end."""

    def __init__(
        self,
        enter: Callable[..., Any] | None = None,
        inside: Callable[..., Any] | None = None,
        pooled: Callable[..., Any] | None = None,
        end: Callable[..., Any] | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.norm = norm or nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)
        self.steps = enter, inside, pooled, end

    def forward(self, image: Tensor) -> Any:
        enter, inside, pooled, end = self.steps
        image = enter(image) if enter else image
        maps = F.relu(self.norm(self.conv(image)))
        maps = inside(maps) if inside else maps
        means = maps.mean((2, 3))
        logits = self.head(pooled(means) if pooled else means)
        return end(logits) if end else logits


class Scriptable(nn.Module):
    """As ``Net``, with a branch on the values if wanted."""

    def __init__(self, branch: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        means = self.stem(image).mean((2, 3))
        if self.branch and bool(means.mean() > 0.25):
            means = means * 2
        return self.head(means)


class Around(nn.Module):
    """A module with a part that came from elsewhere."""

    def __init__(self, part: nn.Module, branch: bool = False) -> None:
        super().__init__()
        self.part = part
        self.last = nn.Linear(CLASSES, CLASSES)
        self.branch = branch

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.part(image)
        if self.branch and logits.mean() > 0.1:
            logits = logits * 2
        return self.last(logits)


def branch(x: Tensor) -> Tensor:
    return x * 2 if x.mean() > 0.1 else x


def loop(x: Tensor) -> Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


def by_item(x: Tensor) -> Tensor:
    return x * round(float(x.max()), 1)


def by_mask(x: Tensor) -> Tensor:
    return x * x[x > 0].mean()


def chosen(x: Tensor) -> Tensor:
    return torch.where(x > 0.1, x * 2, x)


def in_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.detach().numpy()))


def in_place(x: Tensor) -> Tensor:
    return x.sub_(0.5).mul_(2)


def needs_channels_last(x: Tensor) -> Tensor:
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("images must be channels_last")
    return x


def viewed(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1).view(x.shape)


def counted(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).reshape(x.shape)


def checks_size(x: Tensor) -> Tensor:
    assert x.shape[1:] == (3, SIZE, SIZE), f"unexpected size {x.shape}"
    return x


def checks_values(x: Tensor) -> Tensor:
    if x.isnan().any():
        raise ValueError("NaN in the images")
    return x


def gradient(x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        return torch.autograd.grad((y**2).sum(), y)[0]


def gumbel(x: Tensor) -> Tensor:
    return F.gumbel_softmax(x)


class Counting(Net):
    """Counts its calls; what it answers may depend on the count."""

    calls: Tensor

    def __init__(self, matters: bool) -> None:
        super().__init__()
        self.matters = matters
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = super().forward(image)
        return logits * self.calls if self.matters else logits


class Keeping(Net):
    """Keeps its last feature map, with the graph of its gradients."""

    kept: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        self.kept = F.relu(self.norm(self.conv(image)))
        return self.head(self.kept.mean((2, 3)))


class Pixels(nn.Module):
    """Values of pixels as indices: images in [0, 1] only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.table((image.mean(1) * 255).round().long()).mean((1, 2)))


class Autocast(Net):
    """As training code for mixed precision has it."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, image: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.kind):
            logits: Tensor = super().forward(image)
        return logits.float()


class InHalf(nn.Module):
    """Casts images, maps and logits itself."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.net = Net(inside=lambda x: x.to(kind).mul(1.001).float(), end=lambda y: y.to(kind).float())

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.net(image)
        return logits


class TwoInputs(Net):
    """Takes more than images."""

    def forward(self, image: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
        return super().forward(image * mask)


class Groups(nn.Module):
    """Weights of its own for each image: the batch becomes the number of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(4, 8, 3, 3, 3) * 0.2)
        self.route = nn.Linear(3, 4)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        b, c, s, t = image.shape
        weights = self.route(image.mean((2, 3))).softmax(1)
        kernels = torch.einsum("bk,koihw->boihw", weights, self.kernels).reshape(b * 8, 3, 3, 3)
        maps = F.conv2d(image.reshape(1, b * c, s, t), kernels, groups=b)
        return self.head(maps.reshape(b, 8, s - 2, t - 2).mean((2, 3)))


class FixedBatch(Net):
    """Knows how many images a batch holds."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(image.reshape(2, 3, SIZE, SIZE))


class Doubling(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


Pair = namedtuple("Pair", ("logits", "features"))


class Output(OrderedDict[str, Tensor]):
    """Like the outputs of Hugging Face's models: a dictionary with attributes."""


def lived_in(module: nn.Module) -> nn.Module:
    """Run a module in training, so that it looks like a trained one, and leave it in that mode."""
    module.train()
    module(torch.rand(8, 3, SIZE, SIZE))
    return module


def hooked(change: bool) -> nn.Module:
    net = Net()
    net.conv.register_forward_hook(lambda _, __, maps: maps * 2 if change else None)
    net.head.register_forward_pre_hook(lambda _, values: (values[0] + 1,))
    return net


def pruned() -> nn.Module:
    net = Net()
    prune.l1_unstructured(net.conv, "weight", 0.5)
    return net


def weight_normed(old: bool) -> nn.Module:
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (nn.utils.weight_norm if old else parametrizations.weight_norm)(net.conv)
    return net


def spectral_normed(old: bool) -> nn.Module:
    net = Net()
    if old:
        nn.utils.spectral_norm(net.conv)
    else:
        parametrizations.spectral_norm(net.conv)
    return lived_in(net)


def parametrized() -> nn.Module:
    net = Net()
    parametrize.register_parametrization(net.head, "weight", Doubling())
    return net


def scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.jit.script(module.eval())
    return made


def traced(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.jit.trace(module.eval(), torch.zeros(2, 3, SIZE, SIZE))
    return made


def frozen() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.jit.freeze(scripted(Scriptable()))
    return made


def compiled(whole: bool) -> nn.Module:
    if whole:
        return torch.compile(Net())  # type: ignore[return-value]
    around = Around(torch.compile(Net()))  # type: ignore[arg-type]
    around.last.compile()
    return around


def keeping() -> nn.Module:
    net = Keeping()
    net(torch.rand(2, 3, SIZE, SIZE))
    assert net.kept is not None
    assert not net.kept.is_leaf
    return net


def broken_weights() -> nn.Module:
    net = Net()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    return net


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


def lazy(run: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(CLASSES)
        )
    if run:
        net(torch.rand(2, 3, SIZE, SIZE))
    return net


def deep(count: int) -> nn.Module:
    net: nn.Module = Net()
    for _ in range(count):
        net = nn.Sequential(net)
    return net


def lock() -> nn.Module:
    import threading

    net = Net()
    net.guard = threading.Lock()  # type: ignore[assignment]
    return net


class Tokens(nn.Module):
    """A transformer's layer over the places of a feature map."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 8, 5, 4), layer, nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.layer(self.conv(image).flatten(2).mT).mean(1))


MODULES: dict[str, Case] = {
    # what torch can export
    "plain": Case(Net),
    "left in training": Case(lambda: lived_in(Net()), slow=True),
    "torch.where": Case(lambda: Net(pooled=chosen), slow=True),
    "weight_norm, older": Case(lambda: weight_normed(old=True)),
    "weight_norm": Case(lambda: weight_normed(old=False), slow=True),
    "spectral_norm, older": Case(lambda: spectral_normed(old=True), slow=True),
    "spectral_norm": Case(lambda: spectral_normed(old=False), slow=True),
    "pruned": Case(pruned, slow=True),
    "parametrized": Case(parametrized, slow=True),
    "hooks that change": Case(lambda: hooked(change=True), slow=True),
    "hooks that look": Case(lambda: hooked(change=False), slow=True),
    "dropout of a layer": Case(lambda: nn.Sequential(Net(), nn.Dropout(0.5)), slow=True),
    "scripted": Case(lambda: scripted(Scriptable()), said="TorchScript"),
    "scripted with a branch": Case(lambda: scripted(Scriptable(branch=True)), said="TorchScript"),
    "traced": Case(lambda: traced(Scriptable()), said="TorchScript"),
    "frozen": Case(frozen, said="TorchScript"),
    "a scripted part": Case(lambda: Around(scripted(Scriptable(branch=True))), said="TorchScript"),
    "compiled": Case(lambda: compiled(whole=True), slow=True),
    "a compiled part": Case(lambda: compiled(whole=False), slow=True),
    "data parallel": Case(lambda: nn.DataParallel(Net()), slow=True),
    "indices from pixels": Case(Pixels),
    "autocast, bfloat16": Case(lambda: Autocast(torch.bfloat16), said="autocast"),
    "autocast, float16": Case(lambda: Autocast(torch.float16), said="autocast", slow=True),
    "half": Case(lambda: Net().half(), said="float16"),
    "bfloat16": Case(lambda: Net().bfloat16(), said="bfloat16", slow=True),
    "parts in half": Case(lambda: InHalf(torch.float16), said="16-bit"),
    "parts in bfloat16": Case(lambda: InHalf(torch.bfloat16), said="16-bit", slow=True),
    "float64": Case(lambda: Net().double(), said="float64", slow=True),
    "a lazy module that has run": Case(lambda: lazy(run=True), slow=True),
    "a counter": Case(lambda: Counting(matters=False), slow=True),
    "a feature map kept": Case(keeping),
    "gradients inside": Case(lambda: Net(enter=gradient), slow=True),
    "in place on the input": Case(lambda: Net(enter=in_place), slow=True),
    "a view of the input": Case(lambda: Net(enter=viewed)),
    "a check of the size": Case(lambda: Net(enter=checks_size), slow=True),
    "a transformer's layer": Case(lambda: Tokens(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), slow=True),
    "a dictionary": Case(
        lambda: Net(end=lambda y: {"features": y.softmax(1), "logits": y}), said="'logits'", slow=True
    ),
    "a model output": Case(lambda: Net(end=lambda y: Output(logits=y, loss=y.mean())), said="'logits'", slow=True),
    "a named tuple": Case(lambda: Net(end=lambda y: Pair(y, y.mean(1))), said="0 of the Pair", slow=True),
    "logits of thousands": Case(lambda: Net(end=lambda y: y * 30_000), slow=True),
    "a tuple of one": Case(lambda: Net(end=lambda y: (y,)), said="0 of the tuple", slow=True),
    # what cannot be a graph
    "a branch on the values": Case(
        lambda: Net(pooled=branch), ("Net: it branches on the values", "line", "x.mean() > 0.1")
    ),
    "a loop on the values": Case(lambda: Net(inside=loop), ("branches on the values", "while"), slow=True),
    "a part that branches": Case(lambda: nn.Sequential(Net(inside=branch)), ("Net '0'", "branches"), slow=True),
    "numbers of Python": Case(lambda: Net(pooled=by_item), ("Net: ONNX has no operator for round",), slow=True),
    "a mean over the batch": Case(lambda: Net(pooled=by_mask), ("Net", "depends on the others in its batch")),
    "the size of the batch": Case(lambda: Net(enter=counted), ("cannot take 1 images", "len(x)"), slow=True),
    "a check of the values": Case(lambda: Net(enter=checks_values), ("branches on the values",), slow=True),
    "weights for each image": Case(Groups, ("Groups", "number of images"), slow=True),
    "numpy inside": Case(lambda: Net(pooled=in_numpy), slow=True),
    "a traced branch": Case(lambda: Around(scripted(Scriptable()), branch=True), ("branch", "Around")),
    # what gives no logits, or not the same
    "dropout always on": Case(lambda: Net(pooled=lambda x: F.dropout(x, 0.5)), ("Net draws random numbers",)),
    "noise": Case(lambda: Net(inside=lambda x: x + torch.randn_like(x)), ("Net draws random numbers",)),
    "gumbel": Case(lambda: nn.Sequential(Net(pooled=gumbel)), ("Net '0' draws random numbers",)),
    "random numbers of numpy": Case(lambda: Net(pooled=lambda x: x * random.random()), ("every time",)),
    "a counter that matters": Case(lambda: Counting(matters=True), ("changes its own 'calls'",)),
    "no running statistics": Case(
        lambda: nn.Sequential(Net(norm=nn.BatchNorm2d(8, track_running_stats=False))),
        ("BatchNorm2d '0.norm'", "others"),
    ),
    "squeeze": Case(lambda: Net(end=lambda y: y.squeeze()), ("[1, 3] for 1 image", "found [3]")),
    "a fixed batch": Case(FixedBatch, ("FixedBatch", "[1, 3, 24, 24]")),
    "two inputs": Case(TwoInputs, ("TwoInputs", "mask")),
    "another number of classes": Case(lambda: Net(end=lambda y: y[:, :2]), ("found [2, 2]",)),
    "a tuple of two": Case(lambda: Net(end=lambda y: (y, y * 2)), ("tuple (0: [2, 3], 1: [2, 3])", "wrap it")),
    "nothing": Case(lambda: Net(end=lambda _: None), ("NoneType",)),
    "NaN": Case(lambda: nn.Sequential(Net(inside=lambda x: (x - 9).log())), ("not finite", "Net '0'")),
    "half logits": Case(lambda: Net(end=lambda y: y.half()), ("float32 logits, found float16",)),
    "channels_last only": Case(lambda: Net(enter=needs_channels_last), ("Net: images must be channels_last",)),
    "a device that is not there": Case(lambda: Net(enter=lambda x: x.to("cuda:77")), ("Net",)),
    "weights that are NaN": Case(broken_weights, ("'head.weight'", "not finite")),
    "no values yet": Case(on_meta, ("Conv2d 'conv'", "no values", "meta")),
    "a lazy module": Case(lambda: lazy(run=False), ("LazyLinear '4' has no weights yet",)),
    "nested too deeply": Case(lambda: deep(1500), ("nested too deeply",)),
    "a lock": Case(lock, ("cannot be copied", "lock")),
    "one colour": Case(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), ("Conv2d '0'", "3 channels")),
    "no weights": Case(nn.Flatten, ("no parameters",)),
}


def made(name: str) -> nn.Module:
    """Make a module of the corpus, the same every time."""
    torch.manual_seed(0)
    random.seed(0)
    return MODULES[name].make()
