"""Several data sets and styles from the command line: train.py on a mixture, --style of caption.py and evaluate.py."""

import json
from pathlib import Path

import pytest
import torch

from sca_caption import checkpoint
from sca_caption.cli import caption, evaluate, train
from sca_caption.evaluation import meteor_spice as java_metrics
from sca_caption.evaluation.meteor_spice import MetricUnavailable
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.training import loop
from tests.helpers.made_photos import dataset, error_line, write
from tests.helpers.mixtures import mixture_of, write_two
from tests.helpers.tiny_captioner import STYLES, save_styled
from tests.helpers.toy_backbone import toy  # noqa: F401
from tests.helpers.training_runs import assert_equal_tensors

pytestmark = pytest.mark.usefixtures("toy")

SMALL = ["--backbone", "toy", "--layers", "block.relu", "block", "--attention-width", "6"]
SMALL += ["--embedding-size", "16", "--lstm-size", "24", "--word-rank", "4"]
QUICK = [
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--backbone-weights",
    "none",
    "--device",
    "cpu",
]
BOTH = ["--dataset", "squares", "animals"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with data/squares.h5 and data/animals.h5."""
    (tmp_path / "data").mkdir()
    write_two(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "summary_writer", lambda output: None)  # its import takes longer than the tests
    monkeypatch.setattr(loop, "draw_progress", lambda *_: None)
    return tmp_path


def run(capsys, program, *arguments: object) -> tuple[int, str, str]:
    status = program.main([str(x) for x in arguments])
    return status, *capsys.readouterr()


def mistake(capsys, program, *arguments: object) -> str:
    """What the program says on the way out with status 2: one line."""
    return error_line(*run(capsys, program, *arguments))


# ---- training --------------------------------------------------------------------------------------------------------


def test_several_data_sets_are_mixed(here, capsys):
    status, out, err = run(capsys, train, *BOTH, *SMALL, *QUICK, "--texts-per-step", 2)
    assert (status, err) == (0, "")
    lines, mixture = out.splitlines(), mixture_of([Path("data/squares.h5"), Path("data/animals.h5")])
    assert lines[0].startswith("10 training and 5 validation images, captions of 3 others, ")
    assert lines[0].endswith("writing to runs/squares-animals")
    assert sum(line.strip().startswith(("squares: CIDEr ", "animals: CIDEr ")) for line in lines) == 4
    assert lines[-1] == "best model: runs/squares-animals/best.pt"
    best, last = (checkpoint.load(f"runs/squares-animals/{name}.pt") for name in ("best", "last"))
    for found in (best, last):
        assert found.config.styles == ("squares", "animals") and found.vocabulary == mixture.vocabulary
        assert found.captioner.word_predictor.idf.any()
    assert last.training["data"] == "data/squares.h5 data/animals.h5"
    assert set(best.metrics["val"]) >= {"CIDEr", "CIDEr squares", "CIDEr animals"}


def test_an_interrupted_run_on_a_mixture_goes_on_to_the_same_model(here, capsys, monkeypatch):
    flags = [*SMALL, *QUICK, "--texts-per-step", 2, "--captions-per-image", 1]
    assert run(capsys, train, *BOTH, *flags, "--output", "whole")[0] == 0
    save = checkpoint.save

    def interrupted(path, made, **options):
        save(path, made, **options)
        if path.name == "last.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", interrupted)
    assert run(capsys, train, *BOTH, *flags)[0] == 130
    monkeypatch.setattr(checkpoint, "save", save)
    status, out, _ = run(capsys, train, *BOTH, "--resume", "--device", "cpu")
    assert status == 0 and out.endswith("best model: runs/squares-animals/best.pt\n")
    whole, parts = (checkpoint.load(f"{name}/last.pt") for name in ("whole", "runs/squares-animals"))
    assert_equal_tensors(parts.model.state_dict(), whole.model.state_dict())


def test_a_run_is_resumed_with_its_own_data_sets(here, capsys):
    """The second data file has the words of the first, so that the vocabulary does not tell."""
    for name in ("one", "two"):
        write(dataset(6), here / "data" / f"{name}.h5", encoding="raw")
    assert run(capsys, train, "--dataset", "one", "two", *SMALL, *QUICK, "--output", "run")[0] == 0
    for names, found in ((["two", "one"], "the styles two, one"), (["one"], "one style")):
        text = mistake(capsys, train, "--dataset", *names, "--output", "run", "--resume")
        assert text == (
            f"run/last.pt has the styles one, two, these data files {found}; "
            "resume with the data files it was trained on (data/one.h5 data/two.h5)"
        )
    text = mistake(capsys, train, "--dataset", "squares", "--output", "run", "--resume")
    assert "data/squares.h5 has another vocabulary" in text


def test_a_trained_mixture_is_trained_on_with_the_same_data_sets(here, capsys):
    assert run(capsys, train, *BOTH, *SMALL, *QUICK)[0] == 0
    init = ["--init", "runs/squares-animals/best.pt"]
    cider = ["--objective", "cider", "--epochs", 1, "--batch-size", 3, "--workers", 0, "--device", "cpu"]
    status, out, err = run(capsys, train, *BOTH, *init, *cider, "--train-sample-n", 2)
    assert (status, err) == (0, "") and "; new weights in: nothing\n" in out
    assert out.endswith("best model: runs/squares-animals-cider/best.pt\n")
    before, after = (
        checkpoint.load(f"runs/{name}/best.pt") for name in ("squares-animals", "squares-animals-cider")
    )
    assert after.config.styles == ("squares", "animals")
    assert torch.equal(after.captioner.word_predictor.idf, before.captioner.word_predictor.idf)


def test_a_trained_mixture_is_fine_tuned_on_other_data_sets(here, capsys):
    """One data set continues the style of its name, or else the default one; several have new styles of their names."""
    assert run(capsys, train, *BOTH, *SMALL, *QUICK)[0] == 0
    name = "runs/squares-animals/best.pt"
    flags = ["--init", name, "--epochs", 1, "--lr", 1e-9, *QUICK[2:], "--output"]
    write(dataset(6), here / "data" / "own.h5", encoding="raw")
    for files, style, styles in (
        (["own"], "squares", ()),
        (["animals"], "animals", ()),
        (["own", "animals"], "squares", ("own", "animals")),
    ):
        status, out, err = run(capsys, train, "--dataset", *files, *flags, "-".join(["new", *files]))
        assert (status, err) == (
            0,
            "",
        ) and f"starting from {name} in the style {style}; new weights in: " in out
        found = checkpoint.load("-".join(["new", *files]) + "/best.pt").captioner
        assert found.config.styles == styles
    before = checkpoint.load(name).captioner
    assert torch.allclose(found.style.weight, before.style.weight[[0, 1]], atol=1e-6)


def test_the_cache_needs_a_frozen_cnn_and_unchanged_images(here, capsys):
    for flags in (
        ["--finetune-backbone-at", "-1"],
        ["--no-augment", "--finetune-backbone-at", "1"],
        [],
    ):
        text = mistake(capsys, train, *BOTH, *SMALL, *QUICK, "--cache-features", *flags)
        assert text.startswith("--cache-features ")
        assert "--finetune-backbone-at -1" in text and "--no-augment" in text
    assert not (here / "runs").exists()
    # Fine-tuning that would begin after the last epoch is none.
    for start in (-1, 2):
        flags = [
            "--cache-features",
            "--no-augment",
            "--finetune-backbone-at",
            start,
            "--output",
            f"run{start}",
        ]
        assert run(capsys, train, *BOTH, *SMALL, *QUICK, *flags)[0] == 0


def test_mistakes_are_one_line_and_leave_nothing(here, capsys):
    other = here / "other"
    other.mkdir()
    write(dataset(6), other / "squares.h5", encoding="raw")
    write(dataset(6), here / "data" / "large.h5", encoding="raw", transform=Transform(48))
    write(dataset(6), here / "data" / "bare.h5", encoding="raw")
    for flags, parts in (
        (["--dataset", "squares", "missing"], ("data/missing.h5", "preprocess.py --dataset missing")),
        (["--dataset", "squares", "large"], ("data/large.h5 has another transform than data/squares.h5",)),
        (["--dataset", "x", "--data", "data/squares.h5", "other/squares.h5"], ("two data files are named squares",)),
        ([*BOTH, "--texts-per-step", "2", "--word-rank", "0"], ("--texts-per-step 2", "add --word-rank")),
        (["--dataset", "bare", "--texts-per-step", "2"], ("--texts-per-step 2", "preprocess.py --texts")),
        ([*BOTH, "--captions-per-image", "-1"], ("--captions-per-image -1", "0 or more")),
    ):  # fmt: skip
        found = mistake(capsys, train, *SMALL, *QUICK, *flags)
        assert not [part for part in parts if part not in found], found
    assert not (here / "runs").exists()


# ---- styles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def styled(tmp_path_factory) -> Path:
    return save_styled(tmp_path_factory.mktemp("styled") / "best.pt")


def captions_by_style(path: Path, photos: list[Path]) -> dict[str, list[str]]:
    """By the network itself, where the style of each image is given."""
    found = {}
    for style, name in enumerate(STYLES):
        loaded = checkpoint.load(path)
        start = loaded.captioner.start
        loaded.model.start = lambda maps, start=start, style=style: start(
            maps, torch.tensor([style] * len(maps[0]))
        )
        results = CaptionPipeline.load(loaded).stream(photos)
        found[name] = [result.captions[0].text for result in results]
    assert len({tuple(texts) for texts in found.values()}) == 3
    return found


def test_a_style_is_chosen_by_name(styled, photos, capsys):
    photos, model = photos[:3], ["--checkpoint", styled]
    wanted = captions_by_style(styled, photos)
    for flags, name in (([], "made"), (["--style", "made"], "made"), (["--style", "news"], "news")):
        status, out, err = run(capsys, caption, *photos, *model, *flags)
        assert (status, err) == (0, "")
        assert [line.split("\t")[1] for line in out.splitlines()] == wanted[name]
    out = run(capsys, caption, photos[0], *model, styled, "--style", "everyday")[1]
    assert out == f"{wanted['everyday'][0]}\n"  # an ensemble of two


def test_captions_of_another_style_are_not_resumed(styled, photos, tmp_path, capsys):
    flags = [photos[0], "--checkpoint", styled, "--output", tmp_path / "out.html"]
    assert run(capsys, caption, *flags, "--style", "news")[0] == 0
    assert "--style" in mistake(capsys, caption, *flags, "--style", "everyday", "--resume")


def test_unknown_styles_are_one_line(styled, tiny_checkpoint, photos, capsys):
    text = mistake(capsys, caption, photos[0], "--checkpoint", styled, "--style", "poem")
    assert text == "unknown style 'poem'; one of: everyday, made, news"
    text = mistake(capsys, caption, photos[0], "--checkpoint", tiny_checkpoint, "--style", "news")
    assert text == "--style news: this model has only one style; leave the flag out"
    text = mistake(capsys, caption, photos[0], "--checkpoint", styled, tiny_checkpoint, "--style", "news")
    assert text == "--style news: this model has only one style; leave the flag out"


def test_a_pipelines_style_is_its_own(styled, photos):
    """One checkpoint in memory gives several pipelines."""
    photos = photos[:3]
    loaded, wanted = checkpoint.load(styled), captions_by_style(styled, photos)
    pipelines = {name: CaptionPipeline.load(loaded, style=name) for name in ("news", "made", "everyday")}
    pipelines["made"] = CaptionPipeline.load(loaded)
    for name, pipeline in pipelines.items():
        assert [result.captions[0].text for result in pipeline.stream(photos)] == wanted[name]


def test_evaluation_has_the_style_of_its_data_file(styled, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def none():
        raise MetricUnavailable("no Java here")

    monkeypatch.setattr(java_metrics, "find_java", none)
    results = tmp_path / "results.json"

    def said(name: str, *flags: object, model: Path = styled) -> list[str]:
        data = tmp_path / f"{name}.h5"
        write(dataset(5), data)
        arguments = [
            "--data",
            data,
            "--checkpoint",
            model,
            "--split",
            "train",
            "--output",
            results,
            "--quiet",
        ]
        assert run(capsys, evaluate, *arguments, *flags)[0] == 0
        return [image["caption"] for image in json.loads(results.read_text())["images"]]

    by_style = {name: said("other", "--style", name) for name in STYLES}
    assert len({tuple(captions) for captions in by_style.values()}) == 3
    assert said("other") == by_style["made"]  # the model's first
    assert said("news") == by_style["news"]
    assert said("news", "--style", "everyday") == by_style["everyday"]
    assert said("news", model=tiny_checkpoint)  # a model without styles
    given = ["--data", tmp_path / "news.h5", "--checkpoint"]
    assert "unknown style 'poem'" in mistake(capsys, evaluate, *given, styled, "--style", "poem")
    assert "only one style" in mistake(capsys, evaluate, *given, tiny_checkpoint, "--style", "news")
    text = mistake(capsys, evaluate, "--predictions", results, "--references", results, "--style", "news")
    assert text.startswith("--style has no effect on --predictions")
