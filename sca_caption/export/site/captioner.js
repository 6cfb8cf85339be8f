// An exported captioner (its folder: sca_caption/export/onnx_folder.py) under onnxruntime-web.

import { CaptionPipeline } from "./pipeline.js";
import { logProbs } from "./search.js";
import { BOS, displayedWords } from "./vocabulary.js";

/**
 * The state of N partial captions of one image. `hidden` and `cell` are one row of d numbers per parent: captions that
 * share their words so far share one. `parent` holds the row of each caption, and `words` the words that led to it.
 */
class State {
  constructor(maps, hidden, cell, parent, words) {
    Object.assign(this, { maps, hidden, cell, parent, words });
  }

  select(rows) {
    const wanted = rows.map((row) => this.parent[row]);
    const parents = [...new Set(wanted)];
    const size = this.hidden.length / this.parents;
    const gather = (all) => {
      const some = new Float32Array(parents.length * size);
      parents.forEach((row, i) => some.set(all.subarray(row * size, (row + 1) * size), i * size));
      return some;
    };
    const parent = wanted.map((row) => parents.indexOf(row));
    return new State(this.maps, gather(this.hidden), gather(this.cell), parent, rows.map((row) => this.words[row]));
  }

  /** The number of parents; each is the parent of at least one caption. */
  get parents() {
    return Math.max(...this.parent) + 1;
  }
}

export class Captioner {
  /** described: model.json; graphs: the bytes of each of its graphs by name; ort: the library; provider: wasm or webgpu. */
  static async load(ort, described, graphs, provider) {
    const sessions = {};
    for (const name of Object.keys(described.inputs)) {
      sessions[name] = await ort.InferenceSession.create(graphs[name], { executionProviders: [provider] });
    }
    return new Captioner(ort, described, sessions);
  }

  constructor(ort, described, sessions) {
    Object.assign(this, { ort, described, sessions });
    this.attended = described.layers
      .map((layer, index) => ({ ...layer, output: `alpha_${index}` }))
      .filter(({ spatial }) => spatial);
    this.steps = new Map(); // of the present image: logits and attention by the words before them
  }

  /**
   * Captions of an image at model size, Uint8Array (3, S, S), best first, each as {text, score, confidence}; and of the
   * best one its words, {text, probability}, and per layer the spatial attention at each word, {layer, grid, spatial}.
   * options: of CaptionPipeline.
   */
  async caption(pixels, count, options = {}) {
    const { described } = this;
    const { state, predictions } = await this.start(pixels);
    const pipeline = new CaptionPipeline(this, described, {
      num_captions: Math.min(count, described.search.beam_size),
    }, options);
    const captions = await pipeline.caption(state, predictions);
    return {
      captions: captions.map(({ text, score, confidence }) => ({ text, score, confidence })),
      ...this.trace(captions[0].tokens),
    };
  }

  async release() {
    for (const session of Object.values(this.sessions)) await session.release();
  }

  /** The state before the first word, and the predictions of guides by name. */
  async start(pixels) {
    const { inputs, guides, transform } = this.described;
    const images = new this.ort.Tensor("uint8", pixels, [1, 3, transform.size, transform.size]);
    const values = await this.sessions.trunk.run({ images });
    this.steps.clear();
    const predicting = guides.filter(({ prediction }) => prediction);
    const { hidden, cell } = values;
    const maps = inputs.step.filter((name) => name in values && name !== "hidden" && name !== "cell");
    const kept = Object.fromEntries(maps.map((name) => [name, values[name]]));
    return {
      state: new State(kept, hidden.data, cell.data, [0], [[]]),
      predictions: Object.fromEntries(predicting.map(({ name, prediction }) => [name, values[prediction].data])),
    };
  }

  /** The logits after each of `tokens`: see search.js. */
  async step(tokens, before) {
    const { Tensor } = this.ort;
    const { parents } = before;
    const integers = (numbers) => new Tensor("int64", BigInt64Array.from(numbers, BigInt), [numbers.length]);
    const floats = (numbers) => new Tensor("float32", numbers, [parents, numbers.length / parents]);
    const found = await this.sessions.step.run(
      {
        tokens: integers(tokens),
        parent: integers(before.parent),
        image: new Tensor("int64", new BigInt64Array(parents), [parents]),
        hidden: floats(before.hidden),
        cell: floats(before.cell),
        ...before.maps,
      },
      ["logits", "hidden_after", "cell_after", ...this.attended.map(({ output }) => output)],
    );
    const words = tokens.map((token, i) => [...before.words[i], token]);
    const rowOf = ({ data, dims }, row) => data.subarray(row * dims[1], (row + 1) * dims[1]);
    words.forEach((each, row) => {
      const spatial = this.attended.map(({ output }) => rowOf(found[output], row));
      this.steps.set(String(each), { logits: rowOf(found.logits, row), spatial });
    });
    const state = new State(before.maps, found.hidden_after.data, found.cell_after.data, [...tokens.keys()], words);
    return { logits: found.logits.data, width: found.logits.dims[1], state };
  }

  /** The probability of each word of a caption that the search found, and the attention at it. */
  trace(tokens) {
    const steps = tokens.map((_, position) => this.steps.get(String([BOS, ...tokens.slice(0, position)])));
    const probability = (position) => Math.exp(logProbs(steps[position].logits)[tokens[position]]);
    const displayed = displayedWords(this.described.words, tokens);
    return {
      words: displayed.map(({ text, positions }) => ({ text, probability: probability(positions[0]) })),
      layers: this.attended.map(({ name, height, width }, index) => ({
        layer: name,
        grid: [height, width],
        spatial: displayed.map(({ positions }) => [...steps[positions[0]].spatial[index]]),
      })),
    };
  }
}
