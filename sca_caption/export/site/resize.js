// Pillow's bicubic resize (libImaging/Resample.c) of 8 bit pixels: each pass in whole numbers of 22 binary places and
// rounded to 8 bits, so that the network sees the very pixels that it sees in Python.

const PLACES = 22; // 32 bits less 8 of the pixel and 2 for overshoot
const HALF = 1 << (PLACES - 1);
const SUPPORT = 2; // pixels at either side, as long as nothing is made smaller
const A = -0.5;

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * A : 0;
}

/**
 * Which pixels of a line, and with which weights, make each of `size` pixels of its part from `start` to `end`.
 * Pixel i is the sum of weights[i * taps + k] * line[first[i] + k] over k < many[i].
 */
export function weightsOf(length, start, end, size) {
  const scale = (end - start) / size;
  const stretch = Math.max(scale, 1);
  const support = SUPPORT * stretch;
  const taps = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(size);
  const many = new Int32Array(size);
  const weights = new Int32Array(size * taps);
  for (let i = 0; i < size; i += 1) {
    const centre = start + (i + 0.5) * scale;
    first[i] = Math.max(0, Math.trunc(centre - support + 0.5));
    many[i] = Math.min(length, Math.trunc(centre + support + 0.5)) - first[i];
    const each = Array.from({ length: many[i] }, (_, k) => bicubic((k + first[i] - centre + 0.5) * (1 / stretch)));
    const sum = each.reduce((total, weight) => total + weight, 0);
    each.forEach((weight, k) => {
      const share = (sum ? weight / sum : weight) * 2 ** PLACES;
      weights[i * taps + k] = Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
  }
  return { first, many, weights, taps };
}

/** The part of a picture that becomes the square: [left, top, right, bottom]. mode: "resize" (all) or "crop" (centre). */
export function boxOf(width, height, mode) {
  if (mode !== "crop") return [0, 0, width, height];
  const side = Math.min(width, height);
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  return [left, top, left + side, top + side];
}

/**
 * By what Pillow makes a JPEG smaller while it decodes it, for a model of `size` pixels (`images.decode`): to 1/2, 1/4 or
 * 1/8 that is still twice that size. 1: not at all.
 */
export function draftFactor(width, height, size) {
  const scale = Math.min(Math.floor(width / (2 * size)), Math.floor(height / (2 * size)));
  return [8, 4, 2].find((factor) => scale >= factor) ?? 1;
}

/** {rows, width, height} of a picture whose pixels are the means of factor x factor of another's. */
export function reduced(rows, width, height, factor) {
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

/** Whether Pillow (13 and later) brings the columns to size before the rows: in pictures much taller than wide. */
const columnsFirst = (width, height, size) => height > size && height - size > 2 * (width - size);

/**
 * A picture at model size, planes of red, green and blue: Uint8Array (3, S, S).
 *
 * rows(top, count): RGBA of that many rows of the picture, so that it never has to be in memory whole.
 */
export function fitted(rows, width, height, { size, mode }, together = 64) {
  const [left, top, right, bottom] = boxOf(width, height, mode);
  const across = weightsOf(width, left, right, size);
  const down = weightsOf(height, top, bottom, size);
  const tall = columnsFirst(width, height, size);
  const length = 3 * (tall ? width : size); // of a line between the two passes
  const sums = new Int32Array(size * length).fill(HALF);
  const line = new Uint8Array(length);
  const end = down.first[size - 1] + down.many[size - 1];
  let lowest = 0; // of the lines that rows still to come are part of
  for (let start = down.first[0]; start < end; start += together) {
    const count = Math.min(together, end - start);
    const pixels = rows(start, count);
    for (let row = 0; row < count; row += 1) {
      const y = start + row;
      if (tall) narrowed(pixels, row * width * 4, null, line);
      else narrowed(pixels, row * width * 4, across, line);
      while (down.first[lowest] + down.many[lowest] <= y) lowest += 1;
      for (let i = lowest; i < size && down.first[i] <= y; i += 1) {
        const weight = down.weights[i * down.taps + y - down.first[i]];
        for (let x = 0, into = i * length; x < length; x += 1, into += 1) sums[into] += line[x] * weight;
      }
    }
  }
  const out = new Uint8Array(3 * size * size);
  const last = new Uint8Array(3 * size);
  for (let y = 0; y < size; y += 1) {
    const between = sums.subarray(y * length, (y + 1) * length).map(clipped);
    if (tall) narrowed(between, 0, across, last, 3);
    const final = tall ? last : between;
    for (let i = 0; i < final.length; i += 1) out[(i % 3) * size * size + y * size + Math.trunc(i / 3)] = final[i];
  }
  return out;
}

/** A line of pixels of `stride` bytes, from byte `from` on, brought to size (or as it is), as RGB into `line`. */
function narrowed(pixels, from, weighting, line, stride = 4) {
  if (!weighting) {
    for (let i = 0; i < line.length; i += 1) line[i] = pixels[from + Math.trunc(i / 3) * stride + (i % 3)];
    return;
  }
  const { first, many, weights, taps } = weighting;
  for (let x = 0; x < first.length; x += 1) {
    let [red, green, blue] = [HALF, HALF, HALF];
    let at = from + first[x] * stride;
    for (let k = 0; k < many[x]; k += 1, at += stride) {
      const weight = weights[x * taps + k];
      red += pixels[at] * weight;
      green += pixels[at + 1] * weight;
      blue += pixels[at + 2] * weight;
    }
    line[x * 3] = clipped(red);
    line[x * 3 + 1] = clipped(green);
    line[x * 3 + 2] = clipped(blue);
  }
}

const clipped = (sum) => Math.min(255, Math.max(0, sum >> PLACES));
