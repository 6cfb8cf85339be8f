// Guides steer a search beside the captioner: the protocol of sca_caption/guidance/guide.py in JavaScript, for one image.
//
// A guide is made from its description in model.json and reads its prediction, a Float32Array. It may have these hooks:
//
//     bannedWords(predicted, forced)      ids to exclude from every caption
//     rate(predicted, tokens)             what a caption is worth: added to its score, times rerank_weight
//     confidence(meanLogProb, ratings)    probability that a caption is good
//
// forced: groups of ids; a caption shall contain one word of each. ratings: by the name of the guide.

import { ConfidenceGuide } from "./confidence.js";
import { ConsensusReranker } from "./consensus.js";
import { WordGuide } from "./words.js";

const GUIDES = {
  consensus: ConsensusReranker,
  words: WordGuide,
  confidence: ConfidenceGuide,
};

/** The guides that model.json describes, by name, in the order in which they act. */
export function guidesOf({ guides }) {
  const described = new Map(guides.map((each) => [each.name, each]));
  return new Map(
    Object.entries(GUIDES)
      .filter(([name]) => described.has(name))
      .map(([name, Guide]) => [name, new Guide(described.get(name))]),
  );
}
