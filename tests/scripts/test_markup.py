"""Parts of pages."""

from scripts import markup


def test_a_markdown_table_keeps_its_cells_whatever_stands_in_them():
    shown = markup.table("| model | at eps |\n|---|---:|\n| a\\|b | **0.5** <i> |\n| c | |")
    assert shown == (
        "<table><tr><th>model</th><th>at eps</th></tr>"
        "<tr><th>a|b</th><td><b>0.5</b> &lt;i&gt;</td></tr><tr><th>c</th><td></td></tr></table>"
    )


def test_no_plots_need_no_place():
    assert markup.plots([]) == ""
    assert markup.plots(["a<b"]) == '<div class="plots"><div data-plot="a&lt;b"></div></div>'
