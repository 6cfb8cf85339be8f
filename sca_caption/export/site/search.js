// Beam search for the captions of one image: sca_caption/decoding/{beam_search,diverse_beams,lexical_constraints,rules,
// stepper}.py in JavaScript.
//
// The search knows a captioner by its step alone:
//
//     const { logits, width, state } = await model.step(tokens, before);   // one row per token
//     const some = state.select(rows);                                      // row i is row rows[i]
//
// Numbers are rounded to 32-bit floats where PyTorch has them, so that captions and their order are Python's. Of equal
// candidates the first beam's comes first, and of one beam's the first word's.

import { BOS, EOS, PAD, UNK } from "./vocabulary.js";

const NEVER = [PAD, BOS, UNK]; // words that no caption contains

/**
 * The best captions, best first: {tokens, logProb, score, finished}. Captions that contain more groups come before all
 * others, finished ones before those that max_length cut off. logProb is the natural logarithm of the caption's
 * probability under the captioner; masks never change it.
 *
 * rules: fields of `search` in model.json; num_captions: how many; bad_endings: ids of words that no caption
 * ends in; conjunctions: ids of words that must not join a word with itself.
 * diverse_groups: this many groups of beams, which differ in their words, each of which costs `diversity` nats per beam of
 * the groups before that chooses it; without forced words.
 * forced: groups of ids; a caption shall contain one word of each (constrained beam search: one set of beams per subset
 * of the groups). mask: excludes words, see masking.js.
 */
export async function beamSearch(model, state, rules, forced = [], mask = null) {
  const { max_length: maxLength, length_penalty: penalty, diverse_groups: groups = 1 } = rules;
  const isDiverse = groups > 1;
  const beamSize = rules.beam_size / groups; // of each set
  const count = rules.num_captions ?? 1;
  const kept = isDiverse ? beamSize : Math.max(beamSize, count);
  const bits = bitsOf(forced);
  const sets = isDiverse ? groups : 1 << forced.length;
  const finished = Array.from({ length: sets }, () => []);
  let live = Array.from({ length: sets }, (_, set) => (set && !isDiverse ? [] : [{ tokens: [], logProb: 0 }]));
  if (isDiverse) state = state.select(live.map(() => 0));
  let slots = 1; // beams that a set has room for

  for (let length = 1; ; length += 1) {
    const beams = live.flat();
    const stepped = await model.step(beams.map(({ tokens }) => tokens.at(-1) ?? BOS), state);
    beams.forEach((beam, row) => {
      beam.row = row;
      const logits = stepped.logits.subarray(row * stepped.width, (row + 1) * stepped.width);
      beam.next = logProbs(logits);
      exclude(beam, length, rules, mask);
    });
    const moves = takeMoves(live, bits);
    const considered = Math.min(2 * beamSize, slots * stepped.width + sets * slots * bits.size);
    slots = Math.min(beamSize, considered);

    const before = live;
    const chosen = new Map(); // cost of each word for the groups that follow
    live = before.map((own, set) => {
      const best = bestOf(own, moves.filter(({ into }) => into === set), considered, chosen);
      const ended = best.slice(0, beamSize).filter(({ word }) => word === EOS);
      keepBest(finished[set], ended.map(({ beam, total }) => caption(beam.tokens, total, true, penalty)), kept);
      const onward = best.filter(({ word }) => word !== EOS).slice(0, slots);
      if (isDiverse) for (const { word } of onward) chosen.set(word, (chosen.get(word) ?? 0) + rules.diversity);
      return onward.map(({ beam, word, total }) => {
        return { tokens: [...beam.tokens, word], logProb: total, parent: beam.row };
      });
    });

    const likeliest = Math.max(...live.map((set) => set[0]?.logProb ?? -Infinity));
    const isDead = likeliest === -Infinity; // no word can follow
    if (isDead && length === 1) throw new Error(NO_WORD);
    const nothing = finished.every((set) => !set.length);
    const deadEnds = isDead && nothing ? before : []; // they break the rules
    const result = (unfinished) => ranked(finished, unfinished, penalty, count, isDiverse);
    if (length === maxLength) return result(isDead ? deadEnds : live);
    const reachable = Math.fround(likeliest / Math.fround(Math.max((length + 1) ** penalty, maxLength ** penalty)));
    const isFull = (sets === 1 || isDiverse) && finished.every((each) => each.length === kept);
    const isSettled = !isDiverse && reachable <= (finished[sets - 1][count - 1]?.score ?? -Infinity);
    if (isDead || isFull || isSettled) return result(deadEnds);
    state = stepped.state.select(live.flat().map(({ parent }) => parent));
  }
}

