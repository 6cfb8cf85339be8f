// Masks that exclude words from a search: sca_caption/guidance/masking.py in JavaScript, for one image.
//
// A mask is applied to log-probabilities after they are normalised, so a caption's log-probability does not depend on
// what was excluded.

/** Words that captions must not contain; banned: Set of ids. */
export class MaskedWords {
  constructor(banned) {
    this.banned = banned;
  }

  /** Ids of the words that must not follow the word `last`. */
  excluded(last) {
    return [...this.banned];
  }
}

/** The same for captions that must contain an inserted noun, which also excludes ungrammatical neighbours of it. */
export class GrammaticalWords extends MaskedWords {
  /**
   * inserted: Set of ids, the forms of the noun; disagreeing: pairs of a word and the forms that do not agree with it
   * ("a" before a plural); noCompound: words that do not follow an inserted noun ("a laptop bench").
   */
  constructor(banned, inserted, disagreeing, noCompound) {
    super(banned);
    Object.assign(this, { inserted, noCompound });
    this.disagreeing = new Map(disagreeing.map(([after, forms]) => [after, forms.filter((id) => inserted.has(id))]));
  }

  excluded(last) {
    const compound = this.inserted.has(last) ? this.noCompound : [];
    return [...this.banned, ...(this.disagreeing.get(last) ?? []), ...compound];
  }
}
