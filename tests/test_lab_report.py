"""Result files, figures and pages of experiments/lab."""

import csv
import dataclasses
import html.parser
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import lab
from experiments.lab import figures, page, reports, versions

NASTY = "<script>alert('1')</script> & \"quotes\" [bold]"


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    tags: tuple[str, ...]


def test_json_round_trip(tmp_path):
    path = tmp_path / "new" / "results.json"
    obj = {
        "float": 0.1, "int": 3, "flag": True, "none": None, "text": "ä<", "list": [1, [2.5]],
    }  # fmt: skip
    lab.save_json(path, obj)
    assert json.loads(path.read_text()) == obj


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), 0.1),
        (np.float64(1 / 3), 1 / 3),
        (jnp.float32(0.1), 0.1),
        (jnp.bfloat16(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array([[0.1, 2]], np.float32), [[0.1, 2.0]]),
        (jnp.arange(3), [0, 1, 2]),
        (np.array([np.nan, np.inf, 1]), [None, None, 1.0]),
        (float("-inf"), None),
        (Point(np.float64(1.5), ("a", "b")), {"x": 1.5, "tags": ["a", "b"]}),
        (ConfigDict({"a": (1, 2), "b": {"c": 1.0}}), {"a": [1, 2], "b": {"c": 1.0}}),
        ({3: Path("a/b")}, {"3": "a/b"}),
    ],
)
def test_json_converts(tmp_path, value, expected):
    lab.save_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == expected


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    lab.save_json(path, 1)
    with pytest.raises(TypeError, match="object"):
        lab.save_json(path, {"bad": object()})
    assert path.read_text() == "1\n" and list(tmp_path.iterdir()) == [path]


def test_csv(tmp_path):
    rows = [["a,b", np.float32(0.1), None], ['say "x"', np.int32(2), 1e-20]]
    lab.save_csv(tmp_path / "x.csv", ["name", "value", "more"], rows)
    text = (tmp_path / "x.csv").read_bytes().decode()
    assert "\r" not in text
    found = list(csv.reader(text.splitlines()))
    assert found == [["name", "value", "more"], ["a,b", "0.1", ""], ['say "x"', "2", "1e-20"]]


def noisy_figure():
    fig, ax = lab.subplots(size=(8, 6))
    ax.imshow(np.random.default_rng(0).random((600, 800)), aspect="auto")
    return fig


@lab.style()
def test_figures_stay_below_their_limit(tmp_path):
    path = tmp_path / "x.png"
    figures.save_figure(noisy_figure(), path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 300_000


def test_pyplot_figures_are_closed(tmp_path):
    import matplotlib.pyplot as plt

    fig, _ = plt.subplots()
    figures.save_figure(fig, tmp_path / "x.png")
    assert not plt.fignum_exists(fig.number)


def test_style_ends_with_its_block():
    import matplotlib

    before = matplotlib.rcParams["axes.grid"]
    with lab.style():
        assert matplotlib.rcParams["axes.grid"]
    assert matplotlib.rcParams["axes.grid"] == before


def test_a_method_keeps_its_colour():
    alone = {m: lab.colours([m])[0] for m in ("rope", "pi", "abf", "xpos_abf")}
    assert len(set(alone.values())) == 4
    assert lab.colours(["xpos_abf", "pi:factor=8"]) == [alone["xpos_abf"], alone["pi"]]
    many = lab.colours(["rope", "rope:base=1e6", "yarn:factor=8", "ntk", "abf", "abf:base=1e7"])
    assert len(set(many)) == 6 and many[0] == alone["rope"] and many[4] == alone["abf"]


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def published(tmp_path):
    """The folder of a report whose every text needs escaping."""
    with lab.style():
        fig, ax = lab.subplots()
        ax.plot([1, 2])
    blocks = [
        lab.Paragraphs(f"one\n\n{NASTY}"),
        lab.Table(["a", NASTY], [[NASTY, 1 / 3], [None, 12]], NASTY, "numbers"),
        lab.Figure("drawing", fig, NASTY),
    ]
    lab.publish(
        tmp_path,
        f"run {NASTY}",
        {"steps": 3},
        title=NASTY,
        claims=[NASTY],
        sections=[lab.Section(NASTY, blocks)],
        results={"more": 1 / 3},
    )
    return tmp_path


@pytest.fixture
def text(published):
    return (published / "report.html").read_text()


def test_a_report_leaves_its_files(published):
    found = {path.name for path in published.iterdir()}
    assert found == {"report.html", "results.json", "numbers.csv", "drawing.png"}
    saved = json.loads((published / "results.json").read_text())
    assert saved["more"] == 1 / 3 and saved["config"] == {"steps": 3} and saved["claims"] == [NASTY]
    lines = list(csv.reader((published / "numbers.csv").open()))
    assert lines == [["a", NASTY], [NASTY, repr(1 / 3)], ["", "12"]]


def test_page_needs_no_network(text):
    found = Page(text)
    assert found.links and all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "http:" not in text and "https:" not in text
    assert "@import" not in text and "url(" not in text


def test_page_escapes_all_text(text):
    # Title twice, section, command, claim, paragraph, header, cell, two captions.
    assert Page(text).text.count(NASTY) == 10
    assert "<script" not in text and "alert('1')" not in text


def test_page_says_what_it_must(text):
    shown = Page(text).text
    assert f"run {NASTY}" in shown and "0.333333" in shown and "–" in shown
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    for name, version in versions.versions().items():
        assert name in shown and page.cell(version) in shown


def test_reports_are_joined_in_one_file(published, tmp_path):
    one = lab.publish(
        tmp_path / "one", "", {}, title="One", claims=["It holds."], sections=[
            lab.Section("First", [lab.Figure("x", noisy_figure())])
        ],
    )  # fmt: skip
    other = dataclasses.replace(one, title="Other", sections=(lab.Section("Second", []),))
    text = lab.join(tmp_path, "the command", "Both", [one, other]).read_text()
    assert text.index("First") < text.index("Second") and "It holds." in text
    assert text.count("data:image/png;base64,") == 1


def test_versions():
    found = versions.versions()
    assert list(found) == ["python", "jax", "jaxlib", "flax", "optax", "numpy", "device", "commit"]
    assert found["numpy"] == np.__version__ and found["device"]


def test_no_commit_outside_a_checkout(tmp_path):
    assert versions.commit(tmp_path) is None


def test_tables_show_numbers_as_their_column_says_and_the_csv_keeps_them(published, capsys):
    rows = [
        {"name": "[red]x[/red]", "value": 1.23456, "at": 5},
        {"name": "y", "value": None, "at": 6},
    ]
    table = lab.table(rows, "title", "t", {"value": "{:.2f}".format})
    assert table.shown() == [["[red]x[/red]", "1.23", "5"], ["y", "–", "6"]]
    assert table.rows[0][1] == 1.23456
    reports.print_table(table)
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out and "1.23" in out and "–" in out


def test_panels_hide_what_is_left_of_their_last_row():
    fig, axes = lab.panels(5, 3, each=(2, 1), margin=(0, 1))
    assert len(axes) == 5 and tuple(fig.get_size_inches()) == (6, 3)
    assert [ax.get_visible() for ax in fig.axes] == [True] * 5 + [False]


def test_a_band_holds_mean_and_range_of_its_blocks():
    _, ax = lab.subplots()
    lab.draw_band(ax, np.array([0.0, 2.0, 5.0]), np.array([0, 2]), color="k")
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[0.5, 1], [2, 5]])
