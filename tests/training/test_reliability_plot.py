"""The reliability diagram: its points, its legend, and texts that lie within the figure."""

import numpy as np
import pytest
from matplotlib.text import Text

from sca_caption.guidance.confidence import HeldOut
from sca_caption.runtime.figures import save_figure
from sca_caption.training.reliability_plot import draw_reliability


def held_out(captions: int, shift: float = 0.0) -> HeldOut:
    """Half of the captions at a confidence of 0.25, of which every fourth is good, the others at 0.75."""
    order = np.arange(captions)
    confidence = np.where(order < captions // 2, 0.25, 0.75) + shift
    good = np.where(order < captions // 2, order % 4 == 0, order % 4 != 0)
    return HeldOut(confidence, np.zeros(captions), good)


def test_points_and_legend():
    figure = draw_reliability({"one": held_out(40), "two": held_out(2000, 0.1)})
    (axes,) = figure.axes
    diagonal, one, two = axes.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert one.get_xydata().tolist() == [[0.25, 0.25], [0.75, 0.75]]
    points = two.get_xydata()
    assert points[:, 0] == pytest.approx(np.array([0.35] * 5 + [0.85] * 5))
    assert points[:, 1] == pytest.approx(np.array([0.25] * 5 + [0.75] * 5))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "perfect calibration",
        "one: 40 captions, ECE 0.000",
        "two: 2,000 captions, ECE 0.100",
    ]
    assert one.get_marker() != two.get_marker() and one.get_color() != two.get_color()


@pytest.mark.parametrize("files", [1, 2, 8])
def test_texts_lie_within_the_figure(files, tmp_path):
    """Of long names and of a few captions too; the background is opaque, as pages may be dark."""
    figure = draw_reliability({f"{number}{'W' * 40}": held_out(20 + number) for number in range(files)})
    save_figure(figure, tmp_path / "a.png", "--plot")
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 15 + files
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    assert figure.legends[0].get_window_extent().y1 < figure.axes[0].xaxis.label.get_window_extent().y0
    assert figure.get_facecolor() == (1, 1, 1, 1)
