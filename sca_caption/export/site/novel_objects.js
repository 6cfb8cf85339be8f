// Novel object captioning: sca_caption/guidance/novel_objects.py in JavaScript.

import { GrammaticalWords } from "./masking.js";

/** The nouns that captions can be made to contain, and the grammar of doing so. */
export class ObjectLexicon {
  /** described: the fields of model.json; words: every word by id. */
  constructor(described, words) {
    Object.assign(this, described);
    this.ids = new Map(words.map((word, id) => [word, id]));
  }

  /** Insert the most probable noun if the caption lacks it; predicted: the probability of each noun. */
  insertion(predicted, caption, forced, banned) {
    const highest = Math.max(...predicted);
    if (highest < this.threshold || forced.length >= this.max_groups) return null;
    const noun = this.mostProbable(predicted);
    const { forms, group } = this.nouns[noun];
    if (isIn(forms, caption)) return null;
    const excluded = new Set([...banned, ...this.otherNouns(noun, predicted)]);
    for (const id of [...forced.flat(), ...group]) excluded.delete(id);
    const mask = new GrammaticalWords(excluded, new Set(group), this.disagreeing, this.no_compound);
    return { words: group, mask, margin: this.margin + this.margin_per_probability * highest };
  }

  /** The most probable noun, or a more specific one (rooster for bird) that is nearly as probable. */
  mostProbable(predicted) {
    const best = predicted.indexOf(Math.max(...predicted));
    const general = new Set(this.nouns[best].classes);
    const lowest = Math.fround(Math.fround(this.specific_share) * predicted[best]);
    let found = best;
    let fewest = Infinity;
    this.nouns.forEach(({ classes }, noun) => {
      const isSpecific = classes.length < general.size && classes.every((each) => general.has(each));
      if (isSpecific && predicted[noun] >= lowest && classes.length < fewest) [found, fewest] = [noun, classes.length];
    });
    return found;
  }

  /** Ids of words for other objects of the noun's kind that are not in the image. */
  otherNouns(noun, predicted) {
    const inserted = this.nouns[noun];
    const forms = this.nouns.flatMap((other, column) => {
      const isSameKind = inserted.kind && other.kind === inserted.kind;
      const isOther = !other.classes.some((each) => inserted.classes.includes(each));
      return isSameKind && isOther && predicted[column] < this.absent ? other.forms : [];
    });
    return forms.filter((form) => this.ids.has(form) && !inserted.forms.includes(form)).map((form) => this.ids.get(form));
  }
}

/** Whether a caption has one of a noun's forms, as whole words. */
export function isIn(forms, caption) {
  const escaped = forms.map((form) => form.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  return new RegExp(`(?<![\\p{L}\\p{N}_-])(?:${escaped})(?![\\p{L}\\p{N}_-])`, "u").test(caption);
}
