from __future__ import annotations

import sys

import pytest
import torch

from qdeploy.core.errors import InputError, MissingDependencyError
from qdeploy.models.registry import create_model, model_config, model_from_record, summarise

PARAMS = {  # torchvision's documentation, at 1,000 classes
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "densenet121": 7_978_856,
    "vgg11": 132_863_336,
    "squeezenet1_1": 1_235_496,
    "alexnet": 61_100_840,
    "shufflenet_v2_x1_0": 2_278_604,
    "mobilenet_v2": 3_504_872,
    "vit_b_16": 86_567_656,
}


@pytest.mark.parametrize("name", PARAMS)
def test_documented_parameter_counts(name: str) -> None:
    assert summarise(f"torchvision/{name}", 1000, 224).params == PARAMS[name]


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "vgg11", "squeezenet1_1", "alexnet", "mobilenet_v2"])
def test_baselines_take_64_pixels(name: str) -> None:
    summary = summarise(f"torchvision/{name}", 10)
    assert (summary.family, summary.input_size, summary.num_classes) == ("torchvision", 64, 10)
    assert summary.macs > 0


def test_a_transformer_is_built_for_the_size() -> None:
    assert summarise("torchvision/vit_b_16", 10, 64).macs < summarise("torchvision/vit_b_16", 10, 224).macs / 8


def test_the_record_of_a_run_builds_the_model_again() -> None:
    model = create_model("torchvision/squeezenet1_1", 5)
    again = model_from_record(model.config.family, model.config.to_dict())
    again.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.eval()(image), model.eval()(image))


def test_timm_by_name() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    assert create_model("timm/mobilenetv3_small_050", 7).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert create_model("timm/vit_tiny_patch16_224", 7, 96).eval()(torch.zeros(2, 3, 96, 96)).shape == (2, 7)
    with pytest.raises(InputError, match=r"timm has no model 'mobilenetv3_smal_050'.*mobilenetv3_small_050"):
        create_model("timm/mobilenetv3_smal_050", 7)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("torchvision/resnet81", 0, r"torchvision has no model 'resnet81' \(did you mean 'resnet18'"),
        ("torchvision/fcn_resnet50", 0, "is no image classifier; give one such as torchvision/resnet18"),
        ("torchvision/inception_v3", 0, "cannot take 64x64 images .*; give another input_size"),
        ("torchvision/vit_b_16", 65, "vit_b_16 cannot take 65x65 images .Input shape indivisible"),
        (
            "keras/resnet",
            0,
            "there is no model named 'keras/resnet'.* torchvision/NAME, timm/NAME and your own package.module:Class "
            "work too",
        ),
    ],
)
def test_bad_names_and_sizes(name: str, size: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        summarise(name, 10, size)


def test_a_class_count_of_zero() -> None:
    with pytest.raises(InputError, match="num_classes=0"):
        model_config("torchvision/resnet18", 0)


def test_a_missing_library_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="the library timm is missing here: pip install timm"):
        create_model("timm/resnet18", 3)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    install = r"torchvision is missing here: pip install 'qdeploy\[baselines\]'"
    with pytest.raises(MissingDependencyError, match=install):
        create_model("torchvision/resnet18", 3)
