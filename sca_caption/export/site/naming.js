// What a search found, in words: nouns that the pictures hold put into captions (sca_caption/naming.py), words joined
// (vocab.py), and the probability that a caption is good (calibration.py). Fields are those of model.json.

import { Ranking, ranked } from "./consensus.js";
import { BOS, EOS, PAD, beamSearch } from "./search.js";

const CLITICS = new Set(["'s", "'re", "'ll", "'ve", "'m", "'d", "n't"]); // written onto the word before them

/** The words of a caption as they are shown: "man", "'s" -> "man's". Each has the ids that it stands for. */
export function spoken(words, ids) {
  const shown = [];
  for (const [place, id] of ids.entries()) {
    if (id === EOS) break;
    if (id === PAD || id === BOS) continue;
    if (shown.length && CLITICS.has(words[id])) {
      shown.at(-1).text += words[id];
      shown.at(-1).places.push(place);
    } else shown.push({ text: words[id], places: [place] });
  }
  return shown;
}

export const sentence = (words, ids) =>
  spoken(words, ids)
    .map(({ text }) => text)
    .join(" ");

/** The probability that a caption is better than the median, or null where the model does not know. */
export function confidence(calibration, { tokens, logProb, finished, consensus = 0 }) {
  if (!calibration) return null;
  const mean = logProb / (tokens.length + Number(finished));
  return 1 / (1 + Math.exp(-(calibration.slope * mean + calibration.consensus * consensus + calibration.intercept)));
}

/** The likeliest noun of an image, or a special one (rooster for bird) that has most of its probability. */
export function nounOf({ nouns, share }, probabilities) {
  const best = probabilities.indexOf(Math.max(...probabilities));
  const general = new Set(nouns[best].classes);
  let found = best;
  let fewest = Infinity;
  nouns.forEach(({ classes }, column) => {
    const inside = classes.length < general.size && classes.every((each) => general.has(each));
    const likely = probabilities[column] >= Math.fround(share * probabilities[best]);
    if (inside && likely && classes.length < fewest) [found, fewest] = [column, classes.length];
  });
  return found;
}

/** Whether a caption has one of the noun's forms, as whole words. */
export function isIn({ forms }, caption) {
  const escaped = forms.map((form) => form.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  return new RegExp(`(?<![\\p{L}\\p{N}_-])(?:${escaped})(?![\\p{L}\\p{N}_-])`, "u").test(caption);
}

/** Ids of words for other things of the noun's kind that are not in the image. */
export function others({ nouns, absent }, words, noun, probabilities) {
  const said = nouns[noun];
  const forms = nouns.flatMap((other, column) => {
    const alike = said.kind && other.kind === said.kind && !other.classes.some((each) => said.classes.includes(each));
    return alike && probabilities[column] < absent ? other.forms : [];
  });
  return forms.filter((form) => !said.forms.includes(form)).map((form) => words.indexOf(form)).filter((id) => id >= 0);
}

/** A captioner that never says some words, and some not after some others. Of `wanted` words none makes a compound. */
class Speaker {
  constructor(model, naming, closed, wanted) {
    Object.assign(this, { model, closed, wanted: new Set(wanted) });
    this.compound = new Set(naming.no_compound);
    this.after = new Map(naming.agreement.map(([word, wrong]) => [word, wrong.filter((id) => this.wanted.has(id))]));
  }

  async step(tokens, state) {
    const said = await this.model.step(tokens, state);
    tokens.forEach((token, row) => {
      const close = (id) => {
        said.logits[row * said.width + id] = -Infinity;
      };
      this.closed.forEach(close);
      this.after.get(token)?.forEach(close);
      if (this.wanted.has(token)) this.compound.forEach(close);
    });
    return said;
  }
}

/** The captioner without the words that are only there to be mentioned, and without the `silent` ones. */
export function plain(model, known, silent = []) {
  return {
    async step(tokens, state) {
      const said = await model.step(tokens, state);
      if (said.width === known && !silent.length) return said;
      const logits = new Float32Array(tokens.length * known);
      tokens.forEach((_, row) => {
        logits.set(said.logits.subarray(row * said.width, row * said.width + known), row * known);
        for (const id of silent) logits[row * known + id] = -Infinity;
      });
      return { ...said, logits, width: known };
    },
  };
}

/** Ids of words that captions keep from: sca_caption/subjects.py. */
export function silentOf(subjects, shares) {
  const lacking = (subjects ?? []).filter(({ least }, index) => shares[index] < Math.fround(least));
  const others = (subjects ?? []).every((each) => !each.main || lacking.includes(each));
  return others ? lacking.flatMap(({ words }) => words) : [];
}

/**
 * What a search from `state` has found, or, where it leaves out a noun that the picture surely holds, captions that
 * mention it. described: model.json; probabilities: of its nouns; ranking: what `found` was ranked by after the search;
 * silent: ids of words that it kept from.
 */
export async function improved(
  described,
  model,
  found,
  state,
  probabilities,
  ranking,
  settings,
  silent = [],
  mentions = [],
) {
  const { naming, words, known } = described;
  const surest = Math.max(...probabilities);
  if (surest < naming.threshold || mentions.length >= naming.most_groups) return found;
  const noun = nounOf(naming, probabilities);
  if (isIn(naming.nouns[noun], sentence(words, found[0].tokens))) return found;
  const { group } = naming.nouns[noun];
  const groups = [...mentions, group];
  const open = new Set(groups.flat());
  const added = words.map((_, id) => id).slice(known);
  const closed = [...added, ...silent, ...others(naming, words, noun, probabilities)].filter((id) => !open.has(id));
  const speaker = new Speaker(model, naming, closed, group);
  const better = ranking.rank(await beamSearch(speaker, state, settings, groups), groups);
  const least = ranking.likelihood(found[0]) - naming.room - naming.room_if_sure * surest;
  const said = better[0].tokens.some((id) => group.includes(id));
  return ranking.likelihood(better[0]) >= least && said ? better : found;
}

/**
 * The captions of an image, best first, as Python's Describer finds them: see `beamSearch`. What was seen: probabilities
 * of nouns, and from the trunk expected and shares, each where the model has it.
 */
export async function captionsOf(described, model, state, { probabilities, expected, shares }, settings) {
  const ranking = new Ranking(expected, described.consensus?.idf ?? null, settings.rerank_weight);
  const all = { ...settings, num_captions: ranking.chooses ? ranked(settings.beam_size) : settings.num_captions };
  const silent = silentOf(described.subjects, shares);
  let found = ranking.rank(await beamSearch(plain(model, described.known, silent), state, all));
  if (described.naming && probabilities) {
    found = await improved(described, model, found, state, probabilities, ranking, all, silent);
  }
  return found.slice(0, settings.num_captions);
}
