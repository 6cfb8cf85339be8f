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
