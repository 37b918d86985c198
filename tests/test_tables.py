"""The tables of the documentation are those of its stored figures."""

import pytest

from benchmarks import tables
from tfds_epilepsy.errors import InputError


@pytest.fixture
def docs(tmp_path):
    """A page that shows a table twice, the second time one of its columns."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "zoo.tsv").write_text("\tseeds\tAUROC\n`vae`\t3\t.56\n`wae`\t\t.64\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Zoo\n\n<!-- figures/zoo.tsv -->\n| typed |\n<!-- end -->\n\nBelow.\n\n"
        "<!-- figures/zoo.tsv | AUROC -->\n<!-- end -->\n"
    )
    return tmp_path


def test_pages_show_the_stored_figures():
    stale = [path.name for path, text, made in tables.pages() if text != made]
    assert not stale, f"{stale}: run python -m benchmarks.tables"


def test_every_stored_figure_is_shown_and_no_other_table_has_figures_in_the_results():
    shown = {place[2] for path, text, _ in tables.pages() for place in tables.PLACE.finditer(text)}
    assert shown == {path.stem for path in (tables.DOCS / "figures").glob("*.tsv")}
    for path in (tables.DOCS / "results").glob("*.md"):
        rest = tables.PLACE.sub("", path.read_text(encoding="utf-8"))
        assert not [line for line in rest.splitlines() if line.startswith("|")], path.name


def test_a_table_is_written_where_its_place_is_marked(docs):
    ((path, text, made),) = tables.pages(docs)
    assert path.read_text() == text
    assert made == (
        "# Zoo\n\n<!-- figures/zoo.tsv -->\n"
        "|  | seeds | AUROC |\n| --- | --- | --- |\n| `vae` | 3 | .56 |\n| `wae` |  | .64 |\n"
        "<!-- end -->\n\nBelow.\n\n"
        "<!-- figures/zoo.tsv | AUROC -->\n|  | AUROC |\n| --- | --- |\n| `vae` | .56 |\n| `wae` | .64 |\n"
        "<!-- end -->\n"
    )
    path.write_text(made)
    assert [text == again for _, text, again in tables.pages(docs)] == [True]


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (None, "no such file"),
        ("\tseeds\tAUROC\n`vae`\t3\n", "line 2: not as many cells"),
        ("\tseeds\n`vae`\t3\n", "no column 'AUROC'"),
    ],
)
def test_what_cannot_be_shown_is_said(docs, figures, message):
    path = docs / "figures" / "zoo.tsv"
    path.unlink() if figures is None else path.write_text(figures)
    with pytest.raises(InputError, match=message):
        list(tables.pages(docs))
