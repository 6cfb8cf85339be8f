// Consensus reranking: sca_caption/guidance/consensus.py in JavaScript.

import { tfidfCosine } from "./tfidf.js";

/** Rates a caption by the cosine of its tf-idf vector with the predicted one. */
export class ConsensusReranker {
  /** idf: of each of the captioner's words; words that guides add count for nothing. */
  constructor({ idf }) {
    this.idf = idf;
  }

  rate(predicted, tokens) {
    return tfidfCosine(tokens, this.idf, predicted);
  }
}