const NO_WORD = "no word can start a caption: logits not finite, or all words forbidden";

/** A caption with its score, logProb / length^penalty; the end word counts. */
function caption(tokens, logProb, finished, penalty) {
  const length = tokens.length + Number(finished);
  // Python divides finished captions as float32 tensors, and the others as float64 numbers.
  const score = finished ? Math.fround(logProb / Math.fround(length ** penalty)) : logProb / length ** penalty;
  return { tokens, logProb, score, finished };
}

/** The groups that each forced word is in, as bits. */
function bitsOf(forced) {
  const bits = new Map();
  forced.forEach((group, position) => {
    for (const word of group) bits.set(word, (bits.get(word) ?? 0) | (1 << position));
  });
  return bits;
}

/** Natural-log probabilities of all words. */
export function logProbs(logits) {
  let highest = -Infinity;
  for (const value of logits) highest = Math.max(highest, value);
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - highest);
  if (!Number.isFinite(sum)) throw new Error(NO_WORD);
  const normaliser = highest + Math.log(sum);
  const found = new Float32Array(logits.length); // Float32Array.from with a function is many times slower
  for (let word = 0; word < found.length; word += 1) found[word] = logits[word] - normaliser;
  return found;
}

/** Set to -inf in `beam.next` the words that must not be word number `length` of a beam. */
function exclude({ tokens, next }, length, rules, mask) {
  const badEndings = rules.bad_endings ?? [];
  const last = tokens.at(-1) ?? BOS;
  for (const word of NEVER) next[word] = -Infinity;
  if (length <= rules.min_length || badEndings.includes(last)) next[EOS] = -Infinity;
  if (length === rules.max_length) for (const word of badEndings) next[word] = -Infinity;
  for (const word of repeatedNgrams(tokens, rules.block_ngrams)) next[word] = -Infinity;
  if (tokens.length > 1 && (rules.conjunctions ?? []).includes(last)) next[tokens.at(-2)] = -Infinity;
  for (const word of mask?.excluded(last) ?? []) next[word] = -Infinity;
}

/** The words that would repeat an n-gram of the caption or its last word; n = 0: none. */
function repeatedNgrams(tokens, n) {
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

/** Continuations that move a beam into another set; they are excluded from `beam.next`. */
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

/** The `count` most probable of a set's own continuations and of those that move into it, less the costs of words. */
function bestOf(beams, moves, count, costs) {
  const best = [];
  const offer = (beam, word, total) => {
    const rank = Math.fround(total - Math.fround(costs.get(word) ?? 0));
    if (best.length === count && !(rank > best[count - 1].rank)) return;
    let place = best.length;
    while (place && rank > best[place - 1].rank) place -= 1;
    best.splice(place, 0, { beam, word, total, rank });
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

/** Add captions to the list of the `size` best, best first; at equal scores, the older first. */
function keepBest(kept, added, size) {
  kept.push(...added);
  kept.sort((one, other) => other.score - one.score);
  kept.length = Math.min(kept.length, size);
}

/** The best captions of all sets, without duplicates; of diverse groups the best of each, then the second best ... */
function ranked(finished, live, penalty, count, isDiverse) {
  const unfinished = (beam) => caption(beam.tokens, beam.logProb, false, penalty);
  const found = [finished, live.map((set) => set.map(unfinished))].flatMap((kind) =>
    kind.flatMap((set, index) =>
      set.map((each, place) => {
        return { each, level: isDiverse ? (each.finished ? place : Infinity) : -groupCount(index) };
      }),
    ),
  );
  found.sort(
    (one, other) =>
      (one.level === other.level ? 0 : one.level - other.level) ||
      other.each.finished - one.each.finished ||
      other.each.score - one.each.score,
  );
  const seen = new Set();
  return found
    .map(({ each }) => each)
    .filter(({ tokens }) => !seen.has(String(tokens)) && seen.add(String(tokens)))
    .slice(0, count);
}

const groupCount = (set) => set.toString(2).replaceAll("0", "").length; // groups whose bits are set
