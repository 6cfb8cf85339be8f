// The rating of a caption by expected words: sca_caption/guidance/tfidf.py in JavaScript.

/** Dot product of a caption's unit tf-idf vector with an expected vector; words that guides add count for nothing. */
export function tfidfCosine(tokens, idf, expected) {
  const counts = new Map();
  for (const id of tokens) if (id < idf.length) counts.set(id, (counts.get(id) ?? 0) + 1);
  let product = 0;
  let square = 0;
  for (const [id, count] of counts) {
    const value = count * idf[id];
    product += value * expected[id];
    square += value * value;
  }
  return square ? product / Math.sqrt(square) : 0;
}
