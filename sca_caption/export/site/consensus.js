// Ranking by expected consensus: sca_caption/consensus.py in JavaScript.

/** How many captions a search finds to rank them: SearchConfig.ranked in search.py. */
export const ranked = (beamSize) => (beamSize > 1 ? 2 * beamSize : 1);

/**
 * Ranks the captions of an image by score + weight * consensus. expected: from the trunk; idf: of model.json, or null
 * where the model knows nothing of it: then captions stay as they are.
 */
export class Ranking {
  constructor(expected, idf, weight) {
    Object.assign(this, { expected, idf, weight });
  }

  /** Whether the order may be another than the search's. */
  get chooses() {
    return this.idf !== null && this.weight > 0;
  }

  /** Best first; finished captions and those with most of the `mentions` (groups of ids) stay ahead. */
  rank(found, mentions = []) {
    if (!this.idf) return found;
    const missing = ({ tokens }) => mentions.filter((group) => !group.some((id) => tokens.includes(id))).length;
    const rated = found.map((caption) => {
      const consensus = this.cosine(caption.tokens);
      return { ...caption, score: caption.score + this.weight * consensus, consensus };
    });
    if (!this.weight) return rated;
    return rated.sort(
      (a, b) => missing(a) - missing(b) || Number(b.finished) - Number(a.finished) || b.score - a.score,
    );
  }

  /** The score that a caption had before. */
  likelihood({ score, consensus = 0 }) {
    return score - this.weight * consensus;
  }

  /** Of a caption's tf-idf vector, of length 1, and the expected one; new words count for nothing. */
  cosine(tokens) {
    const counts = new Map();
    for (const id of tokens) if (id < this.idf.length) counts.set(id, (counts.get(id) ?? 0) + 1);
    let [product, square] = [0, 0];
    for (const [id, count] of counts) {
      const value = count * this.idf[id];
      product += value * this.expected[id];
      square += value * value;
    }
    return square ? product / Math.sqrt(square) : 0;
  }
}
