// Whether the model runs on the GPU, by WebGPU. Nobody knows beforehand whether it is faster there, so the page tries it on
// a photograph that it has captioned.

/** After this many photographs; the time of the first one has the start of the runtime in it. */
export const TRIED_AFTER = 2;

/**
 * The runtime to load, a name in site.json: "webgpu" if the browser has a GPU and can wait for it inside WebAssembly
 * (JSPI), else "wasm". Both run models on the CPU too.
 *
 * wanted: "cpu" for wasm; "gpu" for webgpu also if the GPU is only simulated.
 */
export async function runtimeFor(wanted, { gpu, canWait }) {
  if (wanted === "cpu" || !gpu || !canWait) return "wasm";
  const adapter = await gpu.requestAdapter().catch(() => null);
  if (!adapter || (adapter.info?.isFallbackAdapter && wanted !== "gpu")) return "wasm";
  return "webgpu";
}

/**
 * The milliseconds that `trial`, a captioner on the GPU, takes for a photograph; null unless it finds the captions that the
 * CPU found, in less time.
 *
 * caption: captions the photograph with a captioner; cpu: {captions, milliseconds}; wanted: "gpu" if its time does not
 * matter.
 */
export async function timeIfBetter(trial, caption, cpu, wanted) {
  try {
    await caption(trial); // compiles shaders
    const began = performance.now();
    const { captions } = await caption(trial);
    const milliseconds = performance.now() - began;
    const isSame = captions.every(({ text }, place) => text === cpu.captions[place]?.text);
    return isSame && (milliseconds < cpu.milliseconds || wanted === "gpu") ? milliseconds : null;
  } catch {
    return null;
  }
}
