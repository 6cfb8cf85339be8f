"""Write a captioner as ONNX graphs, with all that captioning needs beside them, to run without PyTorch.

The folder is complete or it is not there. It holds

    trunk.onnx    once an image:  images, seen -> map_0, ..., keys, hidden, cell, expected, shares
    step.onnx     once a word:    tokens, image, hidden, cell, map_0, ..., keys -> logits, hidden_after, cell_after,
                                  alpha_0, beta_0, alpha_1, ...
    objects.onnx  once an image:  images -> probabilities, seen (of models that name what ImageNet's classifier sees)
    int8/         the same graphs with large weights in int8 and float16, if asked for
    model.json    the words, and how they are searched for

B images, N captions in the making, S pixels a side, W words, d LSTM size, k attention width; attended layer i has C
channels and m = H W positions. B and N may differ from call to call.

    images         uint8 (B, 3, S, S), RGB, as `transform` says; normalised inside
    map_0, ...     float32 (B, C, H, W), what is attended, and what travels along with it, if anything does
    keys           float32 (B, m, k), only where attention prepares them once an image
    hidden, cell   float32 (B, d) after the trunk, (N, d) in steps
    tokens, image  int64 (N,): the words before (bos at first), and the row of the maps that each caption reads
    logits         float32 (N, W), of all words, the new ones of naming too; a search without them reads the first `known`
    alpha_i        float32 (N, m), where layer i was looked at, row by row of the map; if it has spatial attention
    beta_i         float32 (N, C), what was selected in it; if it has channel attention
    probabilities  float32 (B, nouns), in the order of `naming.nouns`
    seen           float32 (B, C), means of that classifier's last map; goes into the trunk where its `inputs` name it
    expected       float32 (B, known): tf-idf of the words that people would use, of models that have learnt it
    shares         float32 (B, K): which share of people would speak of each of `subjects`, of models that have learnt it

model.json, UTF-8:

    format_version  4
    words           every word by id: the special ones, the captioner's, the new ones of naming
    known           how many of them are the captioner's own
    bos, eos, pad, unk   ids of the special words; pad, bos and unk never come in a caption
    transform       size S, and mode: "resize" squashes an image to S x S (bicubic), "crop" takes the square in its centre
    layers          attended ones, lowest first: name, height, width, channels, spatial and channel (whether so attended)
    inputs, outputs  of each graph the names of its inputs and outputs, in order
    dtypes          "float32", and "int8" where int8/ is there
    search          default settings, see `search.SearchConfig`; how it goes on is in `decode.beam_search`
    never_last      ids of words that no caption ends in where search.remove_bad_endings is true
    joining         ids of words that never stand between a word and itself where search.block_ngrams is not 0
    consensus       null, or idf, one number for each of the `known` words. A caption's consensus c is the product of its
                    tf-idf vector (counts times idf, of length 1; new words count for nothing) with `expected`; they are
                    ranked by their score + search.rerank_weight * c; naming compares scores without it
    subjects        null, or of each of `shares` words (ids), least and main: where the shares of all main ones are below
                    least, captions keep from the words of these and of all others whose share is; naming may put them in
                    all the same
    calibration     null, or slope, consensus and intercept: a caption is better than the median with probability
                    1 / (1 + exp(-(slope x + consensus c + intercept))), x the mean log-probability of its words, the
                    end word included
    naming          null, or what `naming.Lexicon.mention` needs:
        threshold, room, room_if_sure, share, absent   see `naming.Limits`
        most_groups  groups of words that one caption can be made to mention
        nouns        of each kind, name, plural or null, forms (words that mention it), classes (ImageNet's numbers), and
                     group: ids of the words to say
        agreement    pairs: after the word with this id do not come these words of nouns that must be mentioned
        no_compound  ids of words that do not come after one that must be mentioned
    source          version of sca_caption and name of the checkpoint
"""

import dataclasses
import json
from pathlib import Path

from sca_caption import __version__, checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import SearchConfig
from sca_caption.export.browser_site import MODEL, check_runtime, is_site, write_page
from sca_caption.export.model_json import DESCRIPTION, DTYPES, FORMAT_VERSION, graph_path, naming_of
from sca_caption.export.onnx_graphs import graphs_of, layers_of
from sca_caption.export.onnx_int8 import quantize
from sca_caption.guidance.confidence import Calibration
from sca_caption.guidance.hallucination import rules_of
from sca_caption.guidance.novel_objects import Namer
from sca_caption.inference.captioning import settings_of
from sca_caption.runtime.atomic_files import replacing_folder
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

    Raises UserError where the folder holds anything else than such a model, or cannot be written.
    """
    given.model.eval()
    settings = settings_of(SearchConfig(), given.vocabulary)
    if runtime:
        check_runtime(runtime)
    with replacing_folder(output, is_site if runtime else is_export) as whole:
        folder = whole / MODEL if runtime else whole
        folder.mkdir(exist_ok=True)
        namer = Namer(given.model, given.vocabulary, given.objects) if given.objects else None
        rules = rules_of(given.subjects, given.vocabulary) if given.subjects is not None else None
        graphs = graphs_of(given.model, namer, given.transform.size, given.consensus, given.subjects)
        names = {}
        for name, (graph, inputs, outputs) in graphs.items():
            names[name] = inputs, outputs
            graph_path(folder, name, "float32").write_bytes(graph)
        if "int8" in dtypes:
            for name in graphs:
                target = graph_path(folder, name, "int8")
                target.parent.mkdir(exist_ok=True)
                quantize(graph_path(folder, name, "float32"), target, robust=name == "objects")
        description = {
            "format_version": FORMAT_VERSION,
            "words": list(namer.vocabulary if namer else given.vocabulary),
            "known": len(given.vocabulary),
            "bos": BOS,
            "eos": EOS,
            "pad": PAD,
            "unk": UNK,
            "transform": given.transform.to_dict(),
            "layers": layers_of(given.model, given.transform.size),
            "inputs": {name: inputs for name, (inputs, _) in names.items()},
            "outputs": {name: outputs for name, (_, outputs) in names.items()},
            "dtypes": list(dtypes),
            "search": vars(SearchConfig()),
            "never_last": list(settings["never_last"]),
            "joining": list(settings["joining"]),
            "consensus": {"idf": given.consensus.idf.tolist()} if given.consensus is not None else None,
            "subjects": rules and [dataclasses.asdict(rule) for rule in rules],
            "calibration": vars(found) if (found := Calibration.of(given.metrics)) else None,
            "naming": naming_of(namer) if namer else None,
            "source": {"sca_caption": __version__, "checkpoint": (file or checkpoint.SHIPPED).name},
        }
        text = json.dumps(description, ensure_ascii=False, indent=None)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        if runtime:
            write_page(whole, runtime)


def is_export(folder: Path) -> bool:
    """Whether nothing but an exported model is in a folder."""
    known = {DESCRIPTION, "trunk.onnx", "step.onnx", "objects.onnx", "int8"}
    return (folder / "trunk.onnx").is_file() and {path.name for path in folder.iterdir()} <= known
