// A captioner and its guides: sca_caption/inference/captioning.py in JavaScript, for one image.

import { selectDistinct } from "./distinct.js";
import { guidesOf } from "./guides.js";
import { MaskedWords } from "./masking.js";
import { beamSearch } from "./search.js";
import { decode } from "./vocabulary.js";

/** How many captions a search finds for guides to rerank: SearchConfig.candidates. */
const candidatesOf = (beamSize) => (beamSize > 1 ? 2 * beamSize : 1);

export class CaptionPipeline {
  /** model: see search.js; described: model.json; settings: override its search; neutral: without words for one gender. */
  constructor(model, described, settings = {}, { neutral = false } = {}) {
    const search = { ...described.search, ...settings };
    if (search.diverse_groups > 1) throw new Error("diverse beam search runs in Python only; set diverse_groups to 1");
    Object.assign(this, { model, search, words: described.words, content: described.content });
    this.guides = guidesOf(described);
    this.gendered = neutral ? described.gendered : [];
    this.rules = {
      ...search,
      bad_endings: search.remove_bad_endings ? described.bad_endings : [],
      conjunctions: search.block_ngrams ? described.conjunctions : [],
      diverse_groups: 1,
      num_captions: this.candidates,
    };
  }

  /** Whether guides rerank the candidates. */
  get reranks() {
    return this.search.rerank_weight > 0 && [...this.guides.values()].some((guide) => guide.rate);
  }

  /** Whether the captions of an image are chosen to differ in content; files of earlier versions lack what that needs. */
  get selects() {
    const { distinct, num_captions: count, beam_size: beamSize } = this.search;
    return Boolean(distinct && this.content && count > 1 && beamSize > 1);
  }

  /** How many captions the search finds, to rerank them or to choose from them. */
  get candidates() {
    const { beam_size: beamSize, num_captions: count } = this.search;
    if (this.reranks) return candidatesOf(beamSize);
    return this.selects ? beamSize : count;
  }

  /**
   * The captions of an image, best first: {text, tokens, logProb, score, finished, ratings, confidence}; confidence is
   * null if no guide gives it.
   *
   * state: before the first word; predictions: of guides, by name, which may lack some; forced: groups of ids, of which
   * captions shall contain one each.
   */
  async caption(state, predictions, forced = []) {
    const mask = new MaskedWords(this.bannedWords(predictions, forced));
    let found = this.rate(await beamSearch(this.model, state, this.rules, forced, mask), predictions, forced);
    const { beam_size: beamSize, num_captions: count } = this.search;
    if (this.selects) {
      const rules = { ...this.rules, diverse_groups: beamSize, num_captions: beamSize };
      const diverse = forced.length ? [] : await beamSearch(this.model, state, rules, [], mask);
      found = selectDistinct(found, this.rate(diverse, predictions, forced), count, this.content, forced);
    }
    return found.slice(0, count).map((each) => this.finish(each));
  }

  /** Ids that guides exclude and neutral captions lack. */
  bannedWords(predictions, forced) {
    const banned = new Set();
    for (const [name, guide] of this.guides) {
      if (!guide.bannedWords || !predictions[name]) continue;
      for (const id of guide.bannedWords(predictions[name], forced)) banned.add(id);
    }
    for (const id of this.gendered) banned.add(id);
    return banned;
  }

  /** Candidates with their ratings by guides, reranked; finished ones and those with most forced words stay ahead. */
  rate(found, predictions, forced) {
    const rating = [...this.guides].filter(([name, guide]) => guide.rate && predictions[name]);
    if (!rating.length) return found;
    const weight = this.reranks ? this.search.rerank_weight : 0;
    const rated = found.map((caption) => {
      const ratings = Object.fromEntries(
        rating.map(([name, guide]) => [name, guide.rate(predictions[name], caption.tokens)]),
      );
      const total = Object.values(ratings).reduce((sum, value) => sum + value, 0);
      return { ...caption, score: caption.score + weight * total, ratings };
    });
    if (!weight) return rated;
    const missing = ({ tokens }) => forced.filter((group) => !group.some((id) => tokens.includes(id))).length;
    return rated.sort(
      (one, other) =>
        missing(one) - missing(other) || other.finished - one.finished || other.score - one.score,
    );
  }

  finish(found) {
    const { tokens, logProb, finished, ratings = {} } = found;
    const mean = logProb / (tokens.length + Number(finished));
    const guide = [...this.guides.values()].find((each) => each.confidence);
    const confidence = guide ? guide.confidence(mean, ratings) : null;
    return { ...found, text: decode(this.words, tokens), ratings, confidence };
  }
}
