// Captions as CSV and JSON, with the fields that caption.py --output writes.

const FIELDS = ["image_id", "file_name", "caption", "score", "confidence"];

/** cards: {file, result: {captions}} -> one row per photograph, numbered from 1 as in caption.py. */
export function rowsOf(cards) {
  return cards.map(({ file, result }, index) => {
    const { text, score, confidence } = result.captions[0];
    const row = { image_id: index + 1, file_name: file.name, caption: text, score: rounded(score) };
    return confidence === null ? row : { ...row, confidence: rounded(confidence) };
  });
}

const rounded = (value) => Number(value.toFixed(4));

export const jsonOf = (cards) => `${JSON.stringify(rowsOf(cards), null, 1)}\n`;

export function csvOf(cards) {
  const rows = rowsOf(cards);
  const fields = FIELDS.filter((field) => rows[0] && field in rows[0]);
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return [fields, ...rows.map((row) => fields.map((field) => row[field]))]
    .map((line) => `${line.map(quoted).join(",")}\n`)
    .join("");
}
