// Word ids and captions as text: sca_caption/vocab.py in JavaScript.

export const PAD = 0;
export const BOS = 1;
export const EOS = 2;
export const UNK = 3;
const CLITICS = new Set(["'s", "'re", "'ll", "'ve", "'m", "'d", "n't"]); // written onto the word before them

/** The words of a caption as they are displayed ("man", "'s" -> "man's"), each with the positions of its ids. */
export function displayedWords(words, ids) {
  const displayed = [];
  for (const [position, id] of ids.entries()) {
    if (id === EOS) break;
    if (id === PAD || id === BOS) continue;
    if (displayed.length && CLITICS.has(words[id])) {
      displayed.at(-1).text += words[id];
      displayed.at(-1).positions.push(position);
    } else displayed.push({ text: words[id], positions: [position] });
  }
  return displayed;
}

/** The caption that ids spell. */
export const decode = (words, ids) =>
  displayedWords(words, ids)
    .map(({ text }) => text)
    .join(" ");
