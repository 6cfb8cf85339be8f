// Beam search for the captions of one image: sca_caption/decode.py, beams.py and constraints.py in JavaScript.
//
// The search knows of a captioner only its step:
//
//     const { logits, width, state } = await model.step(tokens, before);   // a row for each of `tokens`
//     const some = state.select(rows);                                      // row i is row rows[i]
//
// Numbers are kept as 32 bit floats, as PyTorch keeps them, so that captions and their order are Python's. Of equal
// candidates the first beam's comes first, and of these the first word's.

export const PAD = 0;
export const BOS = 1;
export const EOS = 2;
export const UNK = 3;
const NEVER = [PAD, BOS, UNK];

/**
 * The best captions, best first: {tokens, logProb, score, finished}. Captions that mention more groups come before all
 * others, finished ones before those that max_length cut off.
 *
 * settings: as `search` of model.json names them; never_last: ids of words that no caption ends in; joining: ids of words
 * that never stand between a word and itself.
 * mentions: groups of ids; a caption shall have a word of each (see constraints.py: a set of beams for each subset).
 */
export async function beamSearch(model, state, settings, mentions = []) {
  const { beam_size: beamSize, max_length: maxLength, length_penalty: penalty } = settings;
  const count = settings.num_captions ?? 1;
  const kept = Math.max(beamSize, count);
  const bits = bitsOf(mentions);
  const sets = 1 << mentions.length;
  const finished = Array.from({ length: sets }, () => []);
  let live = Array.from({ length: sets }, (_, set) => (set ? [] : [{ tokens: [], logProb: 0 }]));
  let slots = 1; // beams that a set has room for

  for (let length = 1; ; length += 1) {
    const beams = live.flat();
    const said = await model.step(beams.map(({ tokens }) => tokens.at(-1) ?? BOS), state);
    beams.forEach((beam, row) => {
      beam.row = row;
      beam.next = logSoftmax(said.logits.subarray(row * said.width, (row + 1) * said.width));
      forbid(beam, length, settings);
    });
    const moves = takeMoves(live, bits);
    const looked = Math.min(2 * beamSize, slots * said.width);
    slots = Math.min(beamSize, looked);

    const before = live;
    live = before.map((own, set) => {
      const best = bestOf(own, moves.filter(({ into }) => into === set), looked);
      const ended = best.slice(0, beamSize).filter(({ word }) => word === EOS);
      keepBest(finished[set], ended.map(({ beam, total }) => caption(beam.tokens, total, true, penalty)), kept);
      const onward = best.filter(({ word }) => word !== EOS).slice(0, slots);
      return onward.map(({ beam, word, total }) => {
        return { tokens: [...beam.tokens, word], logProb: total, parent: beam.row };
      });
    });

    const likeliest = Math.max(...live.map((set) => set[0]?.logProb ?? -Infinity));
    const dead = likeliest === -Infinity; // nothing can follow
    if (dead && length === 1) {
      throw new Error("no word can start a caption: logits not finite, or all words forbidden");
    }
    if (length === maxLength) return ranked(finished, dead ? before : live, penalty, count);
    const nothing = finished.every((set) => !set.length);
    const reach = Math.fround(likeliest / Math.fround(Math.max((length + 1) ** penalty, maxLength ** penalty)));
    const enough = sets === 1 && finished[0].length === kept;
    if (dead || enough || reach <= (finished[sets - 1][count - 1]?.score ?? -Infinity)) {
      return ranked(finished, dead && nothing ? before : [], penalty, count);
    }
    state = said.state.select(live.flat().map(({ parent }) => parent));
  }
}

/** A caption and its score, log-probability / length^penalty, where the end word counts. */
function caption(tokens, logProb, finished, penalty) {
  const length = tokens.length + Number(finished);
  // Python divides ended captions as tensors, and the others as numbers.
  const score = finished ? Math.fround(logProb / Math.fround(length ** penalty)) : logProb / length ** penalty;
  return { tokens, logProb, score, finished };
}

