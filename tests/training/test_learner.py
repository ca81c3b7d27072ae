from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Split
from qdeploy.models.classifier import Classifier
from qdeploy.models.layers import DropPath
from qdeploy.models.registry import create_model
from qdeploy.training.batches import Batch
from qdeploy.training.device import choose_precision
from qdeploy.training.distributed import World
from qdeploy.training.learner import Learner, Tally
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.schedule import Settings

CPU = World(device=torch.device("cpu"))
SETTINGS = Settings(lr=1e-2, momentum=0.8, ema=0.75, label_smoothing=0.3, auxiliary_weight=0.5, confidence=0.9)


def made(model: Classifier, **fields: Any) -> Learner:
    return Learner(model, TrainConfig(**fields), choose_precision("cpu", "off"), Preprocessing(), CPU)


def batch_of(labels: list[int], classes: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor(labels)
    image = torch.randn(len(labels), 3, 64, 64, generator=generator)
    return Batch(image=image, target=F.one_hot(index, classes).float(), labels=index)


def without_chance(model: Classifier) -> Classifier:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, DropPath):
            module.base_rate = 0.0
    return model


@pytest.mark.parametrize("name", ["nano-ar", "qonstraint-5.5"])
def test_one_step_is_the_one_written_by_hand(name: str) -> None:
    torch.manual_seed(0)
    model = without_chance(create_model(name, 4))
    by_hand, before = copy.deepcopy(model), {k: v.clone() for k, v in model.state_dict().items()}
    learner = made(model, clip_norm=0.1, deep_supervision=0.25, weight_decay=0.0)
    batch, tally = batch_of([0, 1, 2, 3, 0, 1]), Tally(CPU)
    loss = learner.step(batch, SETTINGS, tally)

    by_hand.train()
    paths = by_hand.forward_paths(batch.image)
    soft = batch.target * 0.7 + 0.3 / 4
    expected = -(soft * paths.logits.log_softmax(1)).sum(1).mean()
    if paths.auxiliary is not None and paths.transformer is not None:
        expected = expected + 0.5 * F.cross_entropy(paths.auxiliary, batch.labels)
        expected = expected + 0.25 * F.cross_entropy(paths.transformer, batch.labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    score = tally.score()
    assert score.loss == pytest.approx(loss.item())
    assert score.top1 == pytest.approx(100 * (paths.logits.argmax(1) == batch.labels).float().mean().item())
    assert score.top5 == 100.0  # of four classes

    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1)
    assert norm > 0.1  # so that the clipping is part of what is tested
    torch.optim.AdamW(by_hand.parameters(), lr=1e-2, betas=(0.8, 0.999), weight_decay=0.0).step()
    # Adam's first step is the sign of the gradient: where it is rounding noise, the sign may differ
    new = dict(model.named_parameters())
    steady = 0
    for name, parameter in by_hand.named_parameters():
        if parameter.grad is not None:
            sure = parameter.grad.abs() > 1e-5
            steady += int(sure.sum())
            assert torch.allclose(new[name][sure], parameter[sure], atol=2e-3), name
    assert steady > 0.2 * sum(p.numel() for p in by_hand.parameters())
    average = learner.average.twin.state_dict()
    for name, parameter in new.items():
        assert torch.allclose(average[name], 0.75 * before[name] + 0.25 * parameter, atol=1e-6), name


@pytest.mark.parametrize(("switch", "factor"), [(True, 1.4), (False, 1.0)])
def test_the_confidence_reaches_every_drop_path_if_the_recipe_says_so(switch: bool, factor: float) -> None:
    model = create_model("nano-ar", 4)
    made(model, dynamic_drop_path=switch, schedule="confidence").step(batch_of([0, 1]), SETTINGS, Tally(CPU))
    paths = [m for m in model.modules() if isinstance(m, DropPath)]
    assert [p.rate for p in paths] == pytest.approx([p.base_rate * factor for p in paths])
    assert model.drop_path == max(p.rate for p in paths) > 0


def test_the_label_s_confidence_is_used_only_when_asked() -> None:
    torch.manual_seed(0)
    model = without_chance(create_model("qonstraint-5.5", 4))
    losses = []
    for switch in (False, True):
        learner = made(copy.deepcopy(model), confidence_from_label=switch)
        losses.append(learner.step(batch_of([0, 1, 2, 3]), SETTINGS, Tally(CPU)).item())
    assert losses[0] != losses[1]


