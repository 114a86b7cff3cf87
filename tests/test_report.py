import csv
import dataclasses
import html.parser
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import report

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
    report.save_json(path, obj)
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
    report.save_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == expected


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    report.save_json(path, 1)
    with pytest.raises(TypeError, match="object"):
        report.save_json(path, {"bad": object()})
    assert path.read_text() == "1\n" and list(tmp_path.iterdir()) == [path]


def test_csv(tmp_path):
    rows = [["a,b", np.float32(0.1), None], ['say "x"', np.int32(2), 1e-20]]
    report.save_csv(tmp_path / "x.csv", ["name", "value", "more"], rows)
    text = (tmp_path / "x.csv").read_bytes().decode()
    assert "\r" not in text
    found = list(csv.reader(text.splitlines()))
    assert found == [["name", "value", "more"], ["a,b", "0.1", ""], ['say "x"', "2", "1e-20"]]


def noisy_figure():
    fig, ax = report.subplots(size=(8, 6))
    ax.imshow(np.random.default_rng(0).random((600, 800)), aspect="auto")
    return fig


@report.style()
def test_figures_stay_below_their_limit(tmp_path):
    path = tmp_path / "x.png"
    report.save_figure(noisy_figure(), path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 300_000


def test_pyplot_figures_are_closed(tmp_path):
    import matplotlib.pyplot as plt

    fig, _ = plt.subplots()
    report.save_figure(fig, tmp_path / "x.png")
    assert not plt.fignum_exists(fig.number)


def test_style_ends_with_its_block():
    import matplotlib

    before = matplotlib.rcParams["axes.grid"]
    with report.style():
        assert matplotlib.rcParams["axes.grid"]
    assert matplotlib.rcParams["axes.grid"] == before


def test_a_method_keeps_its_colour():
    alone = {m: report.colours([m])[0] for m in ("rope", "pi", "abf", "xpos_abf")}
    assert len(set(alone.values())) == 4
    assert report.colours(["xpos_abf", "pi:factor=8"]) == [alone["xpos_abf"], alone["pi"]]
    many = report.colours(["rope", "rope:base=1e6", "yarn:factor=8", "ntk", "abf", "abf:base=1e7"])
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
def page(tmp_path):
    with report.style():
        fig, ax = report.subplots()
        ax.plot([1, 2])
        report.save_figure(fig, tmp_path / "x.png")
    blocks = [
        report.Text(f"one\n\n{NASTY}"),
        report.Table(["a", NASTY], [[NASTY, 1 / 3], [None, 12]], NASTY),
        report.Figure(tmp_path / "x.png", NASTY),
    ]
    sections = [report.Section(NASTY, blocks)]
    report.write_html(tmp_path / "r.html", NASTY, f"run {NASTY}", sections, report.versions())
    return (tmp_path / "r.html").read_text()


def test_page_needs_no_network(page):
    found = Page(page)
    assert found.links and all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "http:" not in page and "https:" not in page
    assert "@import" not in page and "url(" not in page


def test_page_escapes_all_text(page):
    # Title twice, section, command, paragraph, header, cell, two captions.
    assert Page(page).text.count(NASTY) == 9
    assert "<script" not in page and "alert('1')" not in page


def test_page_says_what_it_must(page):
    text = Page(page).text
    assert f"run {NASTY}" in text and "0.333333" in text and "–" in text
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    for name, version in report.versions().items():
        assert name in text and report.cell(version) in text


def test_versions():
    found = report.versions()
    assert list(found) == ["python", "jax", "jaxlib", "flax", "optax", "numpy", "device", "commit"]
    assert found["numpy"] == np.__version__ and found["device"]


def test_no_commit_outside_a_checkout(tmp_path):
    assert report._commit(tmp_path) is None


def test_printed_tables_hold_what_looks_like_markup(capsys):
    report.print_table("title", ["name", "value"], [["[red]x[/red]", 1.5], ["y", None]])
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out and "1.5" in out and "–" in out
