"""Write a captioner as ONNX graphs, with everything that captioning needs beside them, to run without PyTorch.

The folder is complete or it does not exist. It holds

    trunk.onnx    once per image:  images -> map_0, ..., keys, context, hidden, cell, predictions of guides
    step.onnx     once per word:   tokens, parent, image, hidden, cell, map_0, ..., keys, context -> logits,
                                   hidden_after, cell_after, alpha_0, beta_0, alpha_1, ...
    int8/         the same graphs with large weights in int8 and float16, if asked for (see `onnx_int8`)
    model.json    the words, and how captions are searched for

B images, N partial captions, P parents, S pixels per side, W words, d LSTM size, k attention width; attended layer i has
C channels and m = H W positions. B, P and N may differ from call to call. Captions with the same words before their last
one have the same state and attention; the graph computes them once, for the parent that these captions name.

    images         uint8 (B, 3, S, S), RGB, as `transform` says; normalised inside
    map_0, ...     float32 (B, C, H, W), the attended map, and the maps that are carried along with it, if any
    keys           float32 (B, m, k), only if attention prepares them once per image
    context        float32 (B, 4 d), of predicted words and style, only if the model has them
    hidden, cell   float32 (B, d) after the trunk, (P, d) as inputs of a step, (N, d) after it
    tokens         int64 (N,): the last word of each caption (bos at first)
    parent         int64 (N,): the row of hidden and cell that each caption goes on from
    image          int64 (P,): the row of the maps that each parent reads
    logits         float32 (N, W)
    alpha_i        float32 (N, m), spatial attention of layer i, row by row of the map, if the layer has it
    beta_i         float32 (N, C), its channel-wise attention, if it has it
    expected       float32 (B, W): predicted tf-idf of the words that annotators would use
    word_probabilities  float32 (B, W): fraction of captions that would contain each word

model.json, UTF-8:

    format_version  6
    words           every word by id, the special ones first
    vocabulary_size W. A word's log-probability is its logit less the logsumexp of all logits; masks never change it
    bos, eos, pad, unk   ids of the special words; pad, bos and unk never come in a caption
    transform       size S, and mode: "resize" squashes an image to S x S (bicubic), "crop" takes the square in its centre
    layers          attended ones, lowest first: name, height, width, channels, spatial and channel (whether so attended)
    inputs, outputs of each graph the names of its inputs and outputs, in order
    dtypes          "float32", and "int8" if int8/ exists
    search          default settings, see `config.SearchConfig`; the search is `decoding.beam_search`
    bad_endings     ids of words that no caption ends in if search.remove_bad_endings is true
    conjunctions    ids of words that never join a word with itself if search.block_ngrams is not 0
    content         the content of each word as a number, -1 for none (`guidance.distinct`); missing in earlier exports
    gendered        ids of the words for one gender, which neutral captions never contain; missing in earlier exports
    guides          in the order in which they act, each with its name, the name of its prediction among the outputs (or
                    null), and its own fields:
        consensus   consensus reranking (`guidance.consensus`): idf of the words. A caption's rating is the dot product of
                    its unit tf-idf vector with `expected`; captions are ranked by score + search.rerank_weight * rating
        words       predicted words (`guidance.words`): rules, of each its words (ids) and threshold; gender, male and
                    female words (ids) and threshold, or null. The words of a rule are excluded if the sum of their
                    probabilities is below its threshold; those of a gender unless their sum is the larger one and at
                    least the threshold times both sums. Forced words are never excluded
        confidence  calibrated confidence (`guidance.confidence`): slope, intercept and ratings, a weight per guide. A
                    caption is better than the median with probability 1 / (1 + exp(-(slope x + sum weight * rating +
                    intercept))), x the mean log-probability per word, the end word included
    source          version of sca_caption and name of the checkpoint

Formats 4, in which each guide had a field of its own, and 5, in which each caption was its own parent and graphs had no
input `parent`, can still be read (see `model_json.upgrade`). So can folders of earlier versions whose guides added words
after the first vocabulary_size, had a graph of their own, objects.onnx, or gave its features to the trunk as a second
input; those guides are left out.
"""

import json
from pathlib import Path
from typing import Any

import torch

from sca_caption import __version__, checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import SearchConfig
from sca_caption.decoding.rules import bad_endings, conjunctions
from sca_caption.export.browser_site import MODEL, check_runtime, is_site, write_page
from sca_caption.export.model_json import DESCRIPTION, DTYPES, FORMAT_VERSION, graph_path
from sca_caption.export.onnx_graphs import LSTM_WEIGHTS, graphs_of, layers_of
from sca_caption.export.onnx_int8 import quantize
from sca_caption.guidance.distinct import content_ids
from sca_caption.guidance.groups import gendered_words
from sca_caption.inference.torch_captioner import TorchCaptioner
from sca_caption.runtime.atomic_files import atomic_folder
from sca_caption.vocab import BOS, EOS, PAD, UNK


def export(
    output: Path,
    given: Checkpoint,
    file: Path | None = None,
    dtypes: list[str] | tuple[str, ...] = DTYPES,
    runtime: Path | None = None,
) -> None:
    """Write the folder `output` from a checkpoint, which was read from `file` (None: the one that ships).

    runtime: the folder of onnxruntime-web; write a page for browsers, whose folder `model` is this one.

    Raises UserError if the folder holds anything but such a model, or cannot be written.
    """
    captioner, guides = TorchCaptioner.from_checkpoints([given], torch.device("cpu"))
    assert given.vocabulary is not None
    if runtime:
        check_runtime(runtime)
    with atomic_folder(output, is_site if runtime else is_export) as whole:
        folder = whole / MODEL if runtime else whole
        folder.mkdir(exist_ok=True)
        graphs = graphs_of(captioner, guides)
        for name, graph in graphs.items():
            graph_path(folder, name, "float32").write_bytes(graph.file)
            if "int8" in dtypes:
                target = graph_path(folder, name, "int8")
                target.parent.mkdir(exist_ok=True)
                quantize(graph_path(folder, name, "float32"), target, LSTM_WEIGHTS)
        description: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "words": list(captioner.vocabulary),
            "vocabulary_size": len(captioner.vocabulary),
            "bos": BOS,
            "eos": EOS,
            "pad": PAD,
            "unk": UNK,
            "transform": given.transform.to_dict(),
            "layers": layers_of(captioner.sca_cnn, given.transform.size),
            "inputs": {name: graph.inputs for name, graph in graphs.items()},
            "outputs": {name: graph.outputs for name, graph in graphs.items()},
            "dtypes": list(dtypes),
            "search": vars(SearchConfig()),
            "bad_endings": list(bad_endings(given.vocabulary)),
            "conjunctions": list(conjunctions(given.vocabulary)),
            "content": content_ids(given.vocabulary),
            "gendered": list(gendered_words(given.vocabulary)),
            "guides": [
                {"name": each.name, "prediction": each.prediction} | each.to_json() for each in guides
            ],
            "source": {"sca_caption": __version__, "checkpoint": (file or checkpoint.SHIPPED).name},
        }
        text = json.dumps(description, ensure_ascii=False, indent=None)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        if runtime:
            write_page(whole, runtime)


def is_export(folder: Path) -> bool:
    """Whether a folder holds nothing but an exported model, also one of an earlier version."""
    known = {DESCRIPTION, "trunk.onnx", "step.onnx", "objects.onnx", "int8"}
    return (folder / "trunk.onnx").is_file() and {path.name for path in folder.iterdir()} <= known
