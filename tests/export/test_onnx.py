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

from tests.helpers.guided_captioners import THRESHOLDS, WORDS, guided_checkpoint, pixels, predicting_words
from tests.helpers.made_photos import message
from tests.helpers.tiny_captioner import TINY, tiny_captioner

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
from sca_caption.export.onnx_graphs import graphs_of, layers_of
from sca_caption.guidance.distinct import content_ids
from sca_caption.guidance.groups import mention_groups
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.inference.torch_captioner import TorchCaptioner
from sca_caption.models.sca_cnn import State

SLOW = pytest.mark.slow
CASES = {  # with a shortcut that travels along as a second map; two whole layers are in `exported`
    "C-S": ("layer1.0.relu", "layer1.1"),
    "S-C": ("layer1.1",),
    "S": ("layer1.1",),
    "C": ("layer1.0", "layer1.1"),
}


@pytest.fixture(scope="module")
def given():
    return guided_checkpoint()


@pytest.fixture(scope="module")
def exported(given, tmp_path_factory):
    """A folder with float32 and int8, where small weights count as large."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_int8, "MIN_INT8_SIZE", 64)
        export(folder, given)
    return folder


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=() if mode == "C-S" else SLOW) for mode in CASES])
def test_graphs_compute_what_the_captioner_does(mode):
    model = tiny_captioner(config=replace(TINY, attention=mode, layers=CASES[mode]))
    captioner = TorchCaptioner([model], {}, WORDS, Transform(32), torch.device("cpu"))
    graphs = graphs_of(captioner)
    sessions = {name: onnxruntime.InferenceSession(graph.file) for name, graph in graphs.items()}
    inputs = ["map_0", "map_1"] if mode == "C-S" else ["map_0"]
    inputs += ["keys"] if mode.startswith("S") else []
    assert graphs["trunk"].outputs == [*inputs, "hidden", "cell"]
    assert graphs["step"].inputs == ["tokens", "parent", "image", "hidden", "cell", *inputs]
    letters = [{"S": "alpha", "C": "beta"}[letter] for letter in sorted(mode.replace("-", ""), reverse=True)]
    attended = [f"{letter}_{i}" for i in range(len(CASES[mode])) for letter in letters]
    assert graphs["step"].outputs == ["logits", "hidden_after", "cell_after", *attended]
    torch.manual_seed(1)
    for images, parents, rows in [(1, 1, 1), (1, 2, 4), (3, 4, 5), (4, 3, 1)]:
        x = pixels(images)
        found = dict(
            zip(graphs["trunk"].outputs, sessions["trunk"].run(None, {"images": x.numpy()}), strict=True)
        )
        with torch.inference_mode():
            state = model.start(model.encode(x))
        for name, value in zip(inputs, (*state.maps, state.keys), strict=False):
            assert_close(torch.from_numpy(found[name]), value.contiguous(), rtol=1e-4, atol=1e-4)
        assert_close(torch.from_numpy(found["hidden"]), state.hidden, rtol=1e-4, atol=1e-5)
        image, hidden, cell = (
            torch.randint(images, (parents,)),
            torch.randn(parents, 16),
            torch.randn(parents, 16),
        )
        parent = torch.randint(parents, (rows,))
        state = State(state.maps, state.keys, state.input_weights, image, hidden, cell, parent)
        tokens = torch.randint(len(WORDS), (rows,))
        feed = {name: found[name] for name in inputs}
        for _ in range(2):  # the state after a step goes into the next
            given = {"tokens": tokens, "parent": parent, "image": image, "hidden": hidden, "cell": cell}
            feed |= {name: value.numpy() for name, value in given.items()}
            with torch.inference_mode():
                logits, state = model.step(tokens, state)
            wanted = [logits, state.hidden, state.cell]
            wanted += [x for beta, alpha in state.attention for x in (alpha, beta) if x is not None]
            ours = [torch.from_numpy(x) for x in sessions["step"].run(None, feed)]
            for value, theirs in zip(ours, wanted, strict=True):
                assert_close(value, theirs, rtol=1e-3, atol=1e-4)
            tokens, hidden, cell = ours[0].argmax(1), ours[1], ours[2]
            image, parent = image[parent], torch.arange(rows)
    assert [layer["name"] for layer in layers_of(model, 32)] == list(CASES[mode])


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


@pytest.mark.parametrize(
    ("mode", "style"),
    [("C-S", "plain"), pytest.param("S-C", "loud", marks=SLOW), pytest.param("S-C", "plain", marks=SLOW)],
)
def test_predicted_words_and_the_style_are_exported(mode, style, tmp_path):
    """As the context of each image, with and without keys of spatial attention; --style is the exported one."""
    model = predicting_words(attention=mode, layers=CASES[mode], styles=("plain", "loud"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.style.weight.normal_(0, 3, generator=generator)
        model.context.weight.normal_(0, 0.5, generator=generator)
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
    assert_close(state.maps["context"], context, rtol=1e-3, atol=1e-3)
    wanted, found = theirs.caption_batch(x), ours.caption_batch(x)
    assert [[each.text for each in y] for y in found] == [[each.text for each in y] for y in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert [each.score for each in a] == pytest.approx([each.score for each in b], abs=1e-3)
    assert [y[0].text for y in wanted] != [y[0].text for y in other]
    (alone,) = ours.caption_batch(x[4:5])
    assert [each.text for each in alone] == [each.text for each in found[4]]


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
    assert len(state) == 3 and len(state.hidden) == 2  # two captions share their words so far
    _, state = captioner.step(torch.tensor([1, 1, 1]), state)
    assert state.image.tolist() == [1, 0, 1]
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
    for name, products in (("trunk", 0), ("step", 3)):  # the three matrices of the LSTM
        nodes = onnx.load(graph_path(exported, name, "int8")).graph.node
        assert sum(node.op_type == "MatMulInteger" for node in nodes) == products
    for name in ("trunk", "step"):
        kept = onnx.load(graph_path(exported, name, "int8")).graph.initializer
        kept = [x for x in kept if len(x.dims) > 1 and np.prod(x.dims) >= 64]
        kept = [x for x in kept if list(x.dims) != [8, 8]]  # from values at the 64 / 8 nodes to coefficients
        assert {(len(x.dims), x.data_type) for x in kept} == {(2, int8), (4, float16)}
        files = [graph_path(exported, name, dtype).stat().st_size for dtype in ("float32", "int8")]
        assert files[1] < 0.6 * files[0]


# ---- guides ----------------------------------------------------------------------------------------------------------


def described(folder: Path, name: str) -> dict:
    about = json.loads((folder / "model.json").read_text())
    return next(each for each in about["guides"] if each["name"] == name)


def test_predictions_are_pytorchs(given, exported):
    ours, theirs, x = load_pipeline(exported), CaptionPipeline.load(given), pixels(6)
    with torch.inference_mode():
        _, found = ours.model.start(x, ours.guides)
        _, wanted = theirs.model.start(x, theirs.guides)
    assert set(found) == set(wanted) == {"consensus", "words"}
    for name, values in wanted.items():
        assert values.std(0).max() > 0.01, f"{name}: images differ"
        assert_close(found[name], values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"guidance": False}, {"neutral": True}])
def test_guided_captions_are_pytorchs(options, given, exported):
    """With and without excluded words, which can be chosen at loading or later."""
    x, search = pixels(8), SearchConfig(num_captions=3)
    theirs = CaptionPipeline.load(given, search=search, **options)
    at_loading = load_pipeline(exported, search=search, **options)
    later = load_pipeline(exported).with_search(search, **options)
    expected = theirs.caption_batch(x)
    for pipeline in (at_loading, later):
        for captions, wanted in zip(pipeline.caption_batch(x), expected, strict=True):
            assert [each.tokens for each in captions] == [each.tokens for each in wanted]
            for name in ("log_prob", "score", "confidence"):
                values = [getattr(each, name) for each in wanted]
                assert [getattr(each, name) for each in captions] == pytest.approx(values, abs=0.02), name
    if options:
        plain = CaptionPipeline.load(given, search=search).caption_batch(x)
        assert [y[0].text for y in plain] != [y[0].text for y in expected]


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
    curve = guides["confidence"]
    return old | {
        "format_version": 4,
        "naming": {"threshold": 0.2},
        "subjects": [{"words": [4], "least": 0.3, "main": True}],
        "consensus": {"idf": guides["consensus"]["idf"]},
        "calibration": {
            "slope": curve["slope"], "intercept": curve["intercept"], "consensus": curve["ratings"]["consensus"]
        },
    }  # fmt: skip


def test_exports_of_the_earlier_format_are_read(exported, tmp_path):
    about = json.loads((exported / "model.json").read_text())
    about["guides"] = [each for each in about["guides"] if each["name"] != "words"]  # a later guide
    old = earlier_format(about)
    upgraded = upgrade(copy.deepcopy(old))
    assert upgrade(about | {"format_version": 5}) == about
    removed = [{"name": "objects"}, {"name": "presence"}]
    assert upgraded | {"search": about["search"]} == about | {"guides": [*removed, *about["guides"]]}
    folder = copied(exported, tmp_path / "old", old)
    x = pixels(4)
    wanted = load_pipeline(copied(exported, tmp_path / "new", about)).caption_batch(x)
    found = load_pipeline(folder).caption_batch(x)
    assert [[each.text for each in y] for y in found] == [[each.text for each in y] for y in wanted]
    assert found[0][0].confidence == pytest.approx(wanted[0][0].confidence, abs=1e-6)


def without_parents(about: dict, folder: Path) -> dict:
    """Let each caption be its own parent in the graph of steps, as in format 5."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(folder / "step.onnx")
    graph = model.graph
    graph.input.remove(next(each for each in graph.input if each.name == "parent"))
    for name, value in (("first", 0), ("stride", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    made = [
        helper.make_node("Size", ["tokens"], ["rows"]),
        helper.make_node("Range", ["first", "rows", "stride"], ["parent"]),
    ]
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, folder / "step.onnx")
    step = [name for name in about["inputs"]["step"] if name != "parent"]
    return about | {"format_version": 5, "inputs": about["inputs"] | {"step": step}}


def test_exports_without_parents_are_read(exported, tmp_path):
    about = json.loads((exported / "model.json").read_text())
    folder = copied(exported, tmp_path / "old", about)
    (folder / "model.json").write_text(json.dumps(without_parents(about, folder)))
    x, search = pixels(5), SearchConfig(num_captions=3)
    wanted = load_pipeline(exported, search=search).caption_batch(x)
    found = load_pipeline(folder, search=search).caption_batch(x)
    for captions, theirs in zip(found, wanted, strict=True):
        assert [each.tokens for each in captions] == [each.tokens for each in theirs]
        assert [each.score for each in captions] == pytest.approx([each.score for each in theirs], abs=1e-5)


# ---- guides of earlier versions --------------------------------------------------------------------------------------


def copied(folder: Path, to: Path, about: dict) -> Path:
    """Copy an exported folder with another description."""
    shutil.copytree(folder, to)
    (to / "model.json").write_text(json.dumps(about))
    return to


def with_added_words(about: dict, folder: Path) -> dict:
    """Let the graph of steps compute logits of two more words, which are always the most probable."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(folder / "step.onnx")
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["own" if name == "logits" else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.full((1, 2), 9, np.float32), "bonus"))
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "last_axis"))
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["own", "last_axis"], ["highest"], keepdims=1),
            helper.make_node("Add", ["highest", "bonus"], ["added"]),
            helper.make_node("Concat", ["own", "added"], ["logits"], axis=1),
        ]
    )
    index = [each.name for each in graph.output].index("logits")
    wider = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(about["words"]) + 2])
    graph.output[index].CopyFrom(wider)
    onnx.save(model, folder / "step.onnx")
    return about | {"words": [*about["words"], "owl", "rooster"]}


def with_features(about: dict, folder: Path) -> dict:
    """Let the trunk read features for the prediction of a guide."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(folder / "trunk.onnx")
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", 3]))
    graph.output.append(helper.make_tensor_value_info("mention_rates", TensorProto.FLOAT, ["B", 3]))
    graph.node.append(helper.make_node("Sigmoid", ["features"], ["mention_rates"]))
    onnx.save(model, folder / "trunk.onnx")
    inputs = about["inputs"] | {"trunk": ["images", "features"], "objects": ["images"]}
    trunk = [*about["outputs"]["trunk"], "mention_rates"]
    outputs = about["outputs"] | {"trunk": trunk, "objects": ["noun_probabilities", "features"]}
    return about | {"inputs": inputs, "outputs": outputs}


OBJECTS = {
    "name": "objects",
    "prediction": "noun_probabilities",
    "nouns": [],
    "new_words": ["owl", "rooster"],
}
PRESENCE = {"name": "presence", "prediction": "mention_rates", "rules": []}


@pytest.mark.parametrize("removed", ["objects", "presence", "features"])
def test_guides_of_earlier_versions_are_left_out(removed, given, exported, tmp_path, capsys):
    """With the words that they added and the graph that they had. Captions are those of the other guides."""
    about = json.loads((exported / "model.json").read_text())
    folder = copied(exported, tmp_path / "old", about)
    left_out = {"objects": ["objects"], "presence": ["presence"]}.get(
        removed, ["confidence", "consensus", "objects", "presence"]
    )
    about["guides"] = [OBJECTS, PRESENCE, *about["guides"]]
    about["guides"] = [
        each
        for each in about["guides"]
        if each["name"] in left_out or each["name"] not in ("objects", "presence")
    ]
    if "objects" in left_out:
        about = with_added_words(about, folder)
    if removed == "features":
        about = with_features(about, folder)
    (folder / "model.json").write_text(json.dumps(about))
    plain = replace(given, guides={name: each for name, each in given.guides.items() if name not in left_out})
    x, search = pixels(6), SearchConfig(num_captions=3)
    capsys.readouterr()
    pipeline = load_pipeline(folder, search=search)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and warning.startswith("warning: ") and ", ".join(left_out) in warning
    assert [guide.name for guide in pipeline.guides] == [*plain.guides]
    wanted = CaptionPipeline.load(plain, search=search).caption_batch(x)
    for captions, theirs in zip(pipeline.caption_batch(x), wanted, strict=True):
        assert [each.text for each in captions] == [each.text for each in theirs]
        assert [each.score for each in captions] == pytest.approx([each.score for each in theirs], abs=1e-3)
    if "objects" in left_out:
        assert "'owl'" in message(lambda: load_pipeline(folder, force_words=["owl"]))


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
    steps = ["tokens", "parent", "image", "hidden", "cell", "map_0", "context"]
    attended = ["alpha_0", "beta_0", "alpha_1", "beta_1"]
    assert about.pop("inputs") == {"trunk": ["images"], "step": steps}
    assert about.pop("outputs") == {
        "trunk": ["map_0", "context", "hidden", "cell", "expected", "word_probabilities"],
        "step": ["logits", "hidden_after", "cell_after", *attended],
    }
    layer = {"height": 8, "width": 8, "channels": 64, "spatial": True, "channel": True}
    assert about.pop("layers") == [{"name": "layer1.0"} | layer, {"name": "layer1.1"} | layer]
    assert about.pop("source")["checkpoint"] == "captioner.safetensors"
    assert about == {
        "format_version": 6,
        "bos": 1,
        "eos": 2,
        "pad": 0,
        "unk": 3,
        "transform": {"size": 32, "mode": "resize"},
        "content": content_ids(given.vocabulary),
        "dtypes": ["float32", "int8"],
        "guides": [
            {"name": "consensus", "prediction": "expected", "idf": given.guides["consensus"].idf.tolist()},
            {
                "name": "words",
                "prediction": "word_probabilities",
                "rules": [
                    {"words": [*words], "threshold": THRESHOLDS[name]}
                    for name, words in mention_groups(WORDS).items()
                ],
                "gender": None,
            },
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


@SLOW
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
            "writing ONNX needs onnxscript, which is not installed; pip install -e '.[export]'",
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
