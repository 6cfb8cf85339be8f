"""Exported captioners: graphs and captions equal to PyTorch's, and what an exported folder must hold."""

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.helpers.guided_captioners import (
    guided_checkpoint,
    imagenet_network,
    reading_both,
    speaking,
    tuned,
)
from tests.helpers.guided_captioners import (
    pixels as larger_pixels,
)
from tests.helpers.lite_weights import lite_weights
from tests.helpers.made_photos import message, photo
from tests.helpers.tiny_captioner import TINY, TINY_WORDS, tiny_captioner

pytest.importorskip("onnxscript", reason="writing ONNX needs onnx and onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="running a graph needs onnxruntime")

from dataclasses import replace

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.cli import export as program
from sca_caption.config import SearchConfig
from sca_caption.export import onnx_folder as exports
from sca_caption.export import (
    onnx_graphs,
    onnx_int8,
)
from sca_caption.export.model_json import graph_path, upgrade
from sca_caption.export.onnx_captioner import OnnxCaptioner, load_pipeline
from sca_caption.export.onnx_folder import export
from sca_caption.export.onnx_graphs import FeatureGraph, graphs_of, layers_of, resizing
from sca_caption.guidance.confidence import ConfidenceModel
from sca_caption.guidance.consensus import fit_consensus
from sca_caption.guidance.hallucination import PresenceClassifier
from sca_caption.guidance.novel_objects import Limits
from sca_caption.guidance.object_classifier import SIZE, pretrained_classifier
from sca_caption.guidance.words import PredictedWords
from sca_caption.images import Transform, fit
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.torch_captioner import TorchCaptioner
from sca_caption.models.sca_cnn import State
from sca_caption.vocab import Vocabulary

pytestmark = pytest.mark.slow

WORDS = Vocabulary(TINY_WORDS)
CASES = {  # with a shortcut that travels along as a second map; two whole layers are in `exported`
    "C-S": ("layer1.0.relu", "layer1.1"),
    "S-C": ("layer1.1",),
    "S": ("layer1.1",),
    "C": ("layer1.0", "layer1.1"),
}


def pixels(count: int, size: int = 32) -> torch.Tensor:
    return stack([fit(photo(number), Transform(size)) for number in range(count)])


@pytest.fixture(scope="module")
def given():
    model = tiny_captioner()
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(4, len(WORDS), (40, 2, 5), generator=generator).tolist()
    channels = model.backbone.channels[0]
    features = torch.rand(40, channels, generator=generator)
    presence = PresenceClassifier((channels,), ("people", "dogs"))
    torch.nn.init.normal_(presence.classifier.weight, generator=generator, std=4.0)
    guides = {
        "presence": presence,
        "consensus": fit_consensus(features, captions, len(WORDS), rank=16, ridge=0.1),
        "confidence": ConfidenceModel(2.0, 1.5, {"consensus": 4.0}),
    }
    return Checkpoint(model, WORDS, Transform(size=32), guides=guides)


@pytest.fixture(scope="module")
def exported(given, tmp_path_factory):
    """A folder with float32 and int8, where small weights count as large."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_int8, "MIN_INT8_SIZE", 64)
        export(folder, given)
    return folder


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", CASES)
def test_graphs_compute_what_the_captioner_does(mode):
    model = tiny_captioner(config=replace(TINY, attention=mode, layers=CASES[mode]))
    captioner = TorchCaptioner([model], {}, WORDS, len(WORDS), Transform(32), torch.device("cpu"))
    graphs = graphs_of(captioner)
    sessions = {name: onnxruntime.InferenceSession(graph.file) for name, graph in graphs.items()}
    inputs = ["map_0", "map_1"] if mode == "C-S" else ["map_0"]
    inputs += ["keys"] if mode.startswith("S") else []
    assert graphs["trunk"].outputs == [*inputs, "hidden", "cell"]
    assert graphs["step"].inputs == ["tokens", "image", "hidden", "cell", *inputs]
    letters = [{"S": "alpha", "C": "beta"}[letter] for letter in sorted(mode.replace("-", ""), reverse=True)]
    attended = [f"{letter}_{i}" for i in range(len(CASES[mode])) for letter in letters]
    assert graphs["step"].outputs == ["logits", "hidden_after", "cell_after", *attended]
    torch.manual_seed(1)
    for images, rows in [(1, 1), (1, 4), (3, 5), (4, 1)]:
        x = pixels(images)
        found = dict(
            zip(graphs["trunk"].outputs, sessions["trunk"].run(None, {"images": x.numpy()}), strict=True)
        )
        with torch.inference_mode():
            state = model.start(model.encode(x))
        for name, value in zip(inputs, (*state.maps, state.keys), strict=False):
            assert_close(torch.from_numpy(found[name]), value.contiguous(), rtol=1e-4, atol=1e-4)
        assert_close(torch.from_numpy(found["hidden"]), state.hidden, rtol=1e-4, atol=1e-5)
        image, hidden, cell = torch.randint(images, (rows,)), torch.randn(rows, 16), torch.randn(rows, 16)
        state = State(state.maps, state.keys, state.input_weights, image, hidden, cell)
        tokens = torch.randint(len(WORDS), (rows,))
        feed = {name: found[name] for name in inputs} | {"image": image.numpy()}
        for _ in range(2):  # the state after a step goes into the next
            feed |= {"tokens": tokens.numpy(), "hidden": hidden.numpy(), "cell": cell.numpy()}
            with torch.inference_mode():
                logits, state = model.step(tokens, state)
            wanted = [logits, state.hidden, state.cell]
            wanted += [x for beta, alpha in state.attention for x in (alpha, beta) if x is not None]
            ours = [torch.from_numpy(x) for x in sessions["step"].run(None, feed)]
            for value, theirs in zip(ours, wanted, strict=True):
                assert_close(value, theirs, rtol=1e-3, atol=1e-4)
            tokens, hidden, cell = ours[0].argmax(1), ours[1], ours[2]
    assert [layer["name"] for layer in layers_of(model, 32)] == list(CASES[mode])


@pytest.mark.parametrize("size", [288, 64])
def test_resizing_is_two_products(size):
    x = torch.rand(2, 3, size, size)
    matrix = resizing(size, SIZE)
    wanted = torch.nn.functional.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
    assert_close(matrix @ x @ matrix.T, wanted, rtol=1e-5, atol=1e-5)


def test_no_graph_says_where_it_was_made(exported):
    folder = Path(exports.__file__).parent.parent
    for path in exported.rglob("*.onnx"):
        assert str(folder).encode() not in path.read_bytes() and b"site-packages" not in path.read_bytes()


# ---- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "search",
    [
        SearchConfig(length_penalty=0.8, rerank_weight=4.5),
        SearchConfig(num_captions=3, block_ngrams=0),
        SearchConfig(beam_size=1),
        SearchConfig(num_captions=2, rerank_weight=0),
        SearchConfig(num_captions=4, rerank_weight=90),
    ],
)
def test_captions_are_pytorchs(given, exported, search):
    theirs, ours = CaptionPipeline.load(given, search=search), load_pipeline(exported, search=search)
    x = pixels(6)
    wanted, found = theirs.caption_batch(x), ours.caption_batch(x)
    assert len({caption.text for captions in wanted for caption in captions}) > 1
    for row, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert [caption.text for caption in a] == [caption.text for caption in b]
        assert [caption.score for caption in a] == pytest.approx([caption.score for caption in b], abs=1e-4)
        assert a[0].confidence == pytest.approx(b[0].confidence, abs=1e-4)
        assert a[0].ratings["consensus"] == pytest.approx(b[0].ratings["consensus"], abs=1e-4)
        (alone,) = ours.caption_batch(x[row : row + 1])
        assert [caption.text for caption in alone] == [caption.text for caption in a]


@pytest.mark.parametrize(("mode", "style"), [("C-S", "plain"), ("S-C", "loud"), ("S-C", "plain")])
def test_predicted_words_and_the_style_are_exported(mode, style, tmp_path):
    """As the context of each image, with and without keys of spatial attention; --style is the exported one."""
    config = replace(TINY, attention=mode, layers=CASES[mode], word_rank=6, styles=("plain", "loud"))
    model = tiny_captioner(config=config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.style.weight.normal_(0, 3, generator=generator)
        model.context.weight.normal_(0, 0.5, generator=generator)
        model.word_predictor.up.weight.normal_(0, 3, generator=generator)
        model.word_predictor.up.bias.normal_(0, 2, generator=generator)
        model.word_predictor.idf.uniform_(0.5, 3, generator=generator)
    given, x = Checkpoint(model, WORDS, Transform(32)), pixels(6)
    other = CaptionPipeline.load(given, style="loud" if style == "plain" else "plain").caption_batch(x)
    checkpoint.save(tmp_path / "best.pt", given)
    arguments = ["--output", tmp_path / "model", "--checkpoint", tmp_path / "best.pt", "--style", style]
    assert program.main([*map(str, arguments)]) == 0
    model.set_style(style)
    theirs, ours = CaptionPipeline.load(given), load_pipeline(tmp_path / "model")
    inputs = ours.model.description["inputs"]["step"]
    assert inputs[-1] == "context" and ("keys" in inputs) == (mode == "S-C")
    with torch.inference_mode():
        context = model.start(model.encode(x)).context
    assert context.std(0).max() > 0.05  # images differ
    state, _ = ours.model.start(x, [])
    assert_close(torch.from_numpy(state.maps["context"]), context, rtol=1e-3, atol=1e-3)
    wanted, found = theirs.caption_batch(x), ours.caption_batch(x)
    assert [[each.text for each in y] for y in found] == [[each.text for each in y] for y in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert [each.score for each in a] == pytest.approx([each.score for each in b], abs=1e-3)
    assert [y[0].text for y in wanted] != [y[0].text for y in other]
    (alone,) = ours.caption_batch(x[4:5])
    assert [each.text for each in alone] == [each.text for each in found[4]]


def test_the_guide_by_predicted_words_is_exported(tmp_path):
    """Its prediction is an output of the trunk; rules and neutral captions are PyTorch's."""
    model = tiny_captioner(config=replace(TINY, word_rank=6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.word_predictor.up.weight.normal_(0, 3, generator=generator)
        model.word_predictor.up.bias.normal_(0, 2, generator=generator)
        model.word_predictor.idf.uniform_(0.5, 3, generator=generator)
        model.word.bias[WORDS.encode(["man", "woman"])] += 4.0
    thresholds = {"dogs": 0.5, "cat": 0.5, "red": 0.5, "blue": 0.5}
    words = PredictedWords(thresholds)
    given, x = Checkpoint(model, WORDS, Transform(32), guides={"words": words}), pixels(6)
    export(tmp_path / "model", given, dtypes=["float32"])
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["outputs"]["trunk"][-1] == described(tmp_path / "model", "words")["prediction"]
    assert (
        sorted(about["gendered"]) == sorted(WORDS.encode(["man", "woman"])) and about["format_version"] == 5
    )
    search = SearchConfig(num_captions=3)
    for options in ({}, {"objects": False}, {"neutral": True}):
        theirs = CaptionPipeline.load(given, search=search, **options)
        ours = load_pipeline(tmp_path / "model", search=search, **options)
        _, found = ours.model.start(x, ours.guides)
        with torch.inference_mode():
            _, wanted = theirs.model.start(x, theirs.guides)
        assert set(found) == set(wanted) == ({"words"} if options.get("objects", True) else set())
        for name, predicted in found.items():
            assert_close(predicted, wanted[name], rtol=1e-3, atol=1e-4)
            assert predicted.std(0).max() > 0.03  # images differ
        for a, b in zip(ours.caption_batch(x), theirs.caption_batch(x), strict=True):
            assert [each.text for each in a] == [each.text for each in b]
            assert [each.score for each in a] == pytest.approx([each.score for each in b], abs=1e-2)


def test_words_that_must_come_come(given, exported):
    x = pixels(3)
    found = load_pipeline(exported, force_words=["dog", "ball/water"]).caption_batch(x)
    wanted = CaptionPipeline.load(given, force_words=["dog", "ball/water"]).caption_batch(x)
    assert [captions[0].text for captions in found] == [captions[0].text for captions in wanted]
    assert all("dog" in captions[0].text for captions in found)
    assert "'owl'" in message(lambda: load_pipeline(exported, force_words=["owl"]))


def test_files_are_captioned_in_order(given, exported, photos):
    paths = [*photos, photos[0].with_name("missing.jpg")]
    found, wanted = (
        list(each.stream(paths))
        for each in (load_pipeline(exported, batch_size=3), CaptionPipeline.load(given))
    )
    assert [result.item for result in found] == paths and "no such file" in str(found[-1].error)
    assert [r.captions[0].text for r in found[:-1]] == [r.captions[0].text for r in wanted[:-1]]


def test_attention_of_a_step_can_be_read(exported):
    captioner = OnnxCaptioner.load(exported)
    state = captioner.start(pixels(2), [])[0].select(torch.tensor([1, 0, 1]))
    assert len(state) == 3 and state.image.tolist() == [1, 0, 1]
    _, state = captioner.step(torch.tensor([1, 1, 1]), state)
    assert len(state.attention) == 2
    for (beta, alpha), layer in zip(state.attention, captioner.description["layers"], strict=True):
        assert alpha.shape == (3, layer["height"] * layer["width"]) and beta.shape == (3, layer["channels"])
        for weights in (alpha, beta):
            assert_close(weights.sum(1), torch.ones(3), rtol=1e-4, atol=1e-4)
            assert_close(weights[0], weights[2])


def test_int8_is_close_and_small(exported):
    import onnx

    whole, small = (OnnxCaptioner.load(exported, dtype) for dtype in ("float32", "int8"))
    tokens = torch.arange(4, 10)
    logits = [each.step(tokens, each.start(pixels(6), [])[0])[0] for each in (whole, small)]
    assert (logits[0] - logits[1]).abs().max() < 0.1 * logits[0].std()
    assert not torch.equal(*logits)
    int8, float16 = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16
    for name in ("trunk", "step"):
        kept = onnx.load(graph_path(exported, name, "int8")).graph.initializer
        kept = [x for x in kept if len(x.dims) > 1 and np.prod(x.dims) >= 64]
        assert {(len(x.dims), x.data_type) for x in kept} == {(2, int8), (4, float16)}
        files = [graph_path(exported, name, dtype).stat().st_size for dtype in ("float32", "int8")]
        assert files[1] < 0.6 * files[0]


def test_1x1_convolutions_of_robust_graphs_are_int8(tmp_path, monkeypatch):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = np.random.default_rng(0)
    shapes = {"narrow": (8, 3, 3, 3), "deep": (8, 1, 3, 3), "wide": (8, 8, 1, 1)}  # the second is depthwise
    weights = {name: made.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes, before = [], "images"
    for name in shapes:
        pads, group = [0] * 4 if name == "wide" else [1] * 4, 8 if name == "deep" else 1
        nodes.append(
            helper.make_node("Conv", [before, name], [f"after_{name}"], name=name, pads=pads, group=group)
        )
        before = f"after_{name}"
    images, maps = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, channels, 6, 6))
        for name, channels in (("images", 3), (before, 8))
    )
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "made", [images], [maps], initial),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    onnx.save(model, whole)
    monkeypatch.setattr(onnx_int8, "MIN_INT8_SIZE", 64)
    for robust, kind in ((False, TensorProto.FLOAT16), (True, TensorProto.INT8)):
        onnx_int8.quantize(whole, small, robust)
        kept = [x.data_type for x in onnx.load(small).graph.initializer if np.prod(x.dims) >= 64]
        assert kept == [TensorProto.FLOAT16, TensorProto.FLOAT16, kind]
        given = {"images": made.normal(size=(2, 3, 6, 6)).astype(np.float32)}
        theirs, ours = (onnxruntime.InferenceSession(file).run(None, given)[0] for file in (whole, small))
        assert np.abs(ours - theirs).max() < 0.03 * theirs.std()


