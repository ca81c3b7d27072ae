"""Networks of a user's own, found by package.module:Class from the current folder on."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from qdeploy.core.errors import InputError
from qdeploy.models.registry import create_model, model_config, model_from_record, summarise
from qdeploy.study import checks
from qdeploy.study.settings import SweepConfig
from tests.conftest import MakeImages

SOURCE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes, width=4, act="relu"):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3, 2)
        self.act = {"relu": nn.ReLU, "gelu": nn.GELU}[act]()
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        assert float(torch.ones(1)) == 1  # cannot be computed without memory
        return self.head(self.act(self.body(x)).mean((2, 3)))

def built(classes):
    return Small(classes, 2)

class Headless(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 2, 3)

    def forward(self, x):
        return self.body(x)

def big_only(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 99), nn.Flatten(), nn.LazyLinear(num_classes))

def nothing(num_classes):
    return nn.Flatten()

def text(num_classes):
    return "a network"

class Shares(Small):
    def forward(self, x):
        return super().forward(x).softmax(1)

def ends_in_softmax(num_classes):
    return nn.Sequential(Small(num_classes), nn.Softmax(dim=-1))

def leaves(num_classes):
    raise SystemExit(3)

class Leaves(Small):
    def forward(self, x):
        exit()

NUMBER = 3
"""
Here = Callable[[str], str]
NUMBERS = itertools.count()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """Write the module under a name of its own into the current folder; returns what makes paths into it."""
    name = f"mine_{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda inside: f"{name}:{inside}"


def test_it_is_built_counted_and_rebuilt_from_its_record(own: Here) -> None:
    path, changes = own("Small"), (("width", "8"), ("act", "gelu"))
    torch.manual_seed(3)
    model = create_model(path, 5, 32, changes)
    assert isinstance(model.network.act, nn.GELU)  # type: ignore[union-attr]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    found = summarise(path, 5, 32, changes)
    params = 3 * 8 * 9 + 8 + 8 * 5 + 5
    assert (found.params, found.family, found.input_size, found.num_classes) == (params, "own", 32, 5)
    assert found.macs == 15 * 15 * 3 * 8 * 9 + 8 * 5
    again = model_from_record("own", model.config.to_dict())
    again.load_state_dict(model.state_dict())
    assert create_model(own("built"), 3)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("Smal", "has no class or function 'Smal' (did you mean 'Small'?)"),
        ("NUMBER", "has no class or function 'NUMBER'"),
        ("Headless", "does not give one logit per class: 2 images, 4 classes, found (2, 2, 62, 62)"),
        (
            "Shares",
            "gives probabilities, which sum to 1 for each image, and training needs logits; leave out its softmax",
        ),
        ("ends_in_softmax", "gives probabilities, which sum to 1"),
        ("big_only", "cannot take 64x64 images: RuntimeError: "),
        ("leaves", "could not be built: it ends the program, as a script does"),
        ("Leaves", "cannot take 64x64 images: it ends the program, as a script does"),
        ("nothing", "has no parameters to train"),
        ("text", "gives no torch.nn.Module, found str"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_line(own: Here, inside: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        create_model(own(inside), 4)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        (
            "no_such_module_here:Net",
            (),
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_here'",
        ),
        ("a b:Net", (), "is written package.module:Class, found 'a b:Net'"),
        ("Small", (("widht", "3"),), "takes no argument 'widht' (did you mean 'width'?)"),
        ("Small", (("act", "tanh"),), "could not be built: KeyError: 'tanh'"),
    ],
)
def test_a_wrong_place_or_argument(own: Here, path: str, changes: tuple[tuple[str, str], ...], words: str) -> None:
    with pytest.raises(InputError) as caught:
        model_config(path if ":" in path else own(path), 4, 0, changes).build()
    assert words in str(caught.value)


@pytest.mark.parametrize("line", ["import sys; sys.exit()", "import argparse; argparse.ArgumentParser().parse_args()"])
def test_a_script_is_no_module_to_import(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["qdeploy", "--never-known"])
    name = f"script{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(line)
    with pytest.raises(InputError, match=f"the module {name} cannot be imported: it ends the program"):
        create_model(f"{name}:Net", 4)


def test_a_sweep_takes_it(own: Here, image_folder: MakeImages) -> None:
    config = checks.completed(SweepConfig(models=(own("Small"), "nano"), data=str(image_folder())))
    assert [m.family for m in checks.known_models(config).values()] == ["own", "qonstraint"]
