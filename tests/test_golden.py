"""Captions, scores and confidences of the shipped model, and seeded training losses, against recorded values.

A refactoring must not change them. Where a change is meant, record them again and read the difference:
`python -m tests.test_golden` writes golden/shipped.json.
"""

import json
import sys
import tempfile
from pathlib import Path

import matplotlib
import pytest
import skimage
import torch

from sca_caption import Captioner
from sca_caption.checkpoint import load
from sca_caption.config import ClassifierConfig, ClassifierTrainConfig, SamplingConfig, SearchConfig
from sca_caption.inference.captioning import CaptionPipeline
from tests.helpers.made_photos import SMALL, encoded, photo

GOLDEN = Path(__file__).parent / "golden" / "shipped.json"
SKIMAGE = Path(skimage.__file__).parent / "data"
HOPPER = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
PHOTOGRAPHS = {
    "grace_hopper": HOPPER,
    **{name: SKIMAGE / f"{name}.png" for name in ("astronaut", "chelsea", "coffee", "horse")},
    "rocket": SKIMAGE / "rocket.jpg",
    **{f"made_{number}": encoded(photo(number, (320, 240))) for number in range(2)},
}
SEARCHES = {
    "beam": {"num_captions": 3},
    "greedy": {"beam_size": 1},
    "force_words": {"force_words": ["dog", "hat/ball"], "num_captions": 2},
    "diverse": {"beam_size": 6, "diverse_groups": 3, "num_captions": 3},
    "likelihood": {"rerank_weight": 0.0, "length_penalty": 0.0, "num_captions": 2},
}


def numbers(results) -> dict[str, list[dict]]:
    return {
        name: [
            {
                "text": caption.text,
                "log_prob": caption.log_prob,
                "score": caption.score,
                "finished": caption.finished,
                "confidence": caption.confidence,
                "ratings": dict(caption.ratings),
            }
            for caption in result.captions
        ]
        for name, result in zip(PHOTOGRAPHS, results, strict=True)
    }


def captions_of_the_shipped_model() -> dict:
    captioner = Captioner.load(device="cpu")
    found = {
        name: numbers(captioner.stream(PHOTOGRAPHS.values(), **search)) for name, search in SEARCHES.items()
    }
    unguided = Captioner.load(device="cpu", guidance=False)
    found["no guidance"] = numbers(unguided.stream(PHOTOGRAPHS.values()))
    sampled = CaptionPipeline.load(
        device="cpu", sampling=SamplingConfig(seed=3), search=SearchConfig(num_captions=2)
    )
    found["sampled"] = numbers(Captioner(sampled).stream(PHOTOGRAPHS.values()))
    for style in load().captioner.config.styles[1:]:
        styled = Captioner.load(device="cpu", style=style)
        found[f"style {style}"] = numbers(styled.stream(PHOTOGRAPHS.values()))
    return found


def captions_of_the_exported_model(folder: Path) -> dict:
    from sca_caption.export.onnx_captioner import load_pipeline
    from sca_caption.export.onnx_folder import export

    export(folder, load(), dtypes=["float32"])
    pipeline = load_pipeline(folder)
    found = {"beam": numbers(Captioner(pipeline).stream(PHOTOGRAPHS.values()))}
    found["force_words"] = numbers(
        Captioner(pipeline).stream(PHOTOGRAPHS.values(), **SEARCHES["force_words"])
    )
    return found


def training_losses(folder: Path) -> dict:
    """Losses and scores of two epochs of both tasks."""
    from sca_caption.datasets.classification import open_dataset
    from sca_caption.datasets.hdf5_reader import CaptionDataset
    from sca_caption.datasets.hdf5_writer import write
    from sca_caption.models.classifier import Classifier
    from sca_caption.training.classification_task import ClassificationTask
    from sca_caption.training.loop import train
    from tests.helpers import training_runs
    from tests.helpers.classified_pictures import class_folders

    with pytest.MonkeyPatch.context() as patch:
        from tests.helpers import toy_backbone

        toy_backbone.toy.__wrapped__(patch)
        write(
            training_runs.source(),
            folder / "squares.h5",
            transform=SMALL,
            min_count=1,
            workers=1,
        )
        history, _ = training_runs.run(
            CaptionDataset(folder / "squares.h5"), folder / "run", training_runs.QUICK
        )
    pictures = open_dataset("folder", class_folders(folder / "fruit"))
    torch.manual_seed(0)
    model = Classifier(
        ClassifierConfig(backbone="lenet", attention="se", image_size=32, classes=pictures.classes)
    )
    quick = ClassifierTrainConfig(epochs=2, batch_size=8, workers=0, lr=0.01, views="none")
    classified = train(ClassificationTask(model, pictures, quick, {}), quick, folder / "classified")
    timed = {"images_per_second", "seconds"}
    return {
        task: [{name: value for name, value in record.items() if name not in timed} for record in records]
        for task, records in (("caption", history), ("classify", classified))
    }


def assert_same(found, recorded, where: str = "") -> None:
    """Text and structure exactly, numbers to a thousandth."""
    if isinstance(recorded, dict):
        assert found.keys() == recorded.keys(), where
        for name, value in recorded.items():
            assert_same(found[name], value, f"{where}/{name}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), where
        for index, value in enumerate(recorded):
            assert_same(found[index], value, f"{where}/{index}")
    elif isinstance(recorded, float):
        assert found == pytest.approx(recorded, abs=1e-3, rel=1e-3), where
    else:
        assert found == recorded, where


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_captions_of_the_shipped_model(recorded):
    assert_same(captions_of_the_shipped_model(), recorded["pytorch"])


@pytest.mark.slow
def test_captions_of_the_exported_model(recorded, tmp_path):
    pytest.importorskip("onnxscript", reason="writing ONNX needs onnx and onnxscript")
    pytest.importorskip("onnxruntime", reason="running a graph needs onnxruntime")
    assert_same(captions_of_the_exported_model(tmp_path / "model"), recorded["onnx"])


def test_training_losses(recorded, tmp_path):
    assert_same(training_losses(tmp_path), recorded["training"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            "pytorch": captions_of_the_shipped_model(),
            "onnx": captions_of_the_exported_model(Path(scratch, "model")),
            "training": training_losses(Path(scratch)),
        }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(0)
