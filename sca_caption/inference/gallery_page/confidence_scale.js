// Confidence on all pages: the levels of sca_caption/inference/confidence_scale.py, which completes this file.

const LEVELS = {{levels}};

/** The whole per cent that is shown of a confidence from 0 to 1. */
export const percentOf = (confidence) => Math.floor(100 * Number(confidence.toFixed({{digits}})) + 0.5);

/** {name, minimum, words} of its level. */
export const levelOf = (confidence) => LEVELS.find(({ minimum }) => percentOf(confidence) >= minimum);

/** A meter with the confidence in per cent and its level, for a line of text. */
export function confidenceLabel(confidence) {
  const { name } = levelOf(confidence), percent = percentOf(confidence);
  const [label, meter, fill] = ["span", "span", "i"].map((kind) => document.createElement(kind));
  label.className = `confidence-label confidence-${name}`;
  meter.className = "meter";
  fill.style.width = `${100 * confidence}%`;
  meter.append(fill);
  label.append(meter, ` ${percent || "under 1"}\u00a0% ${name}`);
  return label;
}

/** The same with what it means. */
export function confidenceText(confidence) {
  const label = confidenceLabel(confidence), words = document.createElement("b");
  words.textContent = levelOf(confidence).words;
  label.lastChild.replaceWith(
    " ", words, `: better than this model's median caption with probability ${percentOf(confidence) || "under 1"}\u00a0%`,
  );
  return label;
}
