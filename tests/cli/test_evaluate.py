"""evaluate.py: the captions and references it scores, what it prints and writes, and what it says of mistakes."""

import json
import sys

import pytest
import torch

from sca_caption import checkpoint
from sca_caption.cli.evaluate import main
from sca_caption.config import SearchConfig
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.datasets.sources.records import Source
from sca_caption.evaluation import caption_metrics as metrics
from sca_caption.evaluation import meteor_spice as java_metrics
from sca_caption.evaluation.coco_format import read_predictions
from sca_caption.evaluation.meteor_spice import MetricUnavailable
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.results_formats import JsonArray, JsonLines, Table
from tests.helpers.made_photos import record, write

REFERENCES = {
    "photo 2.png": ["A dog runs.", "the red dog runs"],
    "photo 3.png": ["Two cats sit on grass.", "cats"],
    "photo 4.png": ["A man can't see the water."],
}


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    def none():
        raise MetricUnavailable("no Java here")

    monkeypatch.setattr(java_metrics, "find_java", none)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """Two images to train on and three of test, with REFERENCES."""
    records = [record(0), record(1)]
    records += [record(2 + i, "test", REFERENCES[name]) for i, name in enumerate(REFERENCES)]
    path = tmp_path_factory.mktemp("data") / "made.h5"
    write(Source("made", "made for a test", records), path)
    return path


@pytest.fixture
def save(tmp_path):
    """Writes JSON to a file of the test and returns its path as text."""

    def write_json(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write_json


def coco(references):
    names = list(references)
    return {
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": 10 + i, "caption": text} for i, name in enumerate(names) for text in references[name]
        ],
    }


