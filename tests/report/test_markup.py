"""Text is escaped once, markup never."""

from sta_lightning.report.markup import element, markdown_text, void


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = element("b", "1 < 2 & 3")
    assert inner == "<b>1 &lt; 2 &amp; 3</b>"
    assert element("p", inner, " > ", None) == "<p><b>1 &lt; 2 &amp; 3</b> &gt; </p>"


def test_attributes() -> None:
    assert element("td", "x", class_="a", aria_label='"q"', title=None) == (
        '<td class="a" aria-label="&quot;q&quot;">x</td>'
    )
    assert void("meta", name="viewport", content="a=1") == '<meta name="viewport" content="a=1">'


def test_markdown_shows_what_it_is_given() -> None:
    assert markdown_text("a|b *c* <d> [e] `f` snake_case\nnext") == (
        "a\\|b \\*c\\* &lt;d&gt; \\[e\\] \\`f\\` snake_case next"
    )
