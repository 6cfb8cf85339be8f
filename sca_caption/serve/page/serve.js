// The page of caption.py --serve: photographs in, by any way a browser knows, requests out, answers kept for the session.

import { photograph } from "./camera.js";
import { element, prepare, showAnswer } from "./result.js";

const find = (id) => document.getElementById(id);
const KEPT = 30; // photographs in the strip
const THUMBNAIL = 144; // pixels
const LABELS = {
  "beam-size": "Beam size", "num-captions": "Captions", "length-penalty": "Length penalty", "min-length": "Fewest words",
  "max-length": "Most words", "force-words": "Must contain",
};
const controls = find("controls");
const fields = [...controls.elements].filter((field) => field.name);

let model = null; // what /api/model says
let entries = []; // {file, url, ours, answer, thumbnail}, latest first
let shown = null; // one of them
let request = null; // what is under way

function fail(message) {
  find("error").textContent = message.replace(/--([a-z-]+)/g, (flag, name) => LABELS[name] ?? flag);
  find("error").hidden = !message;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; is caption.py still running?");
  }
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Photographs from wherever, one after another. */
async function take(files) {
  request?.abort();
  const turn = request = new AbortController();
  for (const [index, file] of [...files].entries()) {
    if (turn !== request) return; // others came meanwhile
    await caption({ file }, turn, files.length > 1 ? `${index + 1} of ${files.length}` : "");
  }
}

/** Caption a photograph, new or again, and show it; or say why not, and show the last one again. */
async function caption(entry, turn, count = "") {
  const before = shown;
  fail("");
  try {
    const most = model.limits.upload_bytes;
    if (entry.file.size > most) throw new Error(`${entry.file.name}: more than ${most / 1e6} MB; make the photograph smaller first`);
    entry.url ??= URL.createObjectURL(entry.file);
    const readable = await show(entry.url);
    busy(count ? `Looking at ${count}` : "Looking");
    const form = new FormData(controls);
    form.set("objects", controls.elements.objects.checked);
    form.set("preview", !entry.answer && (!readable || entry.file.type === "image/gif")); // the model sees its first frame
    form.append("image", entry.file, entry.file.name || "image.png");
    const answer = await ask("api/caption", { method: "POST", body: form, signal: turn.signal });
    if (answer.preview) {
      URL.revokeObjectURL(entry.url);
      entry.url = answer.preview;
      await show(entry.url);
    }
    delete answer.preview;
    entry.answer = answer;
    keep(entry);
    open(entry);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (entry.url && !entries.includes(entry)) URL.revokeObjectURL(entry.url);
    fail(error.message);
    if (before) {
      await show(before.url);
      open(before);
    } else {
      find("picture").hidden = true;
      find("frame").classList.add("empty");
      find("invitation").hidden = false;
    }
  } finally {
    if (turn === request) busy("");
  }
}

function busy(text) {
  find("busy").hidden = !text;
  find("busy-text").textContent = text;
  find("result").classList.toggle("stale", Boolean(text));
  find("result").inert = Boolean(text); // its words are those of the photograph before
}

/** Put a photograph on the stage. Returns whether the browser can. */
async function show(url) {
  const photo = find("photo"), trial = new Image();
  trial.src = url;
  const readable = await trial.decode().then(() => true, () => false);
  if (photo.src !== url) find("heat").hidden = true; // that of the one before
  find("picture").classList.remove("attending");
  if (readable) {
    photo.src = url;
    await photo.decode();
    find("picture").style.setProperty("--ratio", photo.naturalWidth / photo.naturalHeight);
  }
  find("picture").hidden = !readable;
  find("invitation").hidden = readable;
  find("frame").classList.toggle("empty", !readable);
  return readable;
}

function open(entry) {
  shown = entry;
  find("photo").alt = entry.answer.caption;
  find("heat").hidden = false;
  showAnswer(entry.answer);
  document.title = entry.answer.caption;
  drawStrip();
}

function keep(entry) {
  if (entries.includes(entry)) return;
  entry.thumbnail = thumbnail(find("photo"));
  entries.unshift(entry);
  for (const old of entries.splice(KEPT)) URL.revokeObjectURL(old.url);
}

function thumbnail(photo) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = THUMBNAIL;
  const side = Math.min(photo.naturalWidth, photo.naturalHeight);
  const left = (photo.naturalWidth - side) / 2, top = (photo.naturalHeight - side) / 2;
  canvas.getContext("2d").drawImage(photo, left, top, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
  return canvas.toDataURL("image/jpeg", 0.8);
}

function drawStrip() {
  find("history").hidden = entries.length < 2;
  find("strip").replaceChildren(...entries.map((entry) => {
    const button = element("button"), image = element("img"), item = element("li");
    button.type = "button";
    button.title = image.alt = entry.answer.caption;
    button.setAttribute("aria-current", entry === shown);
    image.src = entry.thumbnail;
    button.onclick = async () => {
      request?.abort();
      request = null;
      busy("");
      fail("");
      await show(entry.url);
      open(entry);
    };
    button.append(image);
    item.append(button);
    return item;
  }));
}

/** Set the controls to the model's defaults, and what they may be. */
function setControls() {
  const { defaults, limits } = model;
  for (const field of fields) {
    const value = defaults[field.name];
    if (field.type === "checkbox") field.checked = value;
    else field.value = Array.isArray(value) ? value.join(" ") : value;
  }
  for (const name of ["beam_size", "max_length"]) controls.elements[name].max = limits[name];
  find("objects").hidden = !model.objects;
}

function changed() {
  const { beam_size: beams, num_captions: captions } = controls.elements;
  if (beams.validity.valid && Number(captions.value) > Number(beams.value)) captions.value = beams.value;
  if (!controls.reportValidity() || !shown) return;
  request?.abort();
  request = new AbortController();
  caption(shown, request);
}

function describeModel() {
  const { name, version, vocabulary, image_size: size, limits, defaults } = model;
  const most = `${limits.upload_bytes / 1e6} MB and ${limits.pixels / 1e6} million pixels`;
  find("model").textContent = `sca_caption ${version}, ${name}: ${vocabulary.toLocaleString("en")} words, sees ${size} × ${size} pixels. Photographs of up to ${most}.`;
  find("example").textContent = `curl -F image=@photo.jpg -F num_captions=3 ${new URL("api/caption", location)}`;
  find("fields").textContent = `Fields: image, ${Object.keys(defaults).join(", ")}, preview.`;
}

function pick(files, message) {
  if (files.length) take(files);
  else fail(message);
}

function listen() {
  find("choose").onclick = () => find("file").click();
  find("camera").onclick = async () => {
    fail("");
    try {
      const file = await photograph();
      if (file) take([file]);
    } catch (error) {
      fail(error.message);
    }
  };
  for (const input of [find("file"), find("capture")]) {
    input.onchange = async () => {
      const files = [...input.files];
      input.value = ""; // so that the same file can be chosen again
      if (files.length) take(files);
    };
  }
  let inside = 0; // dragenter and dragleave come for every element under the pointer
  const over = (by) => { inside = by ? Math.max(0, inside + by) : 0; find("drop").hidden = !inside; };
  document.addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(0);
    pick([...event.dataTransfer.files], "that was no file; save the photograph first, then drop the file");
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input")) return; // text for a field
    pick([...event.clipboardData.files], "no picture to paste; copy one first");
  });
  controls.addEventListener("change", changed);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", (event) => { event.preventDefault(); setControls(); changed(); });
}

prepare();
listen();
try {
  model = await ask("api/model");
  setControls();
  describeModel();
  document.body.dataset.ready = "";
} catch (error) {
  fail(error.message);
}
