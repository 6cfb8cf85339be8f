// The page that captions photographs in the browser. Each photograph becomes a card with its caption and attention.

import { photograph } from "./camera.js";
import { Card } from "./card.js";
import { runtimeFor } from "./gpu.js";
import { csvOf, jsonOf } from "./results.js";
import { willBeIsolated } from "./threads.js";

const find = (id) => document.getElementById(id);
const cards = new Map(); // by number, oldest first
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
let next = 0;
let worker;

async function start() {
  find("unserved").remove();
  for (const id of ["model", "drop"]) find(id).hidden = false;
  const reloaded = performance.getEntriesByType("navigation")[0]?.type === "reload";
  const serviceWorkers = navigator.serviceWorker;
  if (await willBeIsolated({ isolated: crossOriginIsolated, reloaded, serviceWorkers })) return location.reload();
  const answer = await fetch("site.json").catch(() => null);
  if (!answer?.ok) return fail("site.json is not on the server; export the site again");
  const site = await answer.json();
  const dtypes = site.dtypes.map(({ name }) => name);
  const asked = new URLSearchParams(location.search);
  const wanted = asked.get("dtype");
  const dtype = dtypes.includes(wanted) ? wanted : dtypes.at(-1);
  const runtime = await runtimeFor(asked.get("processor"), { gpu: navigator.gpu, canWait: "Suspending" in WebAssembly });
  const files = [...site.runtimes[runtime], ...site.files, ...site.dtypes.find(({ name }) => name === dtype).files];
  about(site, dtype);
  // A worker made from a blob inherits this page's content security policy; one from a file would not.
  const source = new Blob([`import ${JSON.stringify(new URL("worker.js", import.meta.url))};`], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(source), { type: "module" });
  worker.onmessage = ({ data }) => receive(data);
  worker.onerror = (error) => fail(error.message || "the worker could not be started");
  worker.postMessage({ kind: "load", base: new URL(".", location.href).href, files, dtype, runtime, processor: asked.get("processor") });
  for (const [id, card] of cards) ask(id, card);
}

function receive(data) {
  const card = cards.get(data.id);
  if (data.kind === "progress") {
    find("progress").value = data.loaded / data.total;
    find("stage").textContent =
      data.loaded < data.total
        ? `Loading the model: ${megabytes(data.loaded)} of ${megabytes(data.total)} MB`
        : "Starting the model";
  } else if (data.kind === "ready") {
    find("model").hidden = true;
    document.body.classList.add("ready");
  } else if (data.kind === "failed") fail(data.reason);
  else if (data.kind === "begun") card?.begun();
  else if (data.kind === "processor") processor(data);
  else {
    if (data.kind === "captioned") card?.captioned(data);
    else card?.refused(data.reason);
    arrange();
  }
}

function processor({ name, milliseconds, onCpu }) {
  const times = `${Math.round(milliseconds)} ms per photograph, ${Math.round(onCpu)} ms on the CPU`;
  find("processor").textContent = name === "gpu" ? `Running on the GPU (${times}). ` : "";
}

function fail(reason) {
  find("model").hidden = true;
  find("failure").hidden = false;
  find("failure").textContent = `The model could not be loaded: ${reason}`;
}

function about(site, dtype) {
  const other = site.dtypes.map(({ name }) => name).filter((name) => name !== dtype);
  const note =
    dtype === "float32"
      ? "Captions are the same as in Python."
      : "Captions can differ from Python's because the weights are quantized.";
  find("about").textContent = `${site.checkpoint}, ${dtype}, sca_caption ${site.version}. ${note} `;
  find("about").append(Object.assign(document.createElement("span"), { id: "processor" }));
  for (const name of other) {
    const link = Object.assign(document.createElement("a"), { href: `?dtype=${name}`, textContent: `Use ${name}` });
    find("about").append(link);
  }
}

/** Ask the worker, once there is one, for the caption of a card. */
function ask(id, { file, neutral }) {
  worker?.postMessage({ kind: "caption", id, file, neutral });
}

function add(files) {
  for (const file of files) {
    const id = (next += 1);
    const card = new Card(file, () => forget([id]));
    card.neutral = find("neutral").checked;
    cards.set(id, card);
    ask(id, card);
  }
  arrange();
}

function forget(ids) {
  for (const id of ids) {
    cards.get(id).forget();
    cards.delete(id);
  }
  worker?.postMessage({ kind: "forget", ids });
  arrange();
}

/** Show the cards that match the search, newest first or least confident first. */
function arrange() {
  const all = [...cards.values()].reverse();
  if (find("by-confidence").checked) all.sort((one, other) => one.confidence - other.confidence);
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = all.filter((card) => words.every((word) => card.searched.includes(word)));
  const here = find("cards").children;
  shown.forEach((card, place) => {
    if (here[place] !== card.element) find("cards").insertBefore(card.element, here[place] ?? null);
  });
  while (here.length > shown.length) here[shown.length].remove();
  find("tools").hidden = !all.length;
  document.body.classList.toggle("started", all.length > 0);
  const done = all.filter(({ result }) => result).length;
  const waiting = all.filter((card) => card.isWaiting).length;
  const found = words.length ? `${shown.length} of ${all.length} shown. ` : "";
  find("count").textContent = all.length ? `${found}${done} captioned${waiting ? `, ${waiting} waiting` : ""}` : "";
  for (const id of ["csv", "json"]) find(id).disabled = !done;
}

function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const results = () => [...cards.values()].filter(({ result }) => result);

find("choose").onclick = () => find("files").click();
for (const id of ["files", "capture"]) {
  find(id).onchange = ({ target }) => {
    add(target.files);
    target.value = ""; // the same file can be chosen again
  };
}
find("camera").onclick = async () => {
  try {
    const file = await photograph();
    if (file) add([file]);
  } catch (error) {
    find("count").textContent = error.message;
  }
};
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  add(event.dataTransfer.files);
});
addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
find("search").oninput = arrange;
find("by-confidence").onchange = arrange;
find("csv").onclick = () => save("captions.csv", csvOf(results()), "text/csv");
find("json").onclick = () => save("captions.json", jsonOf(results()), "application/json");
find("clear").onclick = () => forget([...cards.keys()]);
start();
