// Captions that differ in content: sca_caption/guidance/distinct.py in JavaScript.

const MAX_OVERLAP = 0.5;

/** The Jaccard index of two sets; 1 for two empty ones. */
function overlap(one, other) {
  const union = new Set([...one, ...other]).size;
  return union ? [...one].filter((each) => other.has(each)).length / union : 1;
}

/**
 * Up to `count` captions, the first of `ranked` first. ranked: candidates, best first; others: further candidates;
 * content: of each word of the vocabulary a number, -1 for none; forced: groups of ids, see search.js.
 */
export function selectDistinct(ranked, others, count, content, forced) {
  const [first, ...more] = ranked;
  const pool = new Map([...more, ...others].map((each) => [String(each.tokens), each]));
  pool.delete(String(first.tokens));
  const rest = [...pool.values()].sort((one, other) => other.score - one.score);
  const words = new Map(
    [first, ...rest].map((each) => [each, new Set(each.tokens.map((id) => content[id]).filter((id) => id >= 0))]),
  );
  const taken = [first];
  const key = (each) => [
    forced.filter((group) => !group.some((id) => each.tokens.includes(id))).length,
    Number(!each.finished),
    Math.max(MAX_OVERLAP, ...taken.map((one) => overlap(words.get(each), words.get(one)))),
  ];
  while (rest.length && taken.length < count) {
    const keys = rest.map(key);
    let place = 0;
    keys.forEach((each, index) => {
      if (isLess(each, keys[place])) place = index;
    });
    taken.push(...rest.splice(place, 1));
  }
  return taken;
}

function isLess(one, other) {
  const place = one.findIndex((value, index) => value !== other[index]);
  return place >= 0 && one[place] < other[place];
}