def error_of(capsys, *arguments):
    """The one line that a mistake prints."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def scores_of(path):
    content = json.loads(path.read_text())
    return content["metrics"], {image["file_name"]: image for image in content["images"]}


def test_a_split_is_captioned_and_scored(data_file, tiny_checkpoint, tmp_path, capsys):
    output = tmp_path / "results.json"
    arguments = ["--data", str(data_file), "--checkpoint", str(tiny_checkpoint), "--output", str(output)]
    assert main([*arguments, "--beam-size", "2", "--max-length", "5", "--batch-size", "2"]) == 0

    data = CaptionDataset(data_file)
    pipeline = CaptionPipeline.load(tiny_checkpoint, search=SearchConfig(beam_size=2, max_length=5))
    rows = data.indices("test").tolist()
    captions = {data.file_name(r.item): r.captions[0].text for r in pipeline.stream(rows, read=data.image)}
    expected = metrics.evaluate(captions, REFERENCES)
    content = json.loads(output.read_text())
    found = {image["file_name"]: image for image in content["images"]}
    assert {name: image["caption"] for name, image in found.items()} == captions
    assert {name: image["references"] for name, image in found.items()} == REFERENCES
    assert found["photo 3.png"]["image_id"] == 1003
    assert content["metrics"] == pytest.approx(expected.metrics, abs=1e-4)
    for name, image in found.items():
        assert image["scores"] == pytest.approx(expected.images[name], abs=1e-4)
    assert content["confidence"]["CIDEr"] == pytest.approx(expected.confidence["CIDEr"], abs=1e-4)
    assert content["missing"] == {"METEOR": "no Java here"}
    assert content["metrics"]["METEOR"] is None
    source = content["provenance"]
    assert source["checkpoint"] == str(tiny_checkpoint) and len(source["checkpoint_sha256"]) == 64
    assert (source["dataset"], source["split"], source["images"]) == ("made", "test", 3)
    assert source["search"] == {
        name: value
        for name, value in vars(SearchConfig(beam_size=2, max_length=5)).items()
        if name != "num_captions"
    }

    table = capsys.readouterr().out.splitlines()
    assert table[0] == f"{tiny_checkpoint}, beam 2: 3 images of made test"
    figures = {line.split()[0]: line.split()[1] for line in table[3:]}
    assert figures == {n: "-" if s is None else f"{s:.2f}" for n, s in expected.metrics.items()}
    assert [line for line in table if line.startswith("METEOR")] == ["METEOR        -   no Java here"]
    assert list(tmp_path.iterdir()) == [output], "no temporary file is left"


def test_neutral_captions_are_those_of_the_pipeline(data_file, tiny_checkpoint, tmp_path):
    output, data = tmp_path / "results.json", CaptionDataset(data_file)
    speaks_of_men = checkpoint.load(tiny_checkpoint)
    with torch.no_grad():
        speaks_of_men.captioner.word.bias[speaks_of_men.vocabulary.encode(["man"])] += 5
    path = tmp_path / "men.pt"
    checkpoint.save(path, speaks_of_men)
    pipeline = CaptionPipeline.load(path, neutral=True)
    rows = data.indices("test").tolist()
    captions = {data.file_name(r.item): r.captions[0].text for r in pipeline.stream(rows, read=data.image)}
    arguments = ["--data", str(data_file), "--checkpoint", str(path), "--output", str(output)]
    assert main(arguments) == 0
    assert any(
        {"man", "woman"} & {*image["caption"].split()} for image in json.loads(output.read_text())["images"]
    )
    assert main([*arguments, "--neutral"]) == 0
    content = json.loads(output.read_text())
    assert {image["file_name"]: image["caption"] for image in content["images"]} == captions
    assert content["provenance"]["neutral"] and content["provenance"]["guidance"]


def test_limit_takes_the_first_images(data_file, tiny_checkpoint, tmp_path):
    output = tmp_path / "results.json"
    assert main(["--data", str(data_file), "--checkpoint", str(tiny_checkpoint), "--limit", "2",
                 "--output", str(output)]) == 0  # fmt: skip
    assert list(scores_of(output)[1]) == ["photo 2.png", "photo 3.png"]


CAPTIONS = {"photo 4.png": "a man in water", "photo 2.png": "the dog runs", "photo 3.png": "two cats"}


@pytest.mark.parametrize(
    "predictions",
    [
        [{"image_id": 10 + list(REFERENCES).index(name), "caption": text} for name, text in CAPTIONS.items()],
        [{"image_id": str(10 + list(REFERENCES).index(n)), "caption": text} for n, text in CAPTIONS.items()],
        # Numbers made up by the captioner are other images' numbers in the references; names decide.
        [{"image_id": 12 - i, "file_name": n, "caption": t} for i, (n, t) in enumerate(CAPTIONS.items())],
        [{"image_id": f"{10 + list(REFERENCES).index(n):012}", "caption": t} for n, t in CAPTIONS.items()],
        [{"file_name": f"my/photos/{name}", "caption": text} for name, text in CAPTIONS.items()],
        {"metrics": {}, "images": [{"file_name": name, "caption": text} for name, text in CAPTIONS.items()]},
    ],
    ids=["numbers", "numbers as text", "names", "padded numbers", "names in folders", "own results"],
)
def test_a_results_file_is_matched_to_coco_references(predictions, save, tmp_path):
    output = tmp_path / "results.json"
    given = save("out.json", predictions), save("captions.json", coco(REFERENCES))
    assert main(["--predictions", given[0], "--references", given[1], "--output", str(output)]) == 0
    found, images = scores_of(output)
    assert {name: image["caption"] for name, image in images.items()} == CAPTIONS
    assert {name: image["references"] for name, image in images.items()} == REFERENCES
    assert found == pytest.approx(metrics.evaluate(CAPTIONS, REFERENCES).metrics, abs=1e-4)


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_formats_of_caption_py_are_read(ending, count, save, tmp_path):
    """The first caption of each image is scored."""
    entries = [
        {"image_id": number, "file_name": f"a \udce9/{name}", "caption": text, "score": -1.5}
        | ({"captions": [{"caption": each, "score": -1.5} for each in (text, "no")]} if count == 2 else {})
        for number, (name, text) in enumerate(CAPTIONS.items(), 1)
    ]
    path, output = tmp_path / f"out{ending}", tmp_path / "scores.json"
    kind = {".json": JsonArray, ".jsonl": JsonLines, ".csv": Table}[ending]
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        kind(path, ["score"], {"num_captions": count}, None).write(file, entries, [])
    assert [each["file_name"] for each in read_predictions(path)] == [each["file_name"] for each in entries]
    references = save("captions.json", coco(REFERENCES))
    assert main(["--predictions", str(path), "--references", references, "--output", str(output)]) == 0
    assert {name: image["caption"] for name, image in scores_of(output)[1].items()} == CAPTIONS


@pytest.mark.parametrize("bad", [None, 7, ["a cat"], " "])
def test_references_that_are_no_text_are_skipped(bad, save, tmp_path, capsys):
    """Listed, and without effect; an image with nothing else has no references."""
    output = tmp_path / "scores.json"
    predictions = save("out.json", results_of(CAPTIONS))
    for form in (coco, dict):
        spoilt = {name: [texts[0], bad, *texts[1:]] for name, texts in REFERENCES.items()}
        references = save("references.json", form(spoilt | {"photo 9.png": [bad]}))
        assert main(["--predictions", predictions, "--references", references, "--output", str(output)]) == 0
        assert "4 references that are no text are skipped" in capsys.readouterr().err
        images = scores_of(output)[1]
        assert {name: image["references"] for name, image in images.items()} == REFERENCES


def test_references_by_file_name_and_from_a_data_file(save, data_file, tmp_path):
    predictions = save("out.json", [{"file_name": name, "caption": text} for name, text in CAPTIONS.items()])
    outputs = [tmp_path / "a.json", tmp_path / "b.json"]
    by_name = ["--references", save("references.json", REFERENCES)]
    for output, references in zip(outputs, (by_name, ["--data", str(data_file)]), strict=True):
        assert main(["--predictions", predictions, *references, "--output", str(output)]) == 0
    assert scores_of(outputs[0])[0] == scores_of(outputs[1])[0]


def test_images_without_a_prediction_are_counted(save, tmp_path, capsys):
    output = tmp_path / "results.json"
    predictions = save("out.json", [{"image_id": 11, "caption": "two cats"}])
    references = save("captions.json", coco(REFERENCES))
    assert main(["--predictions", predictions, "--references", references, "--output", str(output)]) == 0
    assert "warning: 2 of 3 images have no prediction and are not scored" in capsys.readouterr().err
    assert json.loads(output.read_text())["provenance"]["images_without_prediction"] == 2


def test_cider_of_one_image_is_no_measure(save, capsys):
    """Its n-grams are in the references of every image, so that their idf is 0."""
    predictions = save("out.json", [{"image_id": 11, "caption": REFERENCES["photo 3.png"][0]}])
    references = save("captions.json", coco(REFERENCES))
    assert main(["--predictions", predictions, "--references", references]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines() if line.startswith("CIDEr")] == ["0.00"]
    assert any(line.startswith("warning: CIDEr") for line in err.splitlines())
    assert main(["--predictions", save("all.json", results_of(CAPTIONS)), "--references", references]) == 0
    assert "CIDEr" not in capsys.readouterr().err


def results_of(captions):
    return [{"file_name": name, "caption": text} for name, text in captions.items()]


def test_text_that_is_no_unicode_survives(save, tmp_path):
    broken, output = "a caf\u00e9 \ud83d dog", tmp_path / "results.json"
    predictions = save("out.json", [{"file_name": "x.jpg", "caption": broken}])
    references = save("references.json", {"x.jpg": [broken]})
    assert main(["--predictions", predictions, "--references", references, "--output", str(output)]) == 0
    found, images = scores_of(output)
    assert images["x.jpg"]["caption"] == broken
    assert found["BLEU-1"] == pytest.approx(100)


def test_markdown_is_a_table_with_the_scores(save, capsys):
    predictions = save("out.json", [{"file_name": name, "caption": text} for name, text in CAPTIONS.items()])
    references = save("references.json", REFERENCES)
    assert main(["--predictions", predictions, "--references", references, "--markdown"]) == 0
    header, line, row, _, reason = capsys.readouterr().out.splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert set(line) == set("| -")
    scores = metrics.evaluate(CAPTIONS, REFERENCES).metrics
    assert cells["BLEU-1"] == f"{scores['BLEU-1']:.1f}"
    assert cells["METEOR"] == "-"
    assert cells["images"] == f"{references}, 3"
    assert reason == "METEOR: no Java here"


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([{"image_id": 1, "caption": "a"}], "1 of 1 captions are of images without references, image_id 1;"),
        ([{"image_id": 10, "caption": "a"}] * 2, "several captions for image_id 10; keep one"),
        ([{"image_id": 10, "caption": None}], 'entry 1: found {"image_id": 10, "caption": null}'),
        ([{"image_id": 10, "caption": "a"}, {"caption": "a"}], 'entry 2: found {"caption": "a"}'),
        ([], "make it with python caption.py --output"),
        ({"annotations": []}, "is not a COCO results file"),
        ("not JSON", "is not JSON"),
        ("[" * 50_000, "is not JSON"),
        ('[{"image_id": 10, "capt', "is not JSON"),
    ],
)
def test_bad_predictions_are_one_line(predictions, message, save, capsys):
    given = save("out.json", predictions), save("captions.json", coco(REFERENCES))
    assert message in error_of(capsys, "--predictions", given[0], "--references", given[1])


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([1, 2], "found a list of 2"),
        ({"photo.png": []}, "found an object with photo.png"),
        ({"photo.png": [None]}, "found an object with photo.png"),
        ({"images": [], "annotations": [{"image_id": [1], "caption": "a"}]}, "is not a COCO captions file"),
        ({"images": [{"file_name": "x"}], "annotations": []}, "an entry lacks 'id'"),
        ({"a/photo.png": ["a"], "b/photo.png": ["b"]}, "several images of file_name photo.png"),
    ],
)
def test_bad_references_are_one_line(references, message, save, capsys):
    given = save("out.json", [{"file_name": "photo.png", "caption": "a"}]), save("captions.json", references)
    assert message in error_of(capsys, "--predictions", given[0], "--references", given[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to score; give --dataset NAME"),
        (["--references", "x.json"], "--references needs --predictions"),
        (["--predictions", "x.json"], "found neither, give one"),
        (["--predictions", "x.json", "--references", "y.json", "--dataset", "z"], "found both, give one"),
        (["--predictions", "x.json", "--dataset", "z", "--beam-size", "3"], "--beam-size has no effect"),
        (["--predictions", "x.json", "--references", "y.json"], "cannot read x.json: No such file"),
        (["--dataset", "nowhere"], "make it with: python preprocess.py --dataset nowhere"),
        (["--dataset", "x", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--dataset", "x", "--num-captions", "2"], "unrecognized arguments: --num-captions 2"),
        (["--dataset", "x", "--output", "no/such/folder.json"], "no folder no/such; create it"),
        (["--dataset", "x", "--output", "."], "it is a folder"),
    ],
)
def test_mistakes_in_the_command_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *arguments)


def test_an_empty_split_names_the_others(data_file, capsys):
    message = error_of(capsys, "--data", str(data_file), "--split", "val")
    assert "has no images in split val; choose --split from: train, test" in message


def test_without_pycocoevalcap_nothing_is_captioned(monkeypatch, capsys):
    monkeypatch.setattr(java_metrics.importlib.util, "find_spec", lambda name: None)
    assert "run: pip install -e '.[eval]'" in error_of(capsys, "--dataset", "x")


def test_features_of_another_trunk_are_refused(tmp_path, tiny_checkpoint, capsys):
    records = [record(i, split) for i, split in enumerate(("train", "test"))]
    path = tmp_path / "features.h5"
    write(
        Source("made", "made for a test", records), path, encoding="features",
        encode=lambda pixels: [pixels.reshape(len(pixels), -1)[:, :4]],
        features_of={"backbone": "vgg19", "layers": ["conv5_4"]},
    )  # fmt: skip
    message = error_of(capsys, "--data", str(path), "--checkpoint", str(tiny_checkpoint))
    assert "has features of vgg19 cut at conv5_4, the model has resnet18" in message


def test_a_full_disk_leaves_no_file(save, tmp_path, monkeypatch, capsys):
    predictions = save("out.json", [{"file_name": name, "caption": text} for name, text in CAPTIONS.items()])
    references = save("references.json", REFERENCES)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sca_caption.runtime.atomic_files.os.replace", full)
    output = tmp_path / "results.json"
    arguments = ("--predictions", predictions, "--references", references, "--output", str(output))
    assert "No space left on device" in error_of(capsys, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "references.json"]


def test_nltk_bleu_is_added(save, tmp_path, capsys):
    """Against nltk, and a count by hand: 6 of 7 words and 4 of 5 pairs match; lengths are those of references."""
    corpus_bleu = pytest.importorskip("nltk.translate.bleu_score").corpus_bleu
    captions = {"photo 2.png": "A dog runs fast .", "photo 3.png": "Two cats"}
    references = {"photo 2.png": ["a dog runs fast here", "one"], "photo 3.png": ["two Cats", "three"]}
    predictions = save("out.json", [{"file_name": name, "caption": text} for name, text in captions.items()])
    output = tmp_path / "scores.json"
    arguments = ["--predictions", predictions, "--references", save("references.json", references)]
    assert main([*arguments, "--nltk", "--output", str(output)]) == 0
    found = json.loads(output.read_text())["metrics"]
    words = [["a", "dog", "runs", "fast", "."], ["two", "cats"]]
    several = [[["a", "dog", "runs", "fast", "here"], ["one"]], [["two", "cats"], ["three"]]]
    for n in range(1, 5):
        expected = corpus_bleu(several, words, weights=[1 / n] * n)
        assert found[f"BLEU-{n} (nltk)"] == pytest.approx(100 * expected, abs=1e-4)
    assert found["BLEU-1 (nltk)"] == pytest.approx(100 * 6 / 7, abs=1e-4)
    assert found["BLEU-2 (nltk)"] == pytest.approx(100 * (6 / 7 * 4 / 5) ** 0.5, abs=1e-4)
    shown = capsys.readouterr().out
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("BLEU-1 (nltk)")] == ["85.71"]
    assert main([*arguments, "--markdown"]) == 0 and "(nltk)" not in capsys.readouterr().out


def test_nltk_that_is_not_installed_is_one_line(save, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nltk", None)
    message = error_of(capsys, "--dataset", "x", "--nltk")
    assert "nltk" in message and "pip install -e '.[eval]'" in message
