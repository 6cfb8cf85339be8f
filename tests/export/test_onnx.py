"""Exported captioners: graphs and captions equal to PyTorch's, and what an exported folder must hold."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.guidance.test_object_classifier import network, reading_both, speaking, tuned  # noqa: F401 (a fixture)
from tests.helpers.lite_weights import lite_weights
from tests.helpers.made_photos import message, photo
from tests.helpers.tiny_captioner import TINY, TINY_WORDS, tiny_captioner

pytest.importorskip("onnxscript", reason="writing ONNX needs onnx and onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="running a graph needs onnxruntime")

from dataclasses import replace

from sca_caption.checkpoint import Checkpoint
from sca_caption.config import SearchConfig
from sca_caption.export import onnx_folder as exports
from sca_caption.export import (
    onnx_graphs,
    onnx_int8,
)
from sca_caption.export.model_json import graph_path
from sca_caption.export.onnx_captioner import OnnxCaptioner, OnnxCaptionPipeline
from sca_caption.export.onnx_folder import export
from sca_caption.export.onnx_graphs import Nouns, graphs_of, layers_of, resizing
from sca_caption.guidance.confidence import Calibration
from sca_caption.guidance.consensus import fitted
from sca_caption.guidance.hallucination import Subjects
from sca_caption.guidance.novel_objects import Limits
from sca_caption.guidance.object_classifier import SIZE, original
from sca_caption.images import Transform, fit
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline, read_by
from sca_caption.models import quantization
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
    metrics, model = Calibration(2.0, 1.5, 4.0).metrics(), tiny_captioner()
    made = torch.Generator().manual_seed(0)
    captions = torch.randint(4, len(WORDS), (40, 2, 5), generator=made).tolist()
    channels = model.backbone.channels[0]
    consensus = fitted(torch.rand(40, channels, generator=made), captions, len(WORDS), rank=16, ridge=0.1)
    subjects = Subjects((channels,), ("people", "dogs"))
    torch.nn.init.normal_(subjects.classifier.weight, generator=made, std=4.0)
    return Checkpoint(model, WORDS, Transform(size=32), metrics, consensus=consensus, subjects=subjects)


@pytest.fixture(scope="module")
def exported(given, tmp_path_factory):
    """A folder with float32 and int8, where small weights count as large."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "LARGE", 64)
        export(folder, given)
    return folder


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", CASES)
def test_graphs_compute_what_the_captioner_does(mode):
    model = tiny_captioner(config=replace(TINY, attention=mode, layers=CASES[mode]))
    graphs = graphs_of(model, None, 32)
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
    theirs, ours = CaptionPipeline.load(given, search=search), OnnxCaptionPipeline(exported, search=search)
    x = pixels(6)
    wanted, found = theirs.caption_batch(x), ours.caption_batch(x)
    assert len({caption.text for captions in wanted for caption in captions}) > 1
    for row, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert [caption.text for caption in a] == [caption.text for caption in b]
        assert [caption.score for caption in a] == pytest.approx([caption.score for caption in b], abs=1e-4)
        assert a[0].confidence == pytest.approx(b[0].confidence, abs=1e-4)
        assert a[0].consensus == pytest.approx(b[0].consensus, abs=1e-4)
        (alone,) = ours.caption_batch(x[row : row + 1])
        assert [caption.text for caption in alone] == [caption.text for caption in a]


def test_words_that_must_come_come(given, exported):
    x = pixels(3)
    found = OnnxCaptionPipeline(exported, force_words=["dog", "ball/water"]).caption_batch(x)
    wanted = CaptionPipeline.load(given, force_words=["dog", "ball/water"]).caption_batch(x)
    assert [captions[0].text for captions in found] == [captions[0].text for captions in wanted]
    assert all("dog" in captions[0].text for captions in found)
    assert "'owl'" in message(lambda: OnnxCaptionPipeline(exported, force_words=["owl"]))


def test_files_are_captioned_in_order(given, exported, photos):
    paths = [*photos, photos[0].with_name("missing.jpg")]
    found, wanted = (
        list(each.stream(paths))
        for each in (OnnxCaptionPipeline(exported, batch_size=3), CaptionPipeline.load(given))
    )
    assert [result.item for result in found] == paths and "no such file" in str(found[-1].error)
    assert [r.captions[0].text for r in found[:-1]] == [r.captions[0].text for r in wanted[:-1]]


