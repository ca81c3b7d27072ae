from __future__ import annotations

import re
from pathlib import Path

import pytest

import qdeploy
from qdeploy.core.figures import Bar, Dot, Kind, matrix, quantities, scatter, verdict
from qdeploy.core.page_style import PALETTE

FP32 = Bar(name="fp32", precision="fp32", value=2.0, words="2 ms", interval=(1.0, 4.0))
INT8 = Bar(name="int8", precision="int8", value=1.0, words="1 ms")


def test_the_pages_have_the_colours_of_the_served_page() -> None:
    style = Path(qdeploy.__file__).parent / "serve" / "page" / "style.css"
    assert style.read_text().startswith(PALETTE.lstrip())


@pytest.mark.parametrize(("kind", "words"), [("good", "accepted"), ("wait", "reservations"), ("bad", "not accepted")])
def test_a_verdict_is_an_icon_with_words_and_a_sentence(kind: Kind, words: str) -> None:
    shown = verdict(kind, "It is so.", ["a < b"])
    assert f'class="verdict {kind}"' in shown
    assert re.search(f'aria-label="[^"]*{words}"', shown)
    assert "<div>It is so.<ul><li>a &lt; b</li></ul></div>" in shown


def test_bars_are_as_long_as_their_values_and_intervals_lie_on_them() -> None:
    shown = quantities([("Latency", [FP32, INT8]), ("Memory", [])])
    assert re.findall(r'class="(fp32|int8)" style="width:([0-9.]+)%"', shown) == [("fp32", "50.0"), ("int8", "25.0")]
    assert re.findall(r"left:([0-9.]+)%;width:([0-9.]+)%", shown) == [("25.0", "75.0")]
    assert "Memory" not in shown


def test_points_lie_where_the_axes_say_and_the_best_are_named() -> None:
    dots = [Dot(name="a", x=1.0, y=10.0, best=True), Dot(name="b", x=3.0, y=20.0), Dot(name="c", x=2.0, y=15.0)]
    shown = scatter(dots, "ms", "top-1", "a plot")
    places = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)"[^>]*><title>(\w): ', shown)
    }
    assert places["c"][0] == pytest.approx((places["a"][0] + places["b"][0]) / 2, abs=0.1)
    assert places["a"][1] > places["c"][1] > places["b"][1]
    ticks = re.findall(r'<text x="([0-9.]+)" y="348.0" text-anchor="middle" class="soft">([0-9.]+)</text>', shown)
    at = {float(text): float(x) for x, text in ticks}
    assert at[2.0] == pytest.approx(places["c"][0], abs=0.1)
    assert len(at) >= 3
    assert "1  a</text>" in shown
    assert "b</text>" not in shown


def test_one_point_is_drawn_too() -> None:
    assert "<circle" in scatter([Dot(name="a", x=0.0, y=50.0, best=True)], "ms", "top-1", "a plot")


def test_a_matrix_shades_what_is_there() -> None:
    shown = matrix(("cat", "dog"), [[3, 1], [0, 4]])
    cells = re.findall(r"<td(?: style=\"([^\"]*)\")?>(\d*)</td>", shown)
    assert [text for _, text in cells] == ["3", "1", "", "4"]
    assert ["good" in style for style, _ in cells] == [True, False, False, True]
    assert ["bad" in style for style, _ in cells] == [False, True, False, False]
