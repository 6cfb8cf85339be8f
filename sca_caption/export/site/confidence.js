// Calibrated confidence: sca_caption/guidance/confidence.py in JavaScript.

export class ConfidenceGuide {
  /** The fields of model.json: slope, intercept, and ratings, a weight per guide. */
  constructor({ slope, intercept, ratings }) {
    Object.assign(this, { slope, intercept, weights: Object.entries(ratings) });
  }

  /** The probability that a caption is better than the median. */
  confidence(meanLogProb, ratings) {
    const rated = this.weights.reduce((sum, [name, weight]) => sum + weight * (ratings[name] ?? 0), 0);
    return 1 / (1 + Math.exp(-(this.slope * meanLogProb + rated + this.intercept)));
  }
}