def test_attention_of_a_step_can_be_read(exported):
    captioner = OnnxCaptioner.load(exported)
    state = captioner.start(pixels(2)).select(torch.tensor([1, 0, 1]))
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
    logits = [each.step(tokens, each.start(pixels(6)))[0] for each in (whole, small)]
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
    monkeypatch.setattr(quantization, "LARGE", 64)
    for robust, kind in ((False, TensorProto.FLOAT16), (True, TensorProto.INT8)):
        onnx_int8.quantize(whole, small, robust)
        kept = [x.data_type for x in onnx.load(small).graph.initializer if np.prod(x.dims) >= 64]
        assert kept == [TensorProto.FLOAT16, TensorProto.FLOAT16, kind]
        given = {"images": made.normal(size=(2, 3, 6, 6)).astype(np.float32)}
        theirs, ours = (onnxruntime.InferenceSession(file).run(None, given)[0] for file in (whole, small))
        assert np.abs(ours - theirs).max() < 0.03 * theirs.std()


# ---- naming ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(network):  # noqa: F811
    words = Vocabulary(["a", "dog", "cat", "on", "is", "in"])
    model = speaking(network, words)
    return Checkpoint(model, words, Transform(64), objects=original(network.state_dict(), model.backbone))


def test_objects_are_named_alike(named, tmp_path):
    folder = tmp_path / "model"
    export(folder, named, dtypes=["float32"])
    about = json.loads((folder / "model.json").read_text())
    assert about["naming"].pop("most_groups") == 3 and about["known"] == len(named.vocabulary)
    assert {name: about["naming"][name] for name in vars(Limits())} == vars(Limits())
    about["naming"] |= {"room": 1e9, "most_groups": 3}  # any caption with the noun will do
    (folder / "model.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    x = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8)
    theirs, ours, without = (
        CaptionPipeline.load(named),
        OnnxCaptionPipeline(folder),
        OnnxCaptionPipeline(folder, objects=False),
    )
    theirs.namer.limits = Limits(room=1e9)
    assert about["words"] == list(theirs.namer.vocabulary)
    with torch.inference_mode():
        wanted = theirs.namer.probabilities(theirs.encode(x)[1])
        assert wanted.max() > Limits.threshold
        assert_close(ours.model.start(x).probabilities, wanted, rtol=1e-3, atol=1e-5)
        assert without.model.start(x, objects=False).probabilities is None
    texts = [[captions[0].text for captions in each.caption_batch(x)] for each in (theirs, ours, without)]
    assert texts[0] == texts[1] and texts[1] != texts[2]
    nouns = about["naming"]["nouns"]
    assert [noun["name"] for noun in nouns] == [noun.name for noun in theirs.namer.nouns]
    assert all(noun["name"] in about["words"] and noun["group"] for noun in nouns)
    for (after, wrong), (word, mask) in zip(
        about["naming"]["agreement"], theirs.namer.agreement.items(), strict=True
    ):
        groups = {index for noun in nouns for index in noun["group"]}
        assert after == word and set(wrong) == groups & set(mask.nonzero().flatten().tolist())


def test_ranking_reads_what_the_classifier_saw(network, tmp_path):  # noqa: F811
    words = Vocabulary(["a", "dog", "cat", "on", "is", "in"])
    model = speaking(network, words, 0)
    objects = original(lite_weights(), model.backbone, size=64)
    whole = Checkpoint(model, words, Transform(64), objects=objects, consensus=reading_both(words))
    export(tmp_path / "model", whole, dtypes=["float32"])
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["inputs"] == about["inputs"] | {"trunk": ["images", "seen"], "objects": ["images"]}
    x = pixels(6, 64)
    search = SearchConfig(num_captions=5, rerank_weight=50.0)
    theirs, ours, without = (
        CaptionPipeline.load(whole, search=search),
        OnnxCaptionPipeline(tmp_path / "model", search=search),
        OnnxCaptionPipeline(tmp_path / "model", search=search, objects=False),
    )
    with torch.inference_mode():
        encoded, seen = theirs.encode(x)
        state = without.model.start(x, objects=False)
    assert_close(state.expected, read_by(theirs.consensus, encoded[0], seen), rtol=1e-3, atol=1e-4)
    texts = [[[each.text for each in captions] for captions in y.caption_batch(x)] for y in (theirs, ours)]
    assert texts[0] == texts[1]
    assert [each[0].consensus for each in without.caption_batch(x)] == pytest.approx(
        [each[0].consensus for each in CaptionPipeline.load(whole, search=search, objects=False).caption_batch(x)],
        abs=1e-3,
    )


@torch.inference_mode()
def test_the_classifier_sees_images_at_its_own_size(network):  # noqa: F811
    model = tuned(network, 0)
    objects = original(network.state_dict(), model.backbone, size=288)
    pipeline = CaptionPipeline.load(
        Checkpoint(model, Vocabulary(["a", "dog", "cat"]), Transform(288), objects=objects)
    )
    x = pixels(2, 288)
    _, seen = pipeline.encode(x)
    found, from_what = Nouns(model, pipeline.namer, 288)(x)
    assert_close(from_what, seen, rtol=1e-3, atol=1e-5)
    assert_close(found, pipeline.namer.probabilities(seen), rtol=1e-3, atol=1e-5)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_what_a_folder_holds(given, exported):
    names = sorted(str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file())
    assert names == ["int8/step.onnx", "int8/trunk.onnx", "model.json", "step.onnx", "trunk.onnx"]
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    assert about.pop("words") == list(WORDS) and about.pop("known") == len(WORDS)
    assert about.pop("never_last") == sorted(WORDS.encode(["a", "the", "in"]))  # "on" may: "looks on"
    assert about.pop("joining") == []  # neither "and" nor "or" is among these words
    assert about.pop("search") == vars(SearchConfig())
    steps = ["tokens", "image", "hidden", "cell", "map_0"]
    attended = ["alpha_0", "beta_0", "alpha_1", "beta_1"]
    assert about.pop("inputs") == {"trunk": ["images"], "step": steps}
    assert about.pop("outputs") == {
        "trunk": ["map_0", "hidden", "cell", "expected", "shares"],
        "step": ["logits", "hidden_after", "cell_after", *attended],
    }
    layer = {"height": 8, "width": 8, "channels": 64, "spatial": True, "channel": True}
    assert about.pop("layers") == [{"name": "layer1.0"} | layer, {"name": "layer1.1"} | layer]
    assert about.pop("source")["checkpoint"] == "captioner.safetensors"
    assert about == {
        "format_version": 4,
        "bos": 1,
        "eos": 2,
        "pad": 0,
        "unk": 3,
        "transform": {"size": 32, "mode": "resize"},
        "dtypes": ["float32", "int8"],
        "calibration": {"slope": 2.0, "intercept": 1.5, "consensus": 4.0},
        "consensus": {"idf": given.consensus.idf.tolist()},
        "subjects": [
            {"words": WORDS.encode(["man", "woman"]), "least": 0.3, "main": True},
            {"words": WORDS.encode(["dog"]), "least": 0.1, "main": True},
        ],
        "naming": None,
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
    assert said in message(lambda: OnnxCaptionPipeline(folder))


def test_int8_that_was_not_written(given, exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    about = json.loads((folder / "model.json").read_text()) | {"dtypes": ["float32"]}
    (folder / "model.json").write_text(json.dumps(about))
    assert "has no int8 graphs; write them with" in message(lambda: OnnxCaptioner.load(folder, "int8"))


def test_the_program_writes_a_folder_and_replaces_it(tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "made" / "model"
    for _ in range(2):
        assert export.main(["--output", str(folder), "--checkpoint", str(tiny_checkpoint)]) == 0
        assert "step.onnx\t" in capsys.readouterr().err
        assert OnnxCaptionPipeline(folder).model.description["source"]["checkpoint"] == "best.pt"
        assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_other_folders_are_refused_before_any_work(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_graphs, "graphs_of", lambda *_: pytest.fail("too late"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    said = message(lambda: export(tmp_path / "photos", given))
    assert said.endswith("photos holds other files; name a new folder, or an empty one")
    assert "it is a file, name a folder" in message(lambda: export(tmp_path / "photos" / "a.jpg", given))
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "a.jpg"]
    assert export.main(["--output", str(tmp_path / "x"), "--checkpoint", "missing.pt"]) == 2
    assert "missing.pt" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(given, exported, error, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*_):
        raise error

    monkeypatch.setattr(onnx_graphs, "layers_of", fail)
    monkeypatch.setattr(onnx_graphs, "graphs_of", lambda *_: {"trunk": onnx_graphs.Graph(b"half", [], [])})
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
