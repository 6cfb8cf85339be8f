"""`curves`: the figure shows the scores in last.pt."""

import pytest

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli.curves import main
from sca_caption.images import Transform
from sca_caption.training.plots import draw_curves, scores
from sca_caption.vocab import Vocabulary
from tests.helpers.colour_classifier import save_classifier
from tests.helpers.made_photos import message
from tests.helpers.tiny_captioner import TINY_WORDS, tiny_captioner

HISTORY = [
    {"epoch": 0, "CIDEr": 50.0},
    {"epoch": 1, "reward": 0.4, "CIDEr": 53.5},
    {"epoch": 2, "CIDEr": 55.0},
]


@pytest.fixture
def run(tmp_path):
    def made(name: str, history: list[dict]):
        snapshot = Checkpoint(
            tiny_captioner(), Vocabulary(TINY_WORDS), Transform(32), {}, {"history": history}
        )
        checkpoint.save(tmp_path / name / "last.pt", snapshot)
        return tmp_path / name

    return made


def test_the_lines_are_the_scores(run):
    critical, plain = run("a", HISTORY), run("b", HISTORY[1:])
    name, found = scores([critical, plain])
    assert name == "CIDEr"
    axes = draw_curves(found, name).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[0, 50.0], [1, 53.5], [2, 55.0]],
        [[1, 53.5], [2, 55.0]],
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [str(critical), str(plain)]
    assert axes.get_ylabel() == "validation CIDEr"


def test_the_program(run, tmp_path, capsys):
    assert main([str(run("a", HISTORY)), "--output", str(tmp_path / "curve.svg")]) == 0
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    assert main([str(run("b", [{"epoch": 1, "loss": 3.0}])), "--output", str(tmp_path / "b.svg")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'b' / 'last.pt'} has no CIDEr ")
    assert message(lambda: scores([tmp_path / "none"])).startswith("cannot load checkpoint ")
    assert main([str(tmp_path / "a"), "--output", str(tmp_path / "curve.gif")]) == 2
    assert "'.gif'" in capsys.readouterr().err


def test_classifiers_have_top_1_and_stand_apart_from_captioners(run, tmp_path, capsys):
    save_classifier(
        tmp_path / "c" / "last.pt", history=[{"epoch": 1, "top-1": 40.0}, {"epoch": 2, "top-1": 62.5}]
    )
    name, found = scores([tmp_path / "c"])
    assert (name, found) == ("top-1", {str(tmp_path / "c"): {1: 40.0, 2: 62.5}})
    assert main([str(tmp_path / "c"), "--output", str(tmp_path / "c.svg")]) == 0
    mixed = [str(run("a", HISTORY)), str(tmp_path / "c"), "--output", str(tmp_path / "m.svg")]
    assert main(mixed) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in (str(tmp_path / "a"), str(tmp_path / "c"), "caption", "classify"))
    assert not (tmp_path / "m.svg").exists()
