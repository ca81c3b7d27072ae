"""Each warning about an accuracy: said where it is due, and nowhere else."""

from __future__ import annotations

import pytest

from qdeploy.core.cautions import (
    at_chance,
    cautions,
    few_images,
    no_better_than_the_largest_class,
    one_answer,
    wide_interval,
    within_noise,
)

LABELS = ("animals", "cars", "trees")


def test_all_images_get_one_label() -> None:
    flat = [[22, 0, 0], [40, 0, 0], [40, 0, 0]]
    text = one_answer(LABELS, flat, "validation")
    assert text == "all 102 validation images are answered 'animals': the model does not tell them apart"
    assert cautions(LABELS, flat, split="test")[0].startswith("all 102 test images are answered")
    assert one_answer(LABELS, [[22, 0, 0], [40, 0, 0], [39, 1, 0]], "test") == ""
    assert one_answer(LABELS, [[22, 0, 0], [0, 0, 0], [0, 0, 0]], "test") == ""  # there is one class only
    assert one_answer(LABELS, [[0] * 3] * 3, "test") == ""


def test_accuracy_near_the_largest_class_share() -> None:
    text = no_better_than_the_largest_class(LABELS, [[55, 5, 0], [15, 5, 0], [16, 4, 0]], "test")
    assert text == (
        "60.0 % of the test images are right; naming 'animals' for every one would give 60.0 %: the model is no "
        "better than that"
    )
    assert no_better_than_the_largest_class(LABELS, [[50, 5, 5], [1, 19, 0], [0, 0, 20]], "test") == ""
    assert no_better_than_the_largest_class(LABELS, [[3, 0, 0], [0, 0, 0], [0, 0, 0]], "test") == ""


@pytest.mark.parametrize(("right", "n", "chance"), [(100, 1000, True), (115, 1000, True), (125, 1000, False)])
def test_chance_is_what_the_interval_cannot_exclude(right: int, n: int, chance: bool) -> None:
    assert at_chance(right, n, n / 10) is chance
    assert not at_chance(0, 0, 0)


def test_an_interval_wider_than_the_budget() -> None:
    few = [[38, 2, 0], [4, 20, 0], [0, 4, 20]]
    text = wide_interval(few, "test", 1.0)
    assert text.startswith("88 test images give the accuracy to +- 6.7 points: differences of 1 point cannot be seen")
    assert text.endswith("about 4,000 images would show 1")
    assert "smaller differences cannot be seen in it; about 200 images would show 5" in wide_interval(few, "test")
    many = [[v * 100 for v in row] for row in few]
    assert wide_interval(many, "test", 1.0) == ""
    assert wide_interval(many, "test", 0.5).endswith("would show 0.5")


def test_classes_with_few_images() -> None:
    assert few_images(LABELS, [[5, 4, 0], [0, 10, 0], [2, 0, 3]], "test") == (
        "2 classes have fewer than 10 test images, so that nothing is known of them: animals (9), trees (5)"
    )
    assert few_images(LABELS, [[5, 4, 1], [0, 0, 0], [5, 5, 5]], "test") == ""  # none of a class is another matter
    many = [f"c{i}" for i in range(8)]
    assert few_images(many, [[1] * 8] * 8, "test").endswith("c0 (8), c1 (8), c2 (8), c3 (8), c4 (8) and 3 more")


def test_differences_that_one_run_explains() -> None:
    text = within_noise({"a": 80.0, "b": 78.0, "c": 60.0}, 500)
    assert text.startswith("one run each on 500 test images does not tell a from b: ")
    assert within_noise({"a": 80.0, "b": 78.0}, 50_000) == ""
    assert within_noise({"a": 80.0}, 10) == ""
