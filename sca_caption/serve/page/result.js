// The result of captioning a photograph: the words of the caption as buttons, and the attention at the selected word.

import { Heat, gradient, maxMultiple, positionName } from "./attention.js";
import { confidenceLabel, confidenceText } from "./confidence_scale.js";

const find = (id) => document.getElementById(id);
const PACE = 1000; // milliseconds per word when playing
const PATCH = 0.3, PATCH_PIXELS = 36; // side of a patch: fraction of the model's view, and size on the page
const HINT = "Select a word, or step through the words with the arrow keys, to see what the model attended to when it chose the word.";

let heat; // the canvas over the photograph
let answer = null; // the response of the API
let words = []; // the buttons
let pinned = -1, current = -1; // words: selected by a click, and shown
let layer = 0, most = 1, timer = 0; // attended layer, end of the colour scale, timer of playing

export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

const percent = (share) => (share < 0.005 ? "under 1 %" : `${Math.round(100 * share)} %`);
const number = (value, digits) => value.toFixed(digits).replace("-", "−");
const multiple = (times) => `${times < 9.95 ? times.toFixed(1) : Math.round(times)}×`;

/** Show an answer of /api/caption, whose photograph is on the page. */
export function showAnswer(found) {
  const layers = found.attention?.layers ?? [];
  stop();
  answer = found;
  pinned = current = -1;
  find("result").hidden = false;
  find("legend").hidden = !layers.some((each) => each.spatial);
  showCaption();
  showAlternatives();
  layer = layers.length - 1;
  most = maxMultiple(layers);
  find("most").textContent = multiple(most);
  find("layers").hidden = layers.length < 2;
  find("layers").replaceChildren(...layers.map((each, index) => {
    const button = element("button", each.layer);
    button.type = "button";
    button.onclick = () => { layer = index; choose(current); };
    return button;
  }));
  const region = found.attention?.region ?? [0, 0, 1, 1];
  ["left", "top", "width", "height"].forEach((side, k) => { heat.canvas.style[side] = `${100 * region[k]}%`; });
  find("play").hidden = !layers.length;
  choose(-1);
}

function showCaption() {
  let end = 0;
  const parts = [];
  words = answer.words.map((text, index) => { // there is no space between "man" and "'s"
    const start = Math.max(end, answer.caption.indexOf(text, end));
    parts.push(answer.caption.slice(end, start));
    end = start + text.length;
    const button = element("button", text, "word");
    button.type = "button";
    button.onpointerenter = (event) => { if (event.pointerType === "mouse") { stop(); choose(index); } };
    button.onfocus = () => choose(index);
    button.onclick = (event) => {
      stop();
      pinned = pinned === index ? -1 : index;
      if (pinned < 0 && event.detail) button.blur(); // unless it was a key
      choose(pinned);
    };
    parts.push(button);
    return button;
  });
  find("caption").replaceChildren(...parts);
  find("announcement").textContent = `Caption: ${answer.caption}`;
  const { confidence, log_prob: logProb } = answer.captions[0];
  find("confidence").replaceChildren(
    confidence === null ? `log-probability ${number(logProb, 1)}` : confidenceText(confidence),
  );
  const missing = answer.captions[0].missing_words;
  const notes = [
    missing.length ? `No grammatical caption with ${missing.join(", ")} was found.` : "",
    answer.dropped_words.length ? `The model does not know ${answer.dropped_words.join(", ")}.` : "",
  ];
  find("words-note").textContent = notes.filter(Boolean).join(" ");
}

function showAlternatives() {
  const others = answer.captions.slice(1);
  find("others").hidden = !others.length;
  find("alternatives").replaceChildren(...others.map((each) => {
    const item = element("li", `${each.text} `);
    const small = element("small");
    if (each.confidence !== null) small.append(confidenceLabel(each.confidence), " · ");
    small.append(`score ${number(each.score, 2)} · log-probability ${number(each.log_prob, 1)}`);
    item.append(small);
    return item;
  }));
}

/** Show the attention at a word; -1 shows the photograph alone. */
function choose(index) {
  current = index;
  const found = index < 0 ? null : answer.attention?.layers[layer];
  words.forEach((button, each) => button.setAttribute("aria-pressed", each === index));
  [...find("layers").children].forEach((button, each) => button.setAttribute("aria-pressed", each === layer));
  find("picture").classList.toggle("attending", Boolean(found?.spatial));
  heat.show(found?.spatial?.[index] ?? null, ...(found?.grid ?? [1, 1]), most);
  find("word").replaceChildren(...describe(index, found));
  find("channels").hidden = !answer.attention?.layers[layer]?.channel;
  find("channels").classList.toggle("idle", !found);
  if (found?.channel) showChannels(found, index);
}

