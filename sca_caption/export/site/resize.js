// Pillow's bicubic resize of 8-bit images (libImaging/Resample.c). Weights are fixed-point numbers with 22 fractional bits,
// and each pass is rounded to 8 bits, so that the network reads exactly the pixels that it reads in Python.

const BITS = 22; // 32 bits less 8 for the pixel and 2 for overshoot
const HALF = 1 << (BITS - 1);
const SUPPORT = 2; // pixels on each side, unless the image is made smaller
const A = -0.5;

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * A : 0;
}

/**
 * The weights that resize the part of a row from `start` to `end` to `size` pixels.
 * Pixel i is the sum of weights[i * taps + k] * row[first[i] + k] over k < counts[i]. length: pixels of the whole row.
 */
export function resampleWeights(length, start, end, size) {
  const scale = (end - start) / size;
  const stretch = Math.max(scale, 1);
  const support = SUPPORT * stretch;
  const taps = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(size);
  const counts = new Int32Array(size);
  const weights = new Int32Array(size * taps);
  for (let i = 0; i < size; i += 1) {
    const centre = start + (i + 0.5) * scale;
    first[i] = Math.max(0, Math.trunc(centre - support + 0.5));
    counts[i] = Math.min(length, Math.trunc(centre + support + 0.5)) - first[i];
    const each = Array.from({ length: counts[i] }, (_, k) => bicubic((k + first[i] - centre + 0.5) * (1 / stretch)));
    const sum = each.reduce((total, weight) => total + weight, 0);
    each.forEach((weight, k) => {
      const exact = (sum ? weight / sum : weight) * 2 ** BITS;
      weights[i * taps + k] = Math.trunc(exact < 0 ? exact - 0.5 : exact + 0.5);
    });
  }
  return { first, counts, weights, taps };
}

/** The part of an image that the model sees: [left, top, right, bottom]. mode: "resize" (all) or "crop" (centre). */
export function cropBox(width, height, mode) {
  if (mode !== "crop") return [0, 0, width, height];
  const side = Math.min(width, height);
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  return [left, top, left + side, top + side];
}

/**
 * The factor, 8, 4, 2 or 1, by which Pillow reduces a JPEG while it decodes it (`images.decode`): the largest that leaves
 * at least twice the model's `size`.
 */
export function draftFactor(width, height, size) {
  const scale = Math.min(Math.floor(width / (2 * size)), Math.floor(height / (2 * size)));
  return [8, 4, 2].find((factor) => scale >= factor) ?? 1;
}

/** Reduce an image: each pixel is the mean of factor x factor pixels. Returns {rows, width, height}. */
export function reduce(rows, width, height, factor) {
  const small = { width: Math.ceil(width / factor), height: Math.ceil(height / factor) };
  small.rows = (top, count) => {
    const out = new Uint8ClampedArray(small.width * count * 4);
    const lines = Math.min(count * factor, height - top * factor);
    const pixels = rows(top * factor, lines);
    for (let y = 0; y < count; y += 1) {
      const high = Math.min(factor, lines - y * factor);
      for (let x = 0; x < small.width; x += 1) {
        const wide = Math.min(factor, width - x * factor);
        for (let c = 0; c < 3; c += 1) {
          let sum = 0;
          for (let k = 0; k < high * wide; k += 1) {
            sum += pixels[((y * factor + Math.trunc(k / wide)) * width + x * factor + (k % wide)) * 4 + c];
          }
          out[(y * small.width + x) * 4 + c] = Math.trunc(sum / (high * wide) + 0.5);
        }
      }
    }
    return out;
  };
  return small;
}

/** Whether Pillow (13 and later) resizes columns before rows, as for images much taller than wide. */
const columnsFirst = (width, height, size) => height > size && height - size > 2 * (width - size);

/**
 * Resize an image to model size: Uint8Array (3, S, S), RGB.
 *
 * rows(top, count): RGBA of `count` rows of the image, from row `top`; the image is read `batch` rows at a time, so it
 * need not be in memory as a whole.
 */
export function fit(rows, width, height, { size, mode }, batch = 64) {
  const [left, top, right, bottom] = cropBox(width, height, mode);
  const across = resampleWeights(width, left, right, size);
  const down = resampleWeights(height, top, bottom, size);
  const tall = columnsFirst(width, height, size);
  const length = 3 * (tall ? width : size); // of a row between the two passes
  const sums = new Int32Array(size * length).fill(HALF);
  const line = new Uint8Array(length); // one row after the first pass
  const end = down.first[size - 1] + down.counts[size - 1];
  let lowest = 0; // first output row that is not complete
  for (let start = down.first[0]; start < end; start += batch) {
    const count = Math.min(batch, end - start);
    const pixels = rows(start, count);
    for (let row = 0; row < count; row += 1) {
      const y = start + row;
      if (tall) resizeRow(pixels, row * width * 4, null, line);
      else resizeRow(pixels, row * width * 4, across, line);
      while (down.first[lowest] + down.counts[lowest] <= y) lowest += 1;
      for (let i = lowest; i < size && down.first[i] <= y; i += 1) {
        const weight = down.weights[i * down.taps + y - down.first[i]];
        for (let x = 0, into = i * length; x < length; x += 1, into += 1) sums[into] += line[x] * weight;
      }
    }
  }
  const out = new Uint8Array(3 * size * size);
  const last = new Uint8Array(3 * size);
  for (let y = 0; y < size; y += 1) {
    const between = sums.subarray(y * length, (y + 1) * length).map(clip);
    if (tall) resizeRow(between, 0, across, last, 3);
    const final = tall ? last : between;
    for (let i = 0; i < final.length; i += 1) out[(i % 3) * size * size + y * size + Math.trunc(i / 3)] = final[i];
  }
  return out;
}

/** Write one row as RGB into `line`, resized if `weighting` is given. It starts at byte `from`; pixels have `stride` bytes. */
function resizeRow(pixels, from, weighting, line, stride = 4) {
  if (!weighting) {
    for (let i = 0; i < line.length; i += 1) line[i] = pixels[from + Math.trunc(i / 3) * stride + (i % 3)];
    return;
  }
  const { first, counts, weights, taps } = weighting;
  for (let x = 0; x < first.length; x += 1) {
    let [red, green, blue] = [HALF, HALF, HALF];
    let at = from + first[x] * stride;
    for (let k = 0; k < counts[x]; k += 1, at += stride) {
      const weight = weights[x * taps + k];
      red += pixels[at] * weight;
      green += pixels[at + 1] * weight;
      blue += pixels[at + 2] * weight;
    }
    line[x * 3] = clip(red);
    line[x * 3 + 1] = clip(green);
    line[x * 3 + 2] = clip(blue);
  }
}

const clip = (sum) => Math.min(255, Math.max(0, sum >> BITS));
