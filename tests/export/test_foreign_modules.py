"""Modules as people write them: exported with torch's own answers, or refused in one line; never changed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export import ExportConfig, export_module
from qdeploy.export.sources.module import ModuleSource, module_source
from qdeploy.export.sources.torch_reason import named
from qdeploy.runtime.classifier import load
from tests.conftest import SHORT, MakeImages
from tests.export.foreign_modules import CLASSES, MODULES, SIZE, Net, Pixels, made

HALVES = ("parts in half", "parts in bfloat16")
RULES = Preprocessing(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Pixels reach the module as they are, in [0, 1]: some of them use these as indices."""
LABELS = tuple(f"class {i}" for i in range(CLASSES))
TAKEN = [n for n, case in MODULES.items() if not case.refused]
REFUSED = [n for n, case in MODULES.items() if case.refused]


def marked(names: list[str]) -> list[object]:
    return [pytest.param(n, marks=pytest.mark.slow) if MODULES[n].slow else n for n in names]


def some_pixels(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def answers_of(module: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return what a module gives in evaluation, in float32."""
    module = module.eval() if isinstance(module, torch.jit.ScriptModule) else module.eval().float()
    with torch.no_grad():
        answer = module((torch.from_numpy(pixels).float() / 255).permute(0, 3, 1, 2).contiguous())
    if isinstance(answer, dict):
        answer = answer["logits"]
    return np.asarray((answer if isinstance(answer, Tensor) else answer[0]).double().numpy())


@pytest.mark.parametrize("name", marked(TAKEN))
def test_what_torch_can_export_gives_torch_s_answers(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    graph = module_source(made(name), CLASSES, RULES, name, notes.append).graph
    assert capfd.readouterr() == ("", "")
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = some_pixels(7)
    coarse = {"autocast, bfloat16": 1e-2, "autocast, float16": 1e-3, **dict.fromkeys(HALVES, 0.02)}.get(name, 1e-5)
    reference = np.concatenate([answers_of(made(name), part) for part in (pixels[:1], pixels[1:4], pixels[4:])])
    found = np.concatenate([session.run(["logits"], {"image": p})[0] for p in (pixels[:3], pixels[3:4], pixels[4:])])
    assert np.abs(found - reference).max() <= coarse * np.abs(reference).max()
    assert np.ptp(reference, axis=0).max() > 1e-3  # the answers do depend on the image
    said = "" if name in HALVES else MODULES[name].said  # by the export, once it is traced
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)


@pytest.mark.parametrize("name", marked(REFUSED))
def test_what_cannot_be_exported_is_said_in_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module = made(name)
    with pytest.raises(InputError) as caught:
        _ = module_source(module, CLASSES, RULES, name).graph
    text = str(caught.value)
    assert all(word in text for word in MODULES[name].refused), text
    assert "\n" not in text
    assert len(text) <= 3 * 120
    assert "Deployed" not in text
    if name == "a branch on the values":  # the whole stays with the error
        assert "Could not guard on data-dependent expression" in str(caught.value.__cause__)
    assert capfd.readouterr() == ("", "")


def state(module: nn.Module) -> dict[str, object]:
    """Return everything about a module that an export might change."""
    hooks = [(p._forward_hooks, p._forward_pre_hooks, p._compiled_call_impl) for p in module.modules()]
    return {
        "training": [p.training for p in module.modules()],
        "hooks": [(dict(a), dict(b), c) for a, b, c in hooks],
        "gradients": [p.requires_grad for p in module.parameters()],
        "identities": [id(p) for p in module.modules()] + [id(t) for t in (*module.parameters(), *module.buffers())],
        "values": {k: (v.dtype, v.device, v.clone()) for k, v in module.state_dict().items()},
    }


UNCHANGED = ["left in training", "half", "compiled", "a feature map kept", "a counter", "hooks that change", "pruned"]


@pytest.mark.parametrize(
    "name", ["left in training", *(pytest.param(n, marks=pytest.mark.slow) for n in UNCHANGED[1:])]
)
def test_a_module_is_left_as_it_is(name: str) -> None:
    module = made(name)
    before, random = state(module), torch.get_rng_state()
    enter = torch.amp.autocast_mode.autocast.__enter__
    _ = module_source(module, CLASSES, RULES, name).graph
    after = state(module)
    values, now = before.pop("values"), after.pop("values")
    assert before == after
    assert isinstance(values, dict)
    assert isinstance(now, dict)
    assert all(now[k][:2] == v[:2] and torch.equal(now[k][2], v[2]) for k, v in values.items())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.amp.autocast_mode.autocast.__enter__ is enter


def test_refused_modules_are_left_in_training_too() -> None:
    for name in ("dropout always on", "a counter that matters", "no running statistics", "NaN"):
        module = made(name).train()
        before = {k: v.clone() for k, v in module.state_dict().items()}
        with pytest.raises(InputError):
            module_source(module, CLASSES, RULES, name)
        assert all(p.training for p in module.modules())
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_nothing_is_counted_on_memory_that_nobody_has_written() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN
    try:
        source = module_source(Pixels(), CLASSES, RULES, "pixels")
    finally:
        torch.use_deterministic_algorithms(before)
    assert source.model.params == 256 * 8 + 8 * CLASSES + CLASSES
    assert source.model.macs == 8 * CLASSES


class Uncountable(Net):
    """Tells torch's counter from a run."""

    def forward(self, image: Tensor) -> Tensor:
        if type(torch.utils._python_dispatch._get_current_dispatch_mode()).__name__ == "_FlopCounterMode":
            raise ValueError("not while counting")
        logits: Tensor = super().forward(image)
        return logits


def test_what_cannot_be_counted_is_exported_all_the_same() -> None:
    model = module_source(Uncountable(), CLASSES, RULES, "uncountable").model
    assert model.macs == 0
    assert model.macs_shown == "MACs not counted"
    assert replace(model, macs=27_000_000).macs_shown == "27.0 M MACs"


@pytest.mark.parametrize("end", [torch.sigmoid, lambda y: F.hardsigmoid(y).unsqueeze(2).squeeze(2)])
def test_a_sigmoid_for_each_class_is_refused(end: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(InputError, match="3 independent probabilities .*return what goes into the sigmoid"):
        _ = module_source(Net(end=end), CLASSES, RULES, "net").graph


NO_MODULES: dict[str, tuple[Callable[[], object], str]] = {
    "weights": (lambda: Net().state_dict(), "found a state_dict; build the model and give it these weights"),
    "a checkpoint": (lambda: {"epoch": 3, "model": Net().state_dict()}, "dictionary of epoch, model; build the model"),
    "a checkpoint with the model": (lambda: {"epoch": 3, "model": Net()}, "epoch, model; give its entry 'model'"),
    "an empty dictionary": (dict, "a dictionary of nothing"),
    "a path": (lambda: "model.pt", "found str; give the model itself"),
    "a class": (lambda: Net, r"found the class Net; give a trained instance of it, as `Net\(\)`"),
    "a function": (lambda: F.relu, "found function"),
    "nothing": (lambda: None, "found NoneType"),
    "a tensor": (lambda: torch.zeros(3), "found Tensor"),
    "an exported program": (
        lambda: torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)),
        r"found ExportedProgram; give its `module\(\)`",
    ),
}


@pytest.mark.parametrize("name", NO_MODULES)
def test_what_is_no_module_is_called_what_it_is(name: str) -> None:
    make, says = NO_MODULES[name]
    given: Any = make()
    with pytest.raises(InputError, match=says) as refused:
        module_source(given, CLASSES, RULES, "net")
    assert str(refused.value).startswith("the module must be a torch.nn.Module, found ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_that_is_prepared_for_torch_s_quantization_is_refused(training: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao goes elsewhere
        from torch.ao import quantization

        net.train(training)
        get = quantization.get_default_qat_qconfig if training else quantization.get_default_qconfig
        net.qconfig = get("fbgemm")  # type: ignore[no-untyped-call]
        prepared = (quantization.prepare_qat if training else quantization.prepare)(net)
        prepared(torch.rand(2, 3, SIZE, SIZE))
    with pytest.raises(InputError, match="prepared for torch's own quantization .*; give the float module"):
        module_source(prepared, CLASSES, RULES, "net")


def test_a_module_that_ends_the_program_is_refused() -> None:
    def leave(image: Tensor) -> Tensor:
        sys.exit("usage: model.py FILE")

    with pytest.raises(InputError, match="the module ends the program when it runs"):
        module_source(Net(enter=leave), CLASSES, RULES, "net")


def sources_dataset(image_folder: MakeImages) -> Dataset:
    return load_dataset(str(image_folder(classes=("ape", "bee", "cat"), count=20)), RULES)


@pytest.mark.parametrize(
    "name",
    [
        "scripted with a branch",
        "parts in half",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("weight_norm, older", "half", "logits of thousands")),
    ],
)
def test_the_whole_way_to_int8(name: str, image_folder: MakeImages, tmp_path: Path) -> None:
    dataset = sources_dataset(image_folder)
    config = ExportConfig(int8=True, allow_drop=True, allow_slower=True, search=SHORT, calibration="minmax")
    notes: list[str] = []
    out = tmp_path / "out"
    report = export_module(made(name), dataset.classes, RULES, dataset, out, config=config, note=notes.append)
    fp32, int8 = report.artifacts
    pixels = dataset.splits["test"].pixels
    reference = answers_of(made(name), pixels)
    largest = max(1.0, float(np.abs(reference).max()))
    assert (
        np.abs(load(Path(fp32.path)).session.infer(pixels)[0] - reference).max()
        <= (0.02 if name in HALVES else 1e-4) * largest
    )
    assert int8.parity.sqnr_db >= 15
    assert MODULES[name].said in " ".join(notes)


def test_a_refused_module_leaves_nothing_behind(image_folder: MakeImages, tmp_path: Path) -> None:
    dataset = sources_dataset(image_folder)
    with pytest.raises(InputError, match="branches on the values"):
        export_module(made("a branch on the values"), dataset.classes, RULES, dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_says_where_it_comes_from() -> None:
    source = module_source(Net(), CLASSES, RULES, "tokens")
    assert isinstance(source, ModuleSource)
    assert (source.model.family, source.model.name, source.known) == ("module", "tokens", False)
    assert len(source.sha256) == 64


def test_the_path_of_a_deep_part_is_shortened() -> None:
    assert named("stem.conv", nn.Conv2d(1, 1, 1)) == "Conv2d 'stem.conv'"
    deep = named(".".join(map(str, range(900))), nn.ReLU())
    assert len(deep) < 100
    assert deep.startswith("ReLU '0.1.2.")
    assert deep.endswith(".898.899'")


SHARES = {
    "softmax": lambda logits: logits.softmax(1),
    "softmax of a temperature": lambda logits: (logits / 3).softmax(-1),
    "powers by their sum": lambda logits: logits.exp() / logits.exp().sum(1, keepdim=True),
    "mean of two": lambda logits: (logits.softmax(1) + logits.square().softmax(1)) / 2,
    "beside the features": lambda logits: (logits.softmax(1), logits[:, :2]),
    "by name": lambda logits: {"logits": logits.softmax(1), "x": logits[:, :1]},
}


@pytest.mark.parametrize("name", SHARES)
def test_probabilities_of_a_module_are_taken_as_such(name: str) -> None:
    torch.manual_seed(3)
    module, notes = Net(end=SHARES[name]), list[str]()
    nn.init.normal_(module.head.weight, std=4.0)
    graph = module_source(module, CLASSES, RULES, name, notes.append).graph
    assert "the module gives probabilities; logits are their logarithm" in notes
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = some_pixels(7)
    found = session.run(["probabilities"], {"image": pixels})[0]
    assert np.abs(found - answers_of(module, pixels)).max() < 1e-6
    assert np.ptp(found, axis=0).max() > 1e-3