# ---- guides ----------------------------------------------------------------------------------------------------------


def described(folder: Path, name: str) -> dict:
    about = json.loads((folder / "model.json").read_text())
    return next(each for each in about["guides"] if each["name"] == name)


@pytest.fixture(scope="module")
def guided():
    return guided_checkpoint()


@pytest.fixture(scope="module")
def guided_folder(guided, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guided") / "model"
    export(folder, guided, dtypes=["float32"])
    return folder


def test_guides_are_described(guided, guided_folder):
    about = json.loads((guided_folder / "model.json").read_text())
    pipeline = CaptionPipeline.load(guided)
    assert [each["name"] for each in about["guides"]] == [guide.name for guide in pipeline.guides]
    assert about["words"] == list(pipeline.vocabulary) and about["vocabulary_size"] == len(guided.vocabulary)
    assert about["inputs"] == about["inputs"] | {"trunk": ["images", "features"], "objects": ["images"]}
    lexicon, objects = pipeline.guides[0], described(guided_folder, "objects")
    assert {name: objects[name] for name in vars(Limits())} == vars(Limits()) and objects["max_groups"] == 3
    assert [noun["name"] for noun in objects["nouns"]] == [noun.name for noun in lexicon.nouns]
    again = load_pipeline(guided_folder).guides[0]
    assert again.groups == lexicon.groups and list(again.new_words) == list(lexicon.new_words)
    forms = torch.zeros(len(about["words"]), dtype=torch.bool)
    forms[[word for group in lexicon.groups for word in group]] = True
    for (after, wrong), (word, mask) in zip(
        again.disagreeing.items(), lexicon.disagreeing.items(), strict=True
    ):
        assert after == word and torch.equal(wrong, mask & forms)


def test_predictions_are_pytorchs(guided, guided_folder):
    ours, theirs, x = load_pipeline(guided_folder), CaptionPipeline.load(guided), larger_pixels(6)
    with torch.inference_mode():
        _, found = ours.model.start(x, ours.guides)
        _, wanted = theirs.model.start(x, theirs.guides)
    assert set(found) == set(wanted) == {"objects", "presence", "consensus"}
    assert wanted["objects"].max() > Limits.threshold
    for name, values in wanted.items():
        assert values.std(0).max() > 0.01, f"{name}: images differ"
        assert_close(found[name], values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objects", [True, False])
def test_guided_captions_are_pytorchs(objects, guided, guided_folder):
    """With and without object guidance, which can be turned off at loading or later."""
    x, search = larger_pixels(8), SearchConfig(num_captions=3)
    theirs = CaptionPipeline.load(guided, search=search, objects=objects)
    at_loading = load_pipeline(guided_folder, search=search, objects=objects)
    later = load_pipeline(guided_folder).with_search(search, objects=objects)
    expected = theirs.caption_batch(x)
    for pipeline in (at_loading, later):
        for captions, wanted in zip(pipeline.caption_batch(x), expected, strict=True):
            assert [each.tokens for each in captions] == [each.tokens for each in wanted]
            for name in ("log_prob", "score", "confidence"):
                values = [getattr(each, name) for each in wanted]
                assert [getattr(each, name) for each in captions] == pytest.approx(values, abs=0.02), name
    words = {token for captions in expected for token in captions[0].tokens}
    assert any(word >= len(guided.vocabulary) for word in words) == objects


def test_nouns_are_inserted_as_in_pytorch(tmp_path):
    words = Vocabulary(["a", "dog", "cat", "on", "is", "in"])
    network = imagenet_network()
    model = speaking(network, words)
    objects = pretrained_classifier(network.state_dict(), model.backbone)
    given = Checkpoint(model, words, Transform(64), guides={"objects": objects})
    folder = tmp_path / "model"
    export(folder, given, dtypes=["float32"])
    about = json.loads((folder / "model.json").read_text())
    about["guides"][0]["margin"] = 1e9  # any caption with the noun will do
    (folder / "model.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    x = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8)
    theirs, ours = CaptionPipeline.load(given), load_pipeline(folder)
    theirs.guides[0].limits = Limits(margin=1e9)
    texts = [[captions[0].text for captions in each.caption_batch(x)] for each in (theirs, ours)]
    assert texts[0] == texts[1]
    plain = [captions[0].text for captions in CaptionPipeline.load(given, objects=False).caption_batch(x)]
    assert texts[1] != plain
    off = (load_pipeline(folder, objects=False), ours.with_search(ours.search, objects=False))
    for without in off:  # also of a pipeline that was loaded with them
        assert [captions[0].text for captions in without.caption_batch(x)] == plain


def test_reranking_reads_the_features(tmp_path):
    words = Vocabulary(["a", "dog", "cat", "on", "is", "in"])
    model = speaking(imagenet_network(), words, 0)
    objects = pretrained_classifier(lite_weights(), model.backbone, size=64)
    whole = Checkpoint(
        model, words, Transform(64), guides={"objects": objects, "consensus": reading_both(words)}
    )
    export(tmp_path / "model", whole, dtypes=["float32"])
    x, search = larger_pixels(6), SearchConfig(num_captions=5, rerank_weight=50.0)
    for objects_on in (True, False):
        theirs = CaptionPipeline.load(whole, search=search, objects=objects_on).caption_batch(x)
        ours = load_pipeline(tmp_path / "model", search=search, objects=objects_on).caption_batch(x)
        assert [[each.text for each in y] for y in ours] == [[each.text for each in y] for y in theirs]
        ratings = [each[0].ratings["consensus"] for each in theirs]
        assert [each[0].ratings["consensus"] for each in ours] == pytest.approx(ratings, abs=1e-3)


@torch.inference_mode()
def test_the_classifier_sees_images_at_its_own_size():
    network = imagenet_network()
    model = tuned(network, 0)
    objects = pretrained_classifier(network.state_dict(), model.backbone, size=288)
    given = Checkpoint(model, Vocabulary(["a", "dog", "cat"]), Transform(288), guides={"objects": objects})
    pipeline, x = CaptionPipeline.load(given), pixels(2, 288)
    _, features = pipeline.model.encode(x, pipeline.guides)
    found, from_graph = FeatureGraph(model, objects, 288)(x)
    assert_close(from_graph, features, rtol=1e-3, atol=1e-5)
    assert_close(found, objects(x, features), rtol=1e-3, atol=1e-5)


def earlier_format(about: dict) -> dict:
    """A description as format 4 had it."""
    old = copy.deepcopy(about)
    guides = {each.pop("name"): each for each in old.pop("guides")}
    for new, name in (
        ("vocabulary_size", "known"),
        ("bad_endings", "never_last"),
        ("conjunctions", "joining"),
    ):
        old[name] = old.pop(new)
    old["search"]["sound_endings"] = old["search"].pop("remove_bad_endings")
    old["search"]["consensus"] = old["search"].pop("rerank_weight")
    objects = guides["objects"]
    renamed = {"margin": "room", "margin_per_probability": "room_if_sure", "specific_share": "share"}
    renamed |= {"max_groups": "most_groups", "disagreeing": "agreement"}
    old["naming"] = {
        renamed.get(name, name): value
        for name, value in objects.items()
        if name not in ("prediction", "new_words")
    }
    rules = guides["presence"]["rules"]
    old["subjects"] = [{"words": r["words"], "least": r["threshold"], "main": r["primary"]} for r in rules]
    old["consensus"] = {"idf": guides["consensus"]["idf"]}
    curve = guides["confidence"]
    old["calibration"] = {
        "slope": curve["slope"], "intercept": curve["intercept"], "consensus": curve["ratings"]["consensus"]
    }  # fmt: skip
    return old | {"format_version": 4}


def test_exports_of_the_earlier_format_are_read(guided_folder, tmp_path):
    """Their graphs call predictions and features by other names."""
    about = json.loads((guided_folder / "model.json").read_text())
    names = {"noun_probabilities": "probabilities", "mention_rates": "shares", "features": "seen"}
    upgraded = upgrade(earlier_format(about))
    for new, old in zip(about["guides"], upgraded["guides"], strict=True):
        assert old == new | {"prediction": names.get(new["prediction"], new["prediction"])}
    import onnx

    folder = tmp_path / "old"
    shutil.copytree(guided_folder, folder)
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        for node in model.graph.node:
            for values in (node.input, node.output):
                for index, value in enumerate(values):
                    values[index] = names.get(value, value)
        for value in (*model.graph.input, *model.graph.output):
            value.name = names.get(value.name, value.name)
        onnx.save(model, path)
    text = json.dumps(earlier_format(about))
    for new, old in names.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    (folder / "model.json").write_text(text)
    x = larger_pixels(4)
    wanted = load_pipeline(guided_folder).caption_batch(x)
    found = load_pipeline(folder).caption_batch(x)
    assert [[each.text for each in y] for y in found] == [[each.text for each in y] for y in wanted]
    assert found[0][0].confidence == pytest.approx(wanted[0][0].confidence, abs=1e-6)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_what_a_folder_holds(given, exported):
    names = sorted(str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file())
    assert names == ["int8/step.onnx", "int8/trunk.onnx", "model.json", "step.onnx", "trunk.onnx"]
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    assert about.pop("words") == list(WORDS) and about.pop("vocabulary_size") == len(WORDS)
    assert about.pop("bad_endings") == sorted(WORDS.encode(["a", "the", "in"]))  # "on" may: "looks on"
    assert about.pop("gendered") == sorted(WORDS.encode(["man", "woman"]))
    assert about.pop("conjunctions") == []  # neither "and" nor "or" is among these words
    assert about.pop("search") == vars(SearchConfig())
    steps = ["tokens", "image", "hidden", "cell", "map_0"]
    attended = ["alpha_0", "beta_0", "alpha_1", "beta_1"]
    assert about.pop("inputs") == {"trunk": ["images"], "step": steps}
    assert about.pop("outputs") == {
        "trunk": ["map_0", "hidden", "cell", "mention_rates", "expected"],
        "step": ["logits", "hidden_after", "cell_after", *attended],
    }
    layer = {"height": 8, "width": 8, "channels": 64, "spatial": True, "channel": True}
    assert about.pop("layers") == [{"name": "layer1.0"} | layer, {"name": "layer1.1"} | layer]
    assert about.pop("source")["checkpoint"] == "captioner.safetensors"
    assert about == {
        "format_version": 5,
        "bos": 1,
        "eos": 2,
        "pad": 0,
        "unk": 3,
        "transform": {"size": 32, "mode": "resize"},
        "dtypes": ["float32", "int8"],
        "guides": [
            {
                "name": "presence",
                "prediction": "mention_rates",
                "rules": [
                    {"words": WORDS.encode(["man", "woman"]), "threshold": 0.3, "primary": True},
                    {"words": WORDS.encode(["dog"]), "threshold": 0.1, "primary": True},
                ],
            },
            {"name": "consensus", "prediction": "expected", "idf": given.guides["consensus"].idf.tolist()},
            {
                "name": "confidence",
                "prediction": None,
                "slope": 2.0,
                "intercept": 1.5,
                "ratings": {"consensus": 4.0},
            },
        ],
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "no folder"),
        (lambda folder: (folder / "model.json").unlink(), "lacks model.json"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged"),
        (lambda folder: (folder / "model.json").write_text('{"format_version": 9}'), "has format 9"),
        (lambda folder: (folder / "step.onnx").unlink(), "lacks step.onnx; copy it whole"),
        (lambda folder: (folder / "trunk.onnx").write_bytes(b"no"), "trunk.onnx cannot be read"),
    ],
)
def test_a_part_that_is_missing_is_named(exported, change, said, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    change(folder)
    assert said in message(lambda: load_pipeline(folder))


def test_guides_of_a_newer_version_are_refused(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    about = json.loads((folder / "model.json").read_text())
    about["guides"].append({"name": "humour", "prediction": None})
    (folder / "model.json").write_text(json.dumps(about))
    message(lambda: load_pipeline(folder), "model.json", "unknown guides humour", "upgrade sca_caption")


def test_int8_that_was_not_written(given, exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    about = json.loads((folder / "model.json").read_text()) | {"dtypes": ["float32"]}
    (folder / "model.json").write_text(json.dumps(about))
    assert "has no int8 graphs; write them with" in message(lambda: OnnxCaptioner.load(folder, "int8"))


def test_the_program_writes_a_folder_and_replaces_it(tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "made" / "model"
    for _ in range(2):
        assert program.main(["--output", str(folder), "--checkpoint", str(tiny_checkpoint)]) == 0
        assert "step.onnx\t" in capsys.readouterr().err
        assert load_pipeline(folder).model.description["source"]["checkpoint"] == "best.pt"
        assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_other_folders_are_refused_before_any_work(given, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exports, "graphs_of", lambda *_: pytest.fail("too late"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    said = message(lambda: export(tmp_path / "photos", given))
    assert said.endswith("photos has other files; give a new or an empty folder")
    assert "it is a file; give a folder" in message(lambda: export(tmp_path / "photos" / "a.jpg", given))
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "a.jpg"]
    assert program.main(["--output", str(tmp_path / "x"), "--checkpoint", "missing.pt"]) == 2
    assert "missing.pt" in capsys.readouterr().err and not (tmp_path / "x").exists()
    other = ["--output", str(tmp_path / "x"), "--checkpoint", str(tiny_checkpoint), "--style", "loud"]
    assert program.main(other) == 2 and not (tmp_path / "x").exists()
    assert "--style loud" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(given, exported, error, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*_):
        raise error

    monkeypatch.setattr(exports, "layers_of", fail)
    monkeypatch.setattr(exports, "graphs_of", lambda *_: {"trunk": onnx_graphs.Graph(b"half", [], [])})
    if isinstance(error, OSError):
        assert "No space left on device" in message(lambda: export(folder, given, dtypes=["float32"]))
    else:
        with pytest.raises(KeyboardInterrupt):
            export(folder, given, dtypes=["float32"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("package", "said"),
    [
        (
            "onnxscript",
            "writing ONNX needs onnxscript, which is not installed; pip install 'sca-caption[export]'",
        ),
        ("onnxruntime", "running ONNX graphs needs onnxruntime, which is not installed; pip install"),
        (
            "onnxruntime.quantization",
            "int8 needs onnxruntime.quantization, which is not installed; pip install",
        ),
    ],
)
def test_a_package_that_is_missing_is_named(given, exported, package, said, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    calls = {
        "onnxscript": lambda: export(tmp_path / "model", given, dtypes=["float32"]),
        "onnxruntime": lambda: OnnxCaptioner.load(exported),
        "onnxruntime.quantization": lambda: onnx_int8.quantize(
            exported / "step.onnx", tmp_path / "step.onnx"
        ),
    }
    assert said in message(calls[package])
    assert not list(tmp_path.iterdir())
