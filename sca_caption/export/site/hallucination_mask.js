// Hallucination mask: sca_caption/guidance/hallucination.py in JavaScript.

/** Excludes the words of absent subjects from captions of images without a primary subject. */
export class HallucinationMask {
  /** rules: per subject words (ids), threshold and primary. */
  constructor({ rules }) {
    this.rules = rules;
  }

  /**
   * Ids to exclude, from the mention rate of each subject; forced words are never banned.
   *
   * If a primary subject is present, nothing is masked; otherwise the words of every absent subject are.
   */
  bannedWords(predicted, forced) {
    const isAbsent = this.rules.map(({ threshold }, subject) => predicted[subject] < Math.fround(threshold));
    if (this.rules.some(({ primary }, subject) => primary && !isAbsent[subject])) return [];
    const needed = new Set(forced.flat());
    return this.rules.flatMap(({ words }, subject) => (isAbsent[subject] ? words : [])).filter((id) => !needed.has(id));
  }
}
