// An exported captioner (sca_caption/export.py says what its folder holds) at work under onnxruntime-web.

import { BOS } from "./search.js";
import { captionsOf, confidence, sentence, spoken } from "./naming.js";

/** Where N captions in the making stand, all of one image: `hidden` and `cell` are N rows of d numbers. */
class State {
  constructor(maps, hidden, cell, rows) {
    Object.assign(this, { maps, hidden, cell, rows });
  }

  select(rows) {
    const size = this.hidden.length / this.rows;
    const chosen = (all) => {
      const some = new Float32Array(rows.length * size);
      rows.forEach((row, i) => some.set(all.subarray(row * size, (row + 1) * size), i * size));
      return some;
    };
    return new State(this.maps, chosen(this.hidden), chosen(this.cell), rows.length);
  }
}

export class Captioner {
  /** described: model.json; graphs: the bytes of each of its graphs by name; ort: the library. */
  static async load(ort, described, graphs) {
    const sessions = {};
    for (const name of Object.keys(described.inputs)) {
      sessions[name] = await ort.InferenceSession.create(graphs[name], { executionProviders: ["wasm"] });
      delete graphs[name]; // the library has its own copy
    }
    return new Captioner(ort, described, sessions);
  }

  constructor(ort, described, sessions) {
    const { search, never_last: neverLast, joining } = described;
    Object.assign(this, { ort, described, sessions });
    this.settings = {
      ...search,
      never_last: search.sound_endings ? neverLast : [],
      joining: search.block_ngrams ? joining : [],
    };
  }

  /**
   * Captions of a picture at model size, Uint8Array (3, S, S), best first, each as {text, score, confidence}; and of the
   * best one its words, {text, probability}, and what was looked at for each, {layer, grid, spatial} of every layer.
   */
  async caption(pixels, count) {
    const { described } = this;
    const { size } = described.transform;
    const images = new this.ort.Tensor("uint8", pixels, [1, 3, size, size]);
    const { probabilities, seen } = described.naming ? await this.sessions.objects.run({ images }) : {};
    const ranked = described.inputs.trunk.includes("seen");
    const { hidden, cell, expected, shares, ...maps } = await this.sessions.trunk.run(ranked ? { images, seen } : { images });
    const start = new State(maps, hidden.data, cell.data, 1);
    const settings = { ...this.settings, num_captions: Math.min(count, this.settings.beam_size) };
    const seenIn = { probabilities: probabilities?.data, expected: expected?.data, shares: shares?.data };
    const found = await captionsOf(described, this, start, seenIn, settings);
    const captions = found.map((each) => ({
      text: sentence(described.words, each.tokens),
      score: each.score,
      confidence: confidence(described.calibration, each),
    }));
    return { captions, ...(await this.trace(start, found[0].tokens)) };
  }

  /** One word further, for each of `tokens`: see search.js. attention: also what was attended, by name of the output. */
  async step(tokens, before, attention = []) {
    const { Tensor } = this.ort;
    const rows = tokens.length;
    const whole = (numbers) => new Tensor("int64", BigInt64Array.from(numbers, BigInt), [rows]);
    const floats = (numbers) => new Tensor("float32", numbers, [rows, numbers.length / rows]);
    const found = await this.sessions.step.run(
      {
        tokens: whole(tokens),
        image: whole(tokens.map(() => 0)),
        hidden: floats(before.hidden),
        cell: floats(before.cell),
        ...before.maps,
      },
      ["logits", "hidden_after", "cell_after", ...attention],
    );
    const state = new State(before.maps, found.hidden_after.data, found.cell_after.data, rows);
    return { logits: found.logits.data, width: found.logits.dims[1], state, found };
  }

  /** Have the model say a caption, and note what it attends. */
  async trace(start, tokens) {
    const { layers, words } = this.described;
    const numbered = layers.map((layer, index) => ({ ...layer, output: `alpha_${index}` }));
    const looking = numbered.filter(({ spatial }) => spatial);
    const outputs = looking.map(({ output }) => output);
    const maps = looking.map(() => []);
    const probabilities = [];
    let state = start;
    let last = BOS;
    for (const token of tokens) {
      const said = await this.step([last], state, outputs);
      outputs.forEach((output, index) => maps[index].push([...said.found[output].data]));
      probabilities.push(probabilityOf(said.logits, token));
      [state, last] = [said.state, token];
    }
    const shown = spoken(words, tokens);
    return {
      words: shown.map(({ text, places }) => ({ text, probability: probabilities[places[0]] })),
      layers: looking.map(({ name, height, width }, index) => ({
        layer: name,
        grid: [height, width],
        spatial: shown.map(({ places }) => maps[index][places[0]]),
      })),
    };
  }
}

function probabilityOf(logits, token) {
  const most = logits.reduce((one, other) => Math.max(one, other), -Infinity);
  return Math.exp(logits[token] - most) / logits.reduce((sum, value) => sum + Math.exp(value - most), 0);
}
