from __future__ import annotations

from html import escape

import pytest

from qdeploy.core.html import Markup, join, page, table, tag

NASTY = "<script>alert(1)</script>&\"'"


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", NASTY) == f"<p>{escape(NASTY)}</p>"
    assert tag("p", tag("b", NASTY), " & ") == f"<p><b>{escape(NASTY)}</b> &amp; </p>"
    assert join([NASTY, tag("br")]) == f"{escape(NASTY)}<br>"
    assert tag("p", Markup("<i>x</i>")) == "<p><i>x</i></p>"


@pytest.mark.parametrize("mixed", [tag("b", "x") + NASTY, f"{tag('b', 'x')}{NASTY}", NASTY + tag("b", "x")])
def test_what_was_put_together_by_hand_is_text_again(mixed: str) -> None:
    assert tag("p", mixed) == f"<p>{escape(mixed)}</p>"


def test_attributes_are_escaped_renamed_and_left_out_if_empty() -> None:
    assert tag("text", class_=NASTY, text_anchor="end", x=1.5, id="") == (
        f'<text class="{escape(NASTY)}" text-anchor="end" x="1.5"></text>'
    )
    assert tag("img", src="a.png", alt=NASTY) == f'<img src="a.png" alt="{escape(NASTY)}">'


def test_a_table_and_a_page() -> None:
    rows = table(("a", NASTY), [("1", NASTY), (tag("b", "2"), "3")], kind="numbers", row_kinds=("", "front"))
    assert rows == (
        f'<div class="wide"><table class="numbers"><tr><th>a</th><th>{escape(NASTY)}</th></tr>'
        f'<tr><td>1</td><td>{escape(NASTY)}</td></tr><tr class="front"><td><b>2</b></td><td>3</td></tr></table></div>'
    )
    assert page(NASTY, "p>b{color:red}", rows, NASTY) == (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(NASTY)}</title>'
        f"<style>p>b{{color:red}}</style><body>{rows}{escape(NASTY)}</body></html>\n"
    )