/** The text about a word and its attention. */
function describe(index, found) {
  if (index < 0) return [answer.attention ? HINT : "This model is an ensemble. The attention of its members is not shown."];
  const position = ` (word ${index + 1} of ${words.length})`;
  const probability = answer.probabilities ? `: probability ${percent(answer.probabilities[index])}` : "";
  const parts = [element("b", answer.words[index]), position + probability];
  if (found?.spatial) {
    const map = found.spatial[index], times = Math.max(...map) * map.length;
    parts.push(times < 1.5 ? "; attention nearly uniform"
      : `; attention highest at the ${positionName(map, ...found.grid)}, ${multiple(times)} uniform`);
  }
  return parts;
}

function showChannels(found, index) {
  const shown = found.channel[index];
  const courses = found.channel.flat().flatMap((each) => each.course);
  const [least, most] = [Math.min(1, ...courses), Math.max(1.1, ...courses)];
  find("bars").style.setProperty("--line", (most - 1) / (most - least)); // position of the uniform weight, from the top
  find("channels-of").textContent = `of the ${found.channels.toLocaleString("en")} of ${found.layer}`;
  find("bars").replaceChildren(...shown.map((each) => {
    const item = element("li"), course = element("span", "", "course");
    course.append(...each.course.map((times, word) => {
      const column = element("i", "", word === index ? "now" : "");
      column.style.setProperty("--above", Math.max(0, times - 1) / (most - least));
      column.style.setProperty("--below", Math.max(0, 1 - times) / (most - least));
      return column;
    }));
    item.append(patch(each.peak), element("span", each.index, "number"), course, element("span", `${each.times.toFixed(2)}×`, "times"));
    return item;
  }));
}

/** A patch of the photograph around a position, given as fractions of the region that the model saw. */
function patch([x, y]) {
  const photo = find("photo"), made = element("canvas", "", "patch");
  const [left, top, width, height] = answer.attention.region;
  const side = PATCH * Math.min(width * photo.naturalWidth, height * photo.naturalHeight);
  const corner = (at, full) => Math.min(Math.max(0, full - side), Math.max(0, at * full - side / 2));
  made.width = made.height = 2 * PATCH_PIXELS;
  made.getContext("2d").drawImage(
    photo, corner(left + x * width, photo.naturalWidth), corner(top + y * height, photo.naturalHeight), side, side,
    0, 0, made.width, made.height,
  );
  return made;
}

function step(by) {
  const next = current < 0 ? (by > 0 ? 0 : words.length - 1) : (current + by + words.length) % words.length;
  words[next].focus();
  choose(next);
}

function play() {
  if (timer) {
    stop();
    return;
  }
  find("play").textContent = "Stop";
  let next = 0;
  const tick = () => {
    if (next === words.length) {
      stop();
      choose(pinned);
    } else {
      choose(next++);
      timer = setTimeout(tick, PACE);
    }
  };
  tick();
}

function stop() {
  clearTimeout(timer);
  timer = 0;
  find("play").textContent = "Play word by word";
}

async function copy() {
  try {
    await navigator.clipboard.writeText(answer.caption);
  } catch { // the clipboard is available to pages of the same machine and of https only
    const area = element("textarea", answer.caption);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  find("copy").textContent = "Copied";
  setTimeout(() => { find("copy").textContent = "Copy caption"; }, 1500);
}

/** Connect the controls of the result. Call it once. */
export function prepare() {
  heat = new Heat(find("heat"));
  find("scale").style.backgroundImage = gradient();
  find("play").onclick = play;
  find("copy").onclick = copy;
  const caption = find("caption"), result = find("result");
  caption.onpointerleave = () => {
    const focused = words.indexOf(document.activeElement);
    if (!timer) choose(pinned < 0 ? focused : pinned);
  };
  result.addEventListener("focusout", (event) => { // a click on the button of a layer keeps the word
    if (!result.contains(event.relatedTarget) && !timer) choose(pinned);
  });
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const elsewhere = document.activeElement !== document.body && !result.contains(document.activeElement);
    if (!answer || elsewhere || event.altKey || event.ctrlKey || event.metaKey) return;
    if (by) {
      stop();
      step(by);
      event.preventDefault();
    } else if (event.key === "Escape") {
      stop();
      pinned = -1;
      document.activeElement.blur();
      choose(-1);
    }
  });
}
