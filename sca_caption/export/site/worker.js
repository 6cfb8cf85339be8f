// The worker that captions photographs, so that the page responds meanwhile.
//
// In:  {kind: "load", base, files: [{path, bytes}], dtype, runtime, processor}, then {kind: "caption", id, file, neutral}
//      per photograph, and {kind: "forget", ids} for photographs that were removed from the page.
// Out: {kind: "progress", loaded, total}, then {kind: "ready"}, or {kind: "failed", reason} if the model cannot be
//      loaded; per photograph {kind: "begun", id}, then {kind: "captioned", id, ...}, or {kind: "refused", id, reason}
//      if the file is no image; {kind: "processor", name: "gpu" or "cpu", ...} when it changes.

import { Captioner } from "./captioner.js";
import { timeIfBetter, TRIED_AFTER } from "./gpu.js";
import { PhotographError, readPhotograph } from "./photograph.js";
import { threadCount } from "./threads.js";

const FORMAT_VERSION = 6; // of model.json, as in sca_caption/export/model_json.py
const CAPTIONS = 3; // per photograph: the best and two more
const RUNTIMES = {
  wasm: () => import("./runtime/ort.wasm.bundle.min.mjs"),
  webgpu: () => import("./runtime/ort.jspi.bundle.min.mjs"),
};
let captioner; // on the CPU
let onGpu = null; // another one, if it is better
let loadOnGpu = null; // until it is tried
let wantedProcessor;
let done = 0; // photographs
let last = Promise.resolve(); // requests are answered one after another
const forgotten = new Set();

onmessage = ({ data }) => {
  if (data.kind === "forget") {
    for (const id of data.ids) forgotten.add(id);
    return;
  }
  const work = data.kind === "load" ? () => load(data) : () => caption(data);
  last = last.then(work);
};

async function load({ base, files, dtype, runtime, processor }) {
  try {
    const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
    let loaded = 0;
    const contents = {};
    for (const { path, bytes } of files) {
      contents[path] = await fetched(new URL(path, base), bytes, (count) => {
        loaded += count;
        postMessage({ kind: "progress", loaded: Math.min(loaded, total), total });
      });
    }
    const described = JSON.parse(new TextDecoder().decode(contents["model/model.json"]));
    if (described.format_version !== FORMAT_VERSION) {
      const found = `model.json has format ${described.format_version}`;
      throw new Error(`${found}, this page reads ${FORMAT_VERSION}; export the model again`);
    }
    const ort = await RUNTIMES[runtime]();
    ort.env.wasm.wasmBinary = contents[files.find(({ path }) => path.endsWith(".wasm")).path].buffer;
    ort.env.wasm.numThreads = threadCount(crossOriginIsolated, navigator.hardwareConcurrency);
    ort.env.logLevel = "error";
    const folder = dtype === "float32" ? "model" : `model/${dtype}`;
    const graphs = {};
    for (const name of Object.keys(described.inputs)) graphs[name] = contents[`${folder}/${name}.onnx`];
    captioner = await Captioner.load(ort, described, graphs, "wasm");
    wantedProcessor = processor;
    if (runtime === "webgpu") loadOnGpu = () => Captioner.load(ort, described, graphs, "webgpu");
    postMessage({ kind: "ready" });
  } catch (error) {
    postMessage({ kind: "failed", reason: String(error.message ?? error) });
  }
}

async function fetched(address, expected, count) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address.pathname} is not on the server (${answer.status}); export the site again`);
  const content = new Uint8Array(expected);
  let at = 0;
  const reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > expected) break;
    content.set(part.value, at);
    at += part.value.length;
    count(part.value.length);
  }
  if (at !== expected) throw new Error(`${address.pathname} has another size than the exported file; export the site again`);
  return content;
}

async function caption({ id, file, neutral }) {
  if (!captioner || forgotten.has(id)) return;
  postMessage({ kind: "begun", id });
  try {
    const { pixels, ...shown } = await readPhotograph(file, captioner.described.transform);
    const began = performance.now();
    const captionBy = (any) => any.caption(pixels, CAPTIONS, { neutral });
    const found = (await captionOnGpu(captionBy)) ?? (await captionBy(captioner));
    const milliseconds = performance.now() - began;
    postMessage({ kind: "captioned", id, ...shown, ...found });
    done += 1;
    if (loadOnGpu && done === TRIED_AFTER) await tryGpu(captionBy, { ...found, milliseconds });
  } catch (error) {
    const reason = error instanceof PhotographError ? error.message : `cannot be captioned (${error.message})`;
    postMessage({ kind: "refused", id, reason });
  }
}

/** The captions by the GPU; null if it is not in use, or fails, and then it is not used any more. */
async function captionOnGpu(captionBy) {
  if (!onGpu) return null;
  try {
    return await captionBy(onGpu);
  } catch {
    onGpu = null;
    postMessage({ kind: "processor", name: "cpu" });
    return null;
  }
}

async function tryGpu(captionBy, cpu) {
  const trial = await loadOnGpu().catch(() => null);
  loadOnGpu = null;
  if (!trial) return;
  const milliseconds = await timeIfBetter(trial, captionBy, cpu, wantedProcessor);
  if (milliseconds === null) {
    await trial.release().catch(() => {}); // it may have failed altogether
    return;
  }
  onGpu = trial;
  postMessage({ kind: "processor", name: "gpu", milliseconds, onCpu: cpu.milliseconds });
}
