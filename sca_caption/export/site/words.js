// Guidance by predicted words: sca_caption/guidance/words.py in JavaScript.

/** Excludes words of groups that few captions would mention. */
export class WordGuide {
  /** described: the fields of the guide in model.json. */
  constructor({ rules, gender }) {
    Object.assign(this, { rules, gender });
  }

  /** Ids to exclude, from the probability of each word; forced words are never banned. */
  bannedWords(predicted, forced) {
    const sumOf = (ids) => Math.fround(ids.reduce((sum, id) => sum + predicted[id], 0));
    const banned = this.rules.flatMap(({ words, threshold }) => (sumOf(words) < Math.fround(threshold) ? words : []));
    if (this.gender) {
      const [male, female] = [sumOf(this.gender.male), sumOf(this.gender.female)];
      const share = Math.fround(Math.max(male, female) / (male + female));
      const isSure = share >= Math.fround(this.gender.threshold);
      if (!(isSure && male > female)) banned.push(...this.gender.male);
      if (!(isSure && female > male)) banned.push(...this.gender.female);
    }
    const needed = new Set(forced.flat());
    return banned.filter((id) => !needed.has(id));
  }
}
