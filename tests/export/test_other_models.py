"""Models that are no Qonstraint, through the same export: operators of the grid, a baseline, a user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.catalog import load_dataset
from qdeploy.data.dataset import Dataset
from qdeploy.export import ExportConfig, export, export_module
from qdeploy.export.sources.module_copy import class_name
from qdeploy.models.registry import Changes, create_model
from qdeploy.runtime.classifier import load
from qdeploy.training import config_from_recipe, train
from tests.conftest import SHORT, MakeImages

RULES = Preprocessing()
SHUFFLED: Changes = (("groups", "4"), ("mixing", "shuffle"))
CONFIG = ExportConfig(
    int8=True, allow_drop=True, allow_slower=True, search=SHORT, calibration_images=32, calibration="minmax"
)


def few(rules: Preprocessing = RULES) -> Dataset:
    """Give 60 of the embedded images of each split."""
    dataset = load_dataset(preprocessing=rules)
    rng = np.random.default_rng(0)
    splits = {name: s.take(rng.permutation(len(s))[:60].astype(np.int64)) for name, s in dataset.splits.items()}
    return replace(dataset, splits=splits)


@pytest.fixture(scope="module")
def small(own_cache: Path) -> Dataset:
    return few()


def lived_in(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics of its own, so that no fold is trivially right."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mobilevit-depthwise-separable-v1", ()),
        pytest.param("mobilevit-grouped-lowrank-v3", (), marks=pytest.mark.slow),
        pytest.param("mobilevit-grouped-separable-v2", SHUFFLED, marks=pytest.mark.slow),
        pytest.param("nano-ar", (("head", "gap+sota"),), marks=pytest.mark.slow),
        pytest.param("torchvision/mobilenet_v2", (), marks=pytest.mark.slow),
    ],
)
def test_every_operator_exports_with_parity_and_to_int8(
    name: str, changes: Changes, small: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = lived_in(create_model(name, 10, changes=changes))
    report = export_module(model, small.classes, RULES, small, tmp_path / "out", name=name, config=CONFIG)
    fp32, int8 = report.artifacts
    assert fp32.parity.max_abs <= 1e-4
    assert int8.parity.sqnr_db >= 10
    logits = load(Path(fp32.path)).session.infer(small.splits["test"].pixels)[0]
    mean, std = torch.tensor(RULES.mean), torch.tensor(RULES.std)
    with torch.no_grad():
        images = ((torch.from_numpy(small.splits["test"].pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        assert np.abs(logits - model(images).numpy()).max() <= 1e-4


@pytest.mark.slow
def test_input_size_and_bicubic_resizing_travel_in_the_card(tmp_path: Path) -> None:
    rules = Preprocessing(size=96, interpolation="bicubic")
    dataset = few(rules)
    torch.manual_seed(0)
    model = lived_in(create_model("mobilevit-standard-separable-v2", 10, 96))
    report = export_module(model, dataset.classes, rules, dataset, tmp_path / "out", name="wide")
    classifier = load(Path(report.artifacts[0].path))
    assert classifier.card.preprocessing == rules
    assert ort.InferenceSession(report.artifacts[0].path).get_inputs()[0].shape[1:] == [96, 96, 3]


@pytest.mark.slow
def test_a_baseline_from_training_to_prediction(
    image_folder: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(image_folder(count=20))
    config = config_from_recipe("small", model="torchvision/shufflenet_v2_x0_5", data=data, epochs=1, batch_size=8)
    result = train(config)
    assert Path(result.run).parent == Path("runs")
    report = export(Path(result.run))
    classifier = load(Path(report.artifacts[0].path))
    assert classifier.card.model.name == "torchvision/shufflenet_v2_x0_5"
    assert classifier(Path(data) / "cat" / "0.png").label in ("cat", "dog")


@pytest.mark.slow
def test_crops_train_smaller_than_the_model_is_tested(image_folder: MakeImages, tmp_path: Path) -> None:
    data = str(image_folder(count=20))
    config = config_from_recipe("mobilevit-64", data=data, epochs=1, batch_size=8, input_size=48)
    result = train(config, tmp_path / "run")
    report = export(Path(result.run), out=tmp_path / "out")
    card = load(Path(report.artifacts[0].path)).card
    assert (card.preprocessing.size, card.preprocessing.interpolation) == (48, "bicubic")


class Own(nn.Module):
    """What a user may bring."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.last = nn.Linear(8, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.layers(image))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_module_is_called_as_its_class() -> None:
    assert class_name(torch.nn.DataParallel(Own())) == "Own"
    assert class_name(torch.jit.script(Own())) == "Own"


def test_a_user_s_module_gets_the_same_card_and_is_left_alone(small: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Own().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    report = export_module(module, small.classes, RULES, small, tmp_path / "out", config=CONFIG)
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    classifier = load(Path(report.artifacts[1].path))
    assert (classifier.card.model.family, classifier.card.model.name) == ("module", "Own")
    assert classifier.card.model.params == sum(p.numel() for p in module.parameters())
    assert classifier.card.labels == small.classes
    assert {u.unit for u in report.int8[0].units} == {"model.layers", "model.last"}
    assert classifier("examples/shirt.png").label in small.classes


@pytest.mark.parametrize(
    ("module", "labels", "says"),
    [
        (Own(9), None, r"must give logits \[2, 10\] for 2 images, found \[2, 9\]"),
        (nn.Conv2d(4, 8, 1), None, r"cannot take \[2, 3, 64, 64\] images: Conv2d: Given groups=1"),
        (nn.Flatten(), None, "the module has no parameters"),
        (nn.BatchNorm2d(3), None, r"found \[2, 3, 64, 64\]"),
        (Own(), ("a", "b"), "the labels are a, b, the data's classes"),
    ],
)
def test_what_does_not_fit_is_refused(
    module: nn.Module, labels: tuple[str, ...] | None, says: str, small: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        export_module(module, labels or small.classes, RULES, small, tmp_path / "out")
    assert not (tmp_path / "out").exists()
