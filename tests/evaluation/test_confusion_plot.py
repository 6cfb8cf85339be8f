"""The figure of a confusion matrix, read back from its SVG: names, counts and omitted labels."""

import re
from pathlib import Path

import numpy as np
import pytest

from sca_caption.evaluation import confusion_plot
from sca_caption.evaluation.classification_metrics import score
from sca_caption.evaluation.confusion_plot import MAX_NAMES, save_confusion
from sca_caption.runtime.errors import UserError
from sca_caption.runtime.figures import check_figure, shorten_name


def texts(path: Path) -> list[str]:
    """The texts of an SVG file. Matplotlib writes each text as a comment before its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))


def drawn(path: Path, labels: list[int], predicted: list[int], classes: list[str]) -> list[str]:
    save_confusion(
        path, score(np.eye(len(classes))[predicted], np.array(labels), classes), "a model on a set"
    )
    return texts(path)


def test_counts_and_names_of_few_classes(tmp_path):
    found = drawn(tmp_path / "c.svg", [0] * 41 + [1] * 30, [0] * 34 + [1] * 37, ["cat", "$dog$"])
    assert found.count("cat") == 2 and found.count("$dog$") == 2  # on both axes, not as a formula
    for count in ("34", "7", "30"):
        assert count in found
    assert "0" in found and found.count("0") == 1  # of the colour bar; a cell without images is empty
    assert "a model on a set" in found and "top-1 90.1 % (95% interval 81.0 to 95.1), 71 images" in found
    assert {"predicted", "truth"} <= set(found)


@pytest.mark.slow
def test_counts_are_omitted_from_21_classes_on(tmp_path):
    labels = np.repeat(np.arange(21), 33).tolist()
    names = [f"kind {index}" for index in range(21)]
    found = drawn(tmp_path / "c.svg", labels, labels, names)
    assert "33" not in found and all(found.count(name) == 2 for name in names)
    assert "33" in drawn(tmp_path / "c.svg", labels[: 33 * 20], labels[: 33 * 20], names[:20])


@pytest.mark.slow
def test_class_names_are_omitted_above_the_limit(tmp_path):
    for count in (101, MAX_NAMES + 1):
        names = [f"kind {index}" for index in range(count)]
        found = drawn(tmp_path / "c.svg", list(range(count)), list(range(count)), names)
        assert (names[50] in found) == (count == 101)
        assert ("truth (class index)" in found) == (count > MAX_NAMES)
        assert len(found) < 300


def test_class_without_images_in_every_file_format(tmp_path):
    for ending, start in (("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")):
        path = tmp_path / f"c.{ending}"
        drawn(path, [0, 2], [0, 1], ["a", "b", "c"]) if ending == "svg" else save_confusion(
            path, score(np.eye(3)[[0, 1]], np.array([0, 2]), ["a", "b", "c"]), "x"
        )
        assert path.read_bytes().startswith(start)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.PDF", "c.png", "c.svg"]


def test_names_without_glyphs_do_not_warn(tmp_path, recwarn):
    drawn(tmp_path / "c.svg", [0, 1], [0, 1], ["猫", "犬"])
    drawn(tmp_path / "c.svg", [0, 1], [0, 1], ["a" * 60, "b"])
    assert "a" * 23 + "…" in texts(tmp_path / "c.svg") and not recwarn.list


def test_unwritable_figures_are_user_errors(tmp_path):
    check_figure(tmp_path / "c.Svg", "--confusion")
    for name, reason in (
        ("c.gif", "unknown figure format '.gif'; one of: .pdf, .png, .svg"),
        ("c", "unknown figure format ''; one of"),
        ("no/c.png", "no folder .*no; create it"),
    ):
        with pytest.raises(UserError, match=rf"--confusion .*{re.escape(name)}: {reason}"):
            check_figure(tmp_path / name, "--confusion")


def test_shorten_name():
    assert shorten_name("short") == "short" and shorten_name("x" * 24) == "x" * 24
    assert shorten_name("a long name", 7) == "a long…"


@pytest.mark.parametrize("count", [3, 20, 101])
def test_labels_lie_within_the_figure(count, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(confusion_plot, "save_figure", lambda figure, *_: drawn.append(figure))
    labels = np.arange(count)
    names = tuple(f"class_long_name_{k}" for k in range(count))
    save_confusion(tmp_path / "c.png", score(np.eye(count), labels, names), "a title")
    figure = drawn[0]
    figure.draw_without_rendering()
    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
            if label.get_text():
                box = label.get_window_extent()
                assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
