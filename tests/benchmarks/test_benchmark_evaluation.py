"""The benchmark `evaluation` at a tiny size: both programs find the same scores, and the tables are consistent."""

import pytest

from sca_caption.benchmarks import evaluation
from sca_caption.evaluation import caption_metrics
from sca_caption.evaluation.meteor_spice import MetricUnavailable, find_java
from tests.helpers.thorough import thorough


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each printed Markdown table, without its header."""
    blocks = [block.splitlines()[2:] for block in text.split("\n\n") if block[:1] == "|"]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in blocks]


@thorough
@pytest.mark.slow
def test_scores_agree_and_tables_are_consistent(capsys):
    try:
        find_java()
    except MetricUnavailable as reason:
        pytest.skip(str(reason))
    assert evaluation.main(["--images", "20", "--rounds", "1"]) == 0
    sizes, parts = tables(capsys.readouterr().out)
    assert [row[0] for row in sizes] == ["20"]
    old, new, ratio = (float(cell.split()[0]) for cell in sizes[0][1:])
    assert ratio == pytest.approx(old / new, rel=0.1, abs=0.06)  # it is printed with one decimal
    theirs = {row[0]: float(row[1].split()[0]) for row in parts if row[1] != "-"}
    assert list(theirs) == ["tokenizer", "BLEU", "METEOR", "ROUGE-L", "CIDEr"]
    assert sum(theirs.values()) == pytest.approx(old, abs=0.1)
    assert all(float(row[2].split()[0]) >= 0 for row in parts)
    differences = {row[0]: float(row[3]) for row in parts if row[3] != "-"}
    assert set(differences) == set(theirs) - {"tokenizer"}
    assert differences["METEOR"] < 1e-12
    assert max(differences.values()) < 1e-9


def test_synthetic_captions_are_similar_within_an_image_and_deterministic():
    candidates, references = evaluation.synthetic_captions(30)
    assert (candidates, references) == evaluation.synthetic_captions(30)
    assert all(len(texts) == evaluation.REFERENCES for texts in references.values())
    assert len({text for texts in references.values() for text in texts}) == 30 * evaluation.REFERENCES
    scores = caption_metrics.python_metrics(*caption_metrics.tokenize_captions(candidates, references))
    others = {i: references[(i + 1) % 30] for i in references}
    shuffled = caption_metrics.python_metrics(*caption_metrics.tokenize_captions(candidates, others))
    assert scores["ROUGE-L"].image_scores.mean() > 1.5 * shuffled["ROUGE-L"].image_scores.mean()


def test_captions_of_a_data_set(tmp_path):
    arguments = evaluation.parser().parse_args(["--dataset", "shapes", "--images", "2", "3"])
    candidates, references = evaluation.captions_of_dataset(arguments)
    assert len(candidates) >= 3 and set(candidates) == set(references)
    assert all(len(texts) == 4 for texts in references.values())


def test_mistakes_are_one_line(capsys):
    assert evaluation.main(["--images", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: --images [1]: ")
    assert evaluation.main(["--images", "100000", "--dataset", "shapes"]) == 2
    assert "--images 100000" in capsys.readouterr().err