def test_evaluation_counts_every_image_once_and_leaves_the_mode_alone() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = create_model("nano-ar", 6)
    learner = made(model)
    count = 300  # more than one batch, not a multiple
    split = Split(
        pixels=rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8),
        labels=rng.integers(0, 6, count),
        hashes=("",) * count,
    )
    model.train()
    score = learner.evaluate(model, split)
    assert model.training
    model.eval()
    image = (torch.from_numpy(split.pixels).float() / 255 - learner.mean) / learner.std
    with torch.no_grad():
        logits = model(image.permute(0, 3, 1, 2))
    labels = torch.from_numpy(split.labels)
    assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert score.top1 == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    within_five = (logits.topk(5).indices == labels[:, None]).any(1)
    assert score.top5 == pytest.approx(100 * within_five.double().mean().item())
    confusion = learner.confusion(model, split, 7)
    assert confusion.sum(1).tolist() == labels.bincount(minlength=7).tolist()
    assert confusion.sum(0).tolist() == logits.argmax(1).bincount(minlength=7).tolist()
    assert 100 * confusion.trace() / count == pytest.approx(score.top1)
    assert score.answers == min(2, len(logits.argmax(1).unique()))


class SecondOfTwo(World):
    """Has no other process to speak with."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_a_process_without_an_image_to_evaluate_adds_nothing() -> None:
    learner = made(create_model("nano-ar", 4))
    learner.world = SecondOfTwo(device=torch.device("cpu"), rank=1, size=2)
    one = Split(pixels=np.zeros((1, 64, 64, 3), dtype=np.uint8), labels=np.zeros(1, dtype=np.int64), hashes=("",))
    assert learner.evaluate(learner.model, one).loss == 0.0


def test_a_restored_learner_takes_the_same_next_step() -> None:
    torch.manual_seed(0)
    learner = made(create_model("nano-ar", 4))
    for _ in range(3):
        learner.step(batch_of([0, 1, 2, 3]), SETTINGS, Tally(CPU))
    tensors = {k: v.clone() for k, v in learner.tensors().items()}
    other = made(create_model("nano-ar", 4))
    other.restore(tensors, learner.scaler.state_dict())
    for each in (learner, other):
        torch.manual_seed(7)
        each.step(batch_of([3, 1, 2, 0]), SETTINGS, Tally(CPU))
    mine, theirs = learner.tensors(), other.tensors()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_checkpoint_with_another_number_of_classes_is_refused() -> None:
    tensors = made(create_model("nano-ar", 5)).tensors()
    with pytest.raises(InputError, match=r"belongs to another model: .*size mismatch"):
        made(create_model("nano-ar", 4)).restore(tensors, {})


def test_recovery_forgets_moments_that_are_no_numbers() -> None:
    learner = made(create_model("nano-ar", 4))
    good = {k: v.clone() for k, v in learner.model.state_dict().items()}
    bad = batch_of([0, 1])
    learner.step(Batch(image=bad.image * float("nan"), target=bad.target, labels=bad.labels), SETTINGS, Tally(CPU))
    assert not all(p.isfinite().all() for p in learner.model.parameters())
    learner.recover(good)
    assert learner.step(bad, SETTINGS, Tally(CPU)).isfinite()
    assert all(v.isfinite().all() for v in learner.tensors().values() if v.is_floating_point())


@pytest.mark.parametrize("name", ["nano-ar", "mobilevit-pointwise-separable-v2"])
def test_features_are_measured_over_all_images(name: str) -> None:
    torch.manual_seed(0)
    learner = made(create_model(name, 4))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), dtype=np.uint8)
    split = Split(pixels=pixels, labels=np.zeros(300, dtype=np.int64), hashes=())
    score, mean, std = learner.evaluate_features(split)
    learner.model.eval()
    with torch.inference_mode():
        image = ((torch.from_numpy(pixels) / 255 - learner.mean) / learner.std).permute(0, 3, 1, 2)
        if name == "nano-ar":
            features = learner.model.features(image)  # type: ignore[operator]
        else:
            features = learner.model.head(learner.model.blocks(learner.model.stem(image)))  # type: ignore[operator]
    assert mean == pytest.approx(float(features.mean()), rel=1e-4)
    assert std == pytest.approx(float(features.std()), rel=1e-3)
    assert score == learner.evaluate(learner.model, split)


def test_a_network_that_hides_its_features_has_no_numbers() -> None:
    learner = made(create_model("torchvision/squeezenet1_1", 4))
    split = Split(pixels=np.zeros((4, 64, 64, 3), dtype=np.uint8), labels=np.zeros(4, dtype=np.int64), hashes=())
    assert learner.evaluate_features(split)[1:] == (None, None)


def test_a_rehearsal_leaves_no_trace_and_is_given_up_in_time() -> None:
    torch.manual_seed(0)
    model, reached = create_model("nano-ar", 4), list[int]()
    *_, last = model.modules()
    last.register_forward_hook(lambda *_: reached.append(1))
    learner, batch = made(model), batch_of([0, 1, 2, 3])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learner.rehearse(batch, 1e9)
    assert reached == [1]
    learner.rehearse(batch, 0.0)
    assert reached == [1]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
