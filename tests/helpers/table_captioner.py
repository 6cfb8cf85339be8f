"""A captioner given as a table of counts, for searches that can be followed by hand, in Python and in JavaScript.

A word's logit is ln count, so its probability is the count / sum of the counts. The counts
stand under the longest sequence of last words that the table has: those after "<bos> a dog" under that, else under
"a dog", else under "dog"; if the table has none of these, the caption ends. Words without a count never follow.

A case is a dict:

    words        as in model.json
    counts       by last words, separated by spaces, then by following word
    guides       as in model.json
    search       fields of SearchConfig that differ from SEARCH
    force_words, neutral   as CaptionPipeline takes them
    gendered     as in model.json, of a captioner with words for one gender
    images       of each: counts that replace rows of the table, and predictions by the name of the guide

In tests/export/search_cases.json, several cases share a captioner with its guides, see `whole`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sca_caption.config import SearchConfig
from sca_caption.decoding.rules import bad_endings, conjunctions
from sca_caption.guidance import GUIDES
from sca_caption.guidance.distinct import content_ids
from sca_caption.images import Transform
from sca_caption.inference.captioning import Caption, CaptionPipeline
from sca_caption.vocab import SPECIALS, Vocabulary

SEARCH = {"beam_size": 4, "num_captions": 2, "max_length": 8, "length_penalty": 0.0, "block_ngrams": 0}
# The JavaScript search has no grammar.
SEARCH |= {"remove_bad_endings": False, "rerank_weight": 0.0, "grammar": False, "distinct": False}

Case = Mapping[str, Any]


def whole(captioners: Mapping[str, Mapping], case: Mapping) -> dict[str, Any]:
    """A case of search_cases.json with the fields of its captioner.

    Its guides are those of the captioner that it names, with the fields that it changes.
    """
    captioner = captioners[case["captioner"]]
    active = case.get("guides", {})
    guides = [each | active[each["name"]] for each in captioner["guides"] if each["name"] in active]
    return captioner | case | {"guides": guides}


def table_of(case: Case, image: int) -> dict[str, dict[str, float]]:
    """The counts of one image."""
    return case["counts"] | case["images"][image].get("counts", {})


def row_of(table: Mapping[str, Mapping[str, float]], read: Sequence[str]) -> Mapping[str, float]:
    """The counts after the words `read`, of which the first is <bos>."""
    lasts = (" ".join(read[i:]) for i in range(len(read)))
    return next((table[last] for last in lasts if last in table), {"<eos>": 1})


@dataclass(frozen=True)
class TableState:
    """All words that each row has read, and its image."""

    image: Tensor
    read: tuple[tuple[int, ...], ...]

    @property
    def device(self) -> torch.device:
        return self.image.device

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: Tensor) -> "TableState":
        return TableState(self.image[rows], tuple(self.read[row] for row in rows.tolist()))


class TableCaptioner:
    """As `inference.captioning.CaptioningModel` asks. A batch is the numbers of the case's images, (B,)."""

    device = torch.device("cpu")
    survives_fork = True
    transform = Transform(32)

    def __init__(self, case: Case):
        self.case, self.networks = case, []
        self.tables = [table_of(case, image) for image in range(len(case["images"]))]
        self.vocabulary = Vocabulary(case["words"][len(SPECIALS) :])

    def start(self, batch: Tensor, guides) -> tuple[TableState, dict[str, Tensor]]:
        given = [self.case["images"][image].get("predictions", {}) for image in batch.tolist()]
        names = [guide.name for guide in guides if guide.name in given[0]]
        predictions = {name: torch.tensor([each[name] for each in given]) for name in names}
        return TableState(batch, ((),) * len(batch)), predictions

    def step(self, tokens: Tensor, state: TableState) -> tuple[Tensor, TableState]:
        read = tuple((*row, token) for row, token in zip(state.read, tokens.tolist(), strict=True))
        logits = torch.full((len(read), len(self.vocabulary)), -torch.inf)
        for row, (image, words) in enumerate(zip(state.image.tolist(), read, strict=True)):
            for word, count in row_of(self.tables[image], self.vocabulary.to_words(words)).items():
                logits[row, self.vocabulary.encode([word])] = math.log(count)
        return logits, replace(state, read=read)


def in_python(case: Case) -> list[list[dict]]:
    """The captions of each image, as `described` gives them."""
    model = TableCaptioner(case)
    given = {each["name"]: each for each in case["guides"]}
    guides = [kind.from_json(given[name], model.vocabulary) for name, kind in GUIDES.items() if name in given]
    search = SearchConfig(**SEARCH | case.get("search", {}))
    options = {name: case[name] for name in ("force_words", "neutral") if name in case}
    pipeline = CaptionPipeline(model, guides, search=search, **options)
    found = pipeline.caption_batch(torch.arange(len(case["images"])))
    return [[described(caption) for caption in captions] for captions in found]


def described(caption: Caption) -> dict:
    """What a caption and one of search_cases.json are compared by."""
    names = ("text", "log_prob", "score", "finished", "confidence")
    return {name: getattr(caption, name) for name in names}


def for_javascript(case: Case) -> dict:
    """The case with the fields of model.json that the page's pipeline reads."""
    own = Vocabulary(case["words"][len(SPECIALS) :])
    search = vars(SearchConfig(**SEARCH | case.get("search", {})))
    rules = {"search": search, "bad_endings": bad_endings(own), "conjunctions": conjunctions(own)}
    rules["content"] = content_ids(own)
    return {"force_words": []} | dict(case) | rules


# answer(cases) for `helpers.node.node`; cases: of `for_javascript`.
JAVASCRIPT = """
import { CaptionPipeline } from "pages/pipeline.js";

const stateOf = (read) => ({ read, select: (rows) => stateOf(rows.map((row) => read[row])) });

function captionerOf({ words }, table) {
  const rowOf = (read) => {
    const lasts = read.map((_, i) => read.slice(i).map((id) => words[id]).join(" "));
    return table[lasts.find((last) => last in table)] ?? { "<eos>": 1 };
  };
  return {
    async step(tokens, before) {
      const read = tokens.map((token, row) => [...before.read[row], token]);
      const logits = new Float32Array(tokens.length * words.length).fill(-Infinity);
      read.forEach((each, row) => {
        for (const [word, count] of Object.entries(rowOf(each))) {
          logits[row * words.length + words.indexOf(word)] = Math.log(count);
        }
      });
      return { logits, width: words.length, state: stateOf(read) };
    },
  };
}

async function captionsOf(given, { counts, predictions = {} }) {
  const pipeline = new CaptionPipeline(captionerOf(given, { ...given.counts, ...counts }), given, {}, given);
  const forced = given.force_words.map((group) => group.split("/").map((word) => given.words.indexOf(word)));
  const read = Object.fromEntries(
    Object.entries(predictions).map(([name, values]) => [name, Float32Array.from(values)]),
  );
  const found = await pipeline.caption(stateOf([[]]), read, forced);
  return found.map(({ text, logProb, score, finished, confidence }) => {
    return { text, log_prob: logProb, score, finished, confidence };
  });
}

const answer = (cases) =>
  Promise.all(cases.map((given) => Promise.all(given.images.map((image) => captionsOf(given, image)))));
"""
