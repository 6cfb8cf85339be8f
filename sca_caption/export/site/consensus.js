// Consensus reranking: sca_caption/guidance/consensus.py in JavaScript.

/** Rates a caption by the cosine of its tf-idf vector with the predicted one. */
export class ConsensusReranker {
  /** idf: of each of the captioner's words. */
  constructor({ idf }) {
    this.idf = idf;
  }

  rate(predicted, tokens) {
    const counts = new Map();
    for (const id of tokens) counts.set(id, (counts.get(id) ?? 0) + 1);
    let product = 0;
    let square = 0;
    for (const [id, count] of counts) {
      product += this.idf[id] * predicted[id]; // once, however often the word occurs
      square += (count * this.idf[id]) ** 2;
    }
    return square ? product / Math.sqrt(square) : 0;
  }
}
