// The page of caption.py --serve. It takes photographs as files, by drag and drop, from the clipboard or the camera, sends
// them to the API, and keeps the answers until the page is closed.

import { photograph } from "./camera.js";
import { element, prepare, showAnswer } from "./result.js";

const find = (id) => document.getElementById(id);
const HISTORY = 30; // photographs in the strip
const THUMBNAIL = 144; // pixels
const LABELS = {
  "beam-size": "Beam size", "num-captions": "Captions", "length-penalty": "Length penalty", "min-length": "Minimum length",
  "max-length": "Maximum length", "force-words": "Required words",
};
const controls = find("controls");
const fields = [...controls.elements].filter((field) => field.name);

const loading = fetchJson("api/model");
let model = null; // the model card, once it is loaded
let entries = []; // {file, url, answer, thumbnail}, newest first
let shown = null; // the entry on the page
let request = null; // AbortController of the current request

/** Show an error message, with the labels of the settings instead of flags; an empty message hides it. */
function showError(message) {
  find("error").textContent = message.replace(/--([a-z-]+)/g, (flag, name) => LABELS[name] ?? flag);
  find("error").hidden = !message;
}

/** Fetch JSON. Throws an Error with the message of the server. */
async function fetchJson(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("no answer from the server; check that the program is still running");
  }
  const answer = await response.json().catch(() => ({ error: `the server answered with status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Caption files one after another. */
async function captionFiles(files) {
  request?.abort();
  const turn = request = new AbortController();
  for (const [index, file] of [...files].entries()) {
    if (turn !== request) return; // replaced by a newer request
    await caption({ file }, turn, files.length > 1 ? `${index + 1} of ${files.length}` : "");
  }
}

/** Caption a photograph, which may be on the page already, and show it. After an error, show the previous one again. */
async function caption(entry, turn, count = "") {
  const before = shown;
  showError("");
  try {
    await loading; // a photograph can be chosen before the model card is here
    const limit = model.limits.upload_bytes;
    if (entry.file.size > limit) throw new Error(`${entry.file.name}: more than ${limit / 1e6} MB; resize the photograph first`);
    entry.url ??= URL.createObjectURL(entry.file);
    const readable = await show(entry.url);
    setBusy(count ? `Captioning ${count}` : "Captioning");
    const form = new FormData(controls);
    for (const name of ["guidance", "neutral"]) form.set(name, controls.elements[name].checked);
    form.set("preview", !entry.answer && (!readable || entry.file.type === "image/gif")); // of an animation, the model sees the first frame
    form.append("image", entry.file, entry.file.name || "image.png");
    const answer = await fetchJson("api/caption", { method: "POST", body: form, signal: turn.signal });
    if (answer.preview) {
      URL.revokeObjectURL(entry.url);
      entry.url = answer.preview;
      await show(entry.url);
    }
    delete answer.preview;
    entry.answer = answer;
    addToHistory(entry);
    open(entry);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (entry.url && !entries.includes(entry)) URL.revokeObjectURL(entry.url);
    showError(error.message);
    if (before) {
      await show(before.url);
      open(before);
    } else {
      find("picture").hidden = true;
      find("frame").classList.add("empty");
      find("placeholder").hidden = false;
    }
  } finally {
    if (turn === request) setBusy("");
  }
}

/** Show a progress message; an empty text hides it. */
function setBusy(text) {
  find("busy").hidden = !text;
  find("busy-text").textContent = text;
  find("result").classList.toggle("stale", Boolean(text));
  find("result").inert = Boolean(text); // it still belongs to the previous photograph
}

/** Show a photograph. Returns whether the browser can decode it. */
async function show(url) {
  const photo = find("photo"), trial = new Image();
  trial.src = url;
  const readable = await trial.decode().then(() => true, () => false);
  if (photo.src !== url) find("heat").hidden = true; // it belongs to the previous photograph
  find("picture").classList.remove("attending");
  if (readable) {
    photo.src = url;
    await photo.decode();
    find("picture").style.setProperty("--ratio", photo.naturalWidth / photo.naturalHeight);
  }
  find("picture").hidden = !readable;
  find("placeholder").hidden = readable;
  find("frame").classList.toggle("empty", !readable);
  return readable;
}

/** Show the answer of an entry, whose photograph is on the page. */
function open(entry) {
  shown = entry;
  find("photo").alt = entry.answer.caption;
  find("heat").hidden = false;
  showAnswer(entry.answer);
  document.title = entry.answer.caption;
  drawStrip();
}

function addToHistory(entry) {
  if (entries.includes(entry)) return;
  entry.thumbnail = thumbnail(find("photo"));
  entries.unshift(entry);
  for (const old of entries.splice(HISTORY)) URL.revokeObjectURL(old.url);
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
      setBusy("");
      showError("");
      await show(entry.url);
      open(entry);
    };
    button.append(image);
    item.append(button);
    return item;
  }));
}

/** Set the controls to the defaults and limits of the model. */
function setControls() {
  const { defaults, limits } = model;
  for (const field of fields) {
    const value = defaults[field.name];
    if (field.type === "checkbox") field.checked = value;
    else field.value = Array.isArray(value) ? value.join(" ") : value;
  }
  for (const name of ["beam_size", "max_length"]) controls.elements[name].max = limits[name];
  find("guidance").hidden = !model.guidance;
}

/** Caption the current photograph again with the new settings. */
function settingsChanged() {
  const { beam_size: beams, num_captions: captions } = controls.elements;
  if (beams.validity.valid && Number(captions.value) > Number(beams.value)) captions.value = beams.value;
  if (!controls.reportValidity() || !shown) return;
  request?.abort();
  request = new AbortController();
  caption(shown, request);
}

function describeModel() {
  const { name, version, vocabulary, image_size: size, limits, defaults } = model;
  const limit = `${limits.upload_bytes / 1e6} MB and ${limits.pixels / 1e6} million pixels`;
  find("model").textContent = `sca_caption ${version}, ${name}: a vocabulary of ${vocabulary.toLocaleString("en")} words, input of ${size} × ${size} pixels. Photographs of at most ${limit}.`;
  find("example").textContent = `curl -F image=@photo.jpg -F num_captions=3 ${new URL("api/caption", location)}`;
  find("fields").textContent = `Fields: image, ${Object.keys(defaults).join(", ")}, preview.`;
}

function captionOrFail(files, message) {
  if (files.length) captionFiles(files);
  else showError(message);
}

function listen() {
  find("choose").onclick = () => find("file").click();
  find("camera").onclick = async () => {
    showError("");
    try {
      const file = await photograph();
      if (file) captionFiles([file]);
    } catch (error) {
      showError(error.message);
    }
  };
  for (const input of [find("file"), find("capture")]) {
    input.onchange = async () => {
      const files = [...input.files];
      input.value = ""; // otherwise choosing the same file again has no effect
      if (files.length) captionFiles(files);
    };
  }
  let inside = 0; // dragenter and dragleave are fired for every element under the pointer
  const dragged = (by) => { inside = by ? Math.max(0, inside + by) : 0; find("drop").hidden = !inside; };
  document.addEventListener("dragenter", (event) => { event.preventDefault(); dragged(1); });
  document.addEventListener("dragleave", () => dragged(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dragged(0);
    captionOrFail([...event.dataTransfer.files], "the dropped object is not a file; save the photograph and drop the file");
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input")) return; // the text goes into a setting
    captionOrFail([...event.clipboardData.files], "the clipboard has no image; copy one first");
  });
  controls.addEventListener("change", settingsChanged);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", (event) => { event.preventDefault(); setControls(); settingsChanged(); });
}

prepare();
listen();
try {
  model = await loading;
  setControls();
  describeModel();
  document.body.dataset.ready = "";
} catch (error) {
  showError(error.message);
}