/** Which groups, as bits, each word of them is in. */
function bitsOf(mentions) {
  const bits = new Map();
  mentions.forEach((group, position) => {
    for (const word of group) bits.set(word, (bits.get(word) ?? 0) | (1 << position));
  });
  return bits;
}

export function logSoftmax(logits) {
  let most = -Infinity;
  let sum = 0;
  for (const value of logits) if (value > most) most = value;
  for (const value of logits) sum += Math.exp(value - most);
  if (!Number.isFinite(sum)) throw new Error("no word can start a caption: logits not finite, or all words forbidden");
  const shift = Math.log(sum);
  return Float32Array.from(logits, (value) => value - most - shift);
}

/** Set to -inf what may not be word number `length` of a beam, in `beam.next`. */
function forbid({ tokens, next }, length, settings) {
  const never = settings.never_last ?? [];
  for (const word of NEVER) next[word] = -Infinity;
  if (length <= settings.min_length || never.includes(tokens.at(-1))) next[EOS] = -Infinity;
  if (length === settings.max_length) for (const word of never) next[word] = -Infinity;
  for (const word of repeats(tokens, settings.block_ngrams)) next[word] = -Infinity;
  if (tokens.length > 1 && (settings.joining ?? []).includes(tokens.at(-1))) next[tokens.at(-2)] = -Infinity;
}

/** The words that would complete n words in a row that the caption has already, and its last word. */
function repeats(tokens, n) {
  if (!n) return [];
  const found = tokens.slice(-1);
  const start = tokens.length - n + 1; // of the last n - 1 words
  for (let first = 0; first + n <= tokens.length; first += 1) {
    if (tokens.slice(first, first + n - 1).every((word, i) => word === tokens[start + i])) {
      found.push(tokens[first + n - 1]);
    }
  }
  return found;
}

/** Continuations that lead from a beam's set into another, which are then closed in `beam.next`. */
function takeMoves(live, bits) {
  const moves = [];
  live.forEach((own, set) => {
    for (const beam of own) {
      for (const [word, groups] of bits) {
        const into = set | groups;
        if (into === set) continue;
        moves.push({ beam, word, into, total: Math.fround(beam.logProb + beam.next[word]) });
        beam.next[word] = -Infinity;
      }
    }
  });
  return moves;
}

/** The `count` likeliest continuations of a set's beams, and of those that move into it. */
function bestOf(beams, moves, count) {
  const best = [];
  const offer = (beam, word, total) => {
    if (best.length === count && !(total > best[count - 1].total)) return;
    let place = best.length;
    while (place && total > best[place - 1].total) place -= 1;
    best.splice(place, 0, { beam, word, total });
    if (best.length > count) best.pop();
  };
  for (const beam of beams) {
    for (let word = 0; word < beam.next.length; word += 1) {
      const total = Math.fround(beam.logProb + beam.next[word]);
      if (total > -Infinity) offer(beam, word, total);
    }
  }
  for (const { beam, word, total } of moves) if (total > -Infinity) offer(beam, word, total);
  return best;
}

/** Add captions to a list that holds the `size` best, best first; of equals the older. */
function keepBest(kept, added, size) {
  kept.push(...added);
  kept.sort((one, other) => other.score - one.score);
  kept.length = Math.min(kept.length, size);
}

function ranked(finished, live, penalty, count) {
  const unended = (beam) => caption(beam.tokens, beam.logProb, false, penalty);
  const found = [finished, live.map((set) => set.map(unended))].flatMap((kind) =>
    kind.flatMap((set, index) => set.map((each) => ({ each, groups: mentioned(index) }))),
  );
  found.sort(
    (one, other) =>
      other.groups - one.groups || other.each.finished - one.each.finished || other.each.score - one.each.score,
  );
  const seen = new Set();
  return found
    .map(({ each }) => each)
    .filter(({ tokens }) => !seen.has(String(tokens)) && seen.add(String(tokens)))
    .slice(0, count);
}

const mentioned = (set) => set.toString(2).replaceAll("0", "").length; // groups whose bits are set
