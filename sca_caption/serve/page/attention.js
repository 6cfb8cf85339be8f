// Attention maps drawn over a photograph. A map is a list of H * W weights, by rows, that sum to 1; what is drawn is how
// many times the even share 1 / (H W) a place has, on one logarithmic scale for all words, from 1 (nothing) to `most`.

const SIDE = 144; // pixels of the smooth map, which the browser stretches over the photograph
const COLOURS = [[126, 3, 168], [184, 50, 137], [229, 107, 93], [252, 172, 50], [245, 250, 120]]; // as plasma's
const LEAST_MOST = 4; // a caption that looks nowhere in particular should not look as if it did

/** Weights and places of the four neighbours of each of `count` positions along `cells` cells (Catmull-Rom). */
function taps(cells, count) {
  return Array.from({ length: count }, (_, i) => {
    const at = ((i + 0.5) * cells) / count - 0.5;
    const first = Math.floor(at);
    const t = at - first;
    const weights = [
      ((-t + 2) * t - 1) * t / 2, ((3 * t - 5) * t * t + 2) / 2, ((-3 * t + 4) * t + 1) * t / 2, (t - 1) * t * t / 2,
    ];
    const places = [-1, 0, 1, 2].map((step) => Math.min(cells - 1, Math.max(0, first + step)));
    return [weights, places];
  });
}

/** A smooth map of side * side values from one of rows * columns, which it equals at the cells' centres. */
export function upsample(map, rows, columns, side = SIDE) {
  const across = taps(columns, side), down = taps(rows, side);
  const wide = new Float32Array(rows * side);
  for (let y = 0; y < rows; y++) {
    across.forEach(([weights, places], x) => {
      for (let k = 0; k < 4; k++) wide[y * side + x] += weights[k] * map[y * columns + places[k]];
    });
  }
  const smooth = new Float32Array(side * side);
  down.forEach(([weights, places], y) => {
    for (let x = 0; x < side; x++) {
      for (let k = 0; k < 4; k++) smooth[y * side + x] += weights[k] * wide[places[k] * side + x];
    }
  });
  return smooth;
}

/** The greatest multiple of the even share that any place has at any word, of all layers. */
export function mostOf(layers) {
  const found = layers.filter((layer) => layer.spatial)
    .map((layer) => layer.grid[0] * layer.grid[1] * Math.max(...layer.spatial.flat()));
  return Math.max(LEAST_MOST, ...found);
}

/** How strongly `times` the even share is drawn, 0 to 1. */
export function strength(times, most) {
  return times <= 1 ? 0 : Math.min(1, Math.log(times) / Math.log(most));
}

/** Red, green, blue and opacity of a strength, 0 to 255. */
export function colour(value) {
  const place = value * (COLOURS.length - 1);
  const below = Math.min(COLOURS.length - 2, Math.floor(place));
  const mixed = COLOURS[below].map((from, k) => from + (place - below) * (COLOURS[below + 1][k] - from));
  return [...mixed, 225 * Math.min(1, value * 2)];
}

/** The colours from 1 to `most` as a CSS gradient, over the grey of a photograph. */
export function gradient() {
  const stops = Array.from({ length: 9 }, (_, i) => {
    const [red, green, blue, opacity] = colour(i / 8);
    return `rgb(${red} ${green} ${blue} / ${opacity / 255})`;
  });
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** In words, where a map is greatest: "upper left", "centre". */
export function whereabouts(map, rows, columns) {
  const best = map.indexOf(Math.max(...map));
  const third = (place, count) => Math.min(2, Math.floor((3 * (place + 0.5)) / count));
  const down = ["upper ", "", "lower "][third(Math.floor(best / columns), rows)];
  const across = ["left", "centre", "right"][third(best % columns, columns)];
  return down + across;
}

/** Shows maps on a canvas, one fading into the next. */
export class Heat {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.shown = new Float32Array(SIDE * SIDE); // strengths
    canvas.width = canvas.height = SIDE;
  }

  /** Fade to the strengths of a map, or to nothing. */
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
