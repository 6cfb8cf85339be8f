// Attention maps drawn over a photograph. A map is a list of H * W weights, row by row, that sum to 1. The colours show the
// weights as multiples of uniform attention, 1 / (H W), on one logarithmic scale for all words from 1 (transparent) to `most`.

const SIDE = 144; // side of the upsampled map in pixels; the browser scales it to the photograph
const COLOURS = [[126, 3, 168], [184, 50, 137], [229, 107, 93], [252, 172, 50], [245, 250, 120]]; // from matplotlib's plasma
const MIN_SCALE_MAX = 4; // lower bound of `most`, so that nearly uniform attention looks uniform

/** Catmull-Rom interpolation from `cells` to `count` samples: weights and indices of the four neighbours of each sample. */
function taps(cells, count) {
  return Array.from({ length: count }, (_, i) => {
    const at = ((i + 0.5) * cells) / count - 0.5;
    const first = Math.floor(at);
    const t = at - first;
    const weights = [
      ((-t + 2) * t - 1) * t / 2, ((3 * t - 5) * t * t + 2) / 2, ((-3 * t + 4) * t + 1) * t / 2, (t - 1) * t * t / 2,
    ];
    const indices = [-1, 0, 1, 2].map((step) => Math.min(cells - 1, Math.max(0, first + step)));
    return [weights, indices];
  });
}

/** Upsample a map of rows * columns to side * side values. The values at the centres of the cells are kept. */
export function upsample(map, rows, columns, side = SIDE) {
  const across = taps(columns, side), down = taps(rows, side);
  const wide = new Float32Array(rows * side);
  for (let y = 0; y < rows; y++) {
    across.forEach(([weights, indices], x) => {
      for (let k = 0; k < 4; k++) wide[y * side + x] += weights[k] * map[y * columns + indices[k]];
    });
  }
  const smooth = new Float32Array(side * side);
  down.forEach(([weights, indices], y) => {
    for (let x = 0; x < side; x++) {
      for (let k = 0; k < 4; k++) smooth[y * side + x] += weights[k] * wide[indices[k] * side + x];
    }
  });
  return smooth;
}

/** The largest weight at any word in any layer, as a multiple of uniform attention; at least MIN_SCALE_MAX. */
export function maxMultiple(layers) {
  const found = layers.filter((layer) => layer.spatial)
    .map((layer) => layer.grid[0] * layer.grid[1] * Math.max(...layer.spatial.flat()));
  return Math.max(MIN_SCALE_MAX, ...found);
}

/** Position of a multiple of uniform attention on the colour scale, 0 to 1. */
export function strength(times, most) {
  return times <= 1 ? 0 : Math.min(1, Math.log(times) / Math.log(most));
}

/** Red, green, blue and opacity, 0 to 255, of a position on the colour scale. */
export function colour(value) {
  const position = value * (COLOURS.length - 1);
  const below = Math.min(COLOURS.length - 2, Math.floor(position));
  const mixed = COLOURS[below].map((from, k) => from + (position - below) * (COLOURS[below + 1][k] - from));
  return [...mixed, 225 * Math.min(1, value * 2)];
}

/** The colour scale as a CSS gradient. */
export function gradient() {
  const stops = Array.from({ length: 9 }, (_, i) => {
    const [red, green, blue, opacity] = colour(i / 8);
    return `rgb(${red} ${green} ${blue} / ${opacity / 255})`;
  });
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** Name of the position at which a map is largest, e.g. "upper left" or "centre". */
export function positionName(map, rows, columns) {
  const best = map.indexOf(Math.max(...map));
  const third = (index, count) => Math.min(2, Math.floor((3 * (index + 0.5)) / count));
  const down = ["upper ", "", "lower "][third(Math.floor(best / columns), rows)];
  const across = ["left", "centre", "right"][third(best % columns, columns)];
  return down + across;
}

/** Draws maps on a canvas, with a transition from one to the next. */
export class Heat {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.shown = new Float32Array(SIDE * SIDE); // positions on the colour scale
    canvas.width = canvas.height = SIDE;
  }

  /** Fade to a map; null fades out. */
  show(map, rows, columns, most) {
    const from = this.shown.slice();
    const to = map ? upsample(map, rows, columns).map((value) => strength(value * rows * columns, most)) : from.map(() => 0);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const began = performance.now();
    cancelAnimationFrame(this.frame);
    const step = (now) => {
      const share = still ? 1 : Math.min(1, Math.max(0, (now - began) / 180));
      this.shown = to.map((value, i) => from[i] + share * (value - from[i]));
      this.draw();
      if (share < 1) this.frame = requestAnimationFrame(step);
    };
    step(began);
  }

  draw() {
    const image = this.context.createImageData(SIDE, SIDE);
    this.shown.forEach((value, i) => image.data.set(colour(value), 4 * i));
    this.context.putImageData(image, 0, 0);
  }
}
