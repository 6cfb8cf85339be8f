
"use strict";

const byId = (id) => document.getElementById(id);
const about = JSON.parse(byId("about").textContent);
const entries = byId("entries").textContent.split("\n").filter(Boolean).map((line) => JSON.parse(line));
byId("entries").remove(); // frees the memory of its text
const still = matchMedia("(prefers-reduced-motion: reduce)");
const WORD = 650, FADE = 220; // milliseconds per word, of which the transition from the previous word takes FADE
const GROUP = 48; // approximate number of cards per group
const GRID = 64; // longer side of the canvas for attention, which CSS enlarges

entries.forEach((entry, index) => {
  entry.index = index;
  entry.words = ` ${entry.caption.toLowerCase()}`;
  entry.name = entry.file_name.toLowerCase();
  entry.rank = entry.confidence ?? entry.score;
});

// ---- attention ----

// Attention weights (T, H, W) at an entry's words, as multiples of uniform attention.
function weightsOf({ shape: [words, rows, columns], peak, alpha }) {
  const levels = Uint8Array.from(atob(alpha), (c) => c.charCodeAt(0));
  return Array.from({ length: words }, (_, word) =>
    Float32Array.from(levels.subarray(word * rows * columns, (word + 1) * rows * columns), (x) => (x / 255) * peak));
}

// Gaussian interpolation from `count` cells to `length` points: one row of weights per point, zero outside the cells.
function shares(length, count, from, to) {
  return Array.from({ length }, (_, i) => {
    const at = (((i + 0.5) / length - from) / (to - from)) * count;
    const row = Array.from({ length: count }, (_, j) => Math.exp(-((at - j - 0.5) ** 2) / 0.6));
    const sum = row.reduce((a, b) => a + b);
    return at < 0 || at > count ? row.fill(0) : row.map((x) => x / sum);
  });
}

// Draws attention over a photograph: areas with little attention are darkened, areas with much get a warm tint.
class Overlay {
  constructor(canvas, entry, width, height) {
    const { shape: [, rows, columns], cropped } = entry.attention;
    const wide = Math.max(1, width / height), tall = Math.max(1, height / width);
    canvas.width = Math.round((GRID * wide) / Math.max(wide, tall));
    canvas.height = Math.round((GRID * tall) / Math.max(wide, tall));
    this.context = canvas.getContext("2d");
    // Some models see the central square only.
    const margin = (side) => (cropped ? (1 - 1 / side) / 2 : 0);
    const across = shares(canvas.width, columns, margin(wide), 1 - margin(wide));
    const down = shares(canvas.height, rows, margin(tall), 1 - margin(tall));
    this.maps = weightsOf(entry.attention).map((weights) => {
      const lines = down.map((row) => Float32Array.from({ length: columns }, (_, x) =>
        row.reduce((sum, share, y) => sum + share * weights[y * columns + x], 0)));
      const map = new Float32Array(canvas.width * canvas.height);
      lines.forEach((line, y) => across.forEach((share, x) => {
        map[y * canvas.width + x] = share.reduce((sum, s, i) => sum + s * line[i], 0);
      }));
      const most = Math.max(2, ...map); // do not amplify nearly uniform attention
      return map.map((x) => x / most);
    });
    const even = new Float32Array(canvas.width * canvas.height);
    this.mean = even.map((_, i) => this.maps.reduce((sum, map) => sum + map[i], 0) / this.maps.length);
  }

  // share: progress of the transition from map `before` to map `after`, 0 to 1. Without `before` it fades in.
  draw(after, before = null, share = 1) {
    const { width, height } = this.context.canvas, image = this.context.createImageData(width, height);
    for (let i = 0; i < after.length; i++) {
      const x = before ? before[i] + (after[i] - before[i]) * share : after[i];
      const visible = before ? 1 : share;
      const dark = 0.76 * (1 - x) ** 1.3 * visible, light = 0.34 * x * x * visible;
      const alpha = light + dark * (1 - light);
      const warm = alpha ? light / alpha : 0;
      image.data.set([255 * warm, 176 * warm, 64 * warm, 255 * alpha], 4 * i);
    }
    this.context.putImageData(image, 0, 0);
  }

  clear() {
    this.context.clearRect(0, 0, this.context.canvas.width, this.context.canvas.height);
  }
}

// Steps through the words of a caption, marks the current one and draws its attention.
class Player {
  constructor(overlay, marks) {
    Object.assign(this, { overlay, marks, word: -1, before: null, began: 0, playing: false, ended: false });
  }

  show(word) {
    this.before = this.word < 0 ? null : this.overlay.maps[this.word];
    this.word = word;
    this.began = performance.now();
    this.marks.forEach((mark, index) => mark.classList.toggle("current", index === word));
    this.frame();
  }

  frame() {
    if (this.ended) return;
    const since = performance.now() - this.began;
    const share = still.matches ? 1 : Math.min(1, since / FADE);
    this.overlay.draw(this.overlay.maps[this.word], this.before, share);
    cancelAnimationFrame(this.next);
    clearTimeout(this.later);
    if (share < 1) this.next = requestAnimationFrame(() => this.frame());
    else if (this.playing) this.later = setTimeout(() => this.step(1), Math.max(0, WORD - since));
  }

  step(by) {
    this.show((this.word + by + this.marks.length) % this.marks.length);
  }

  // With reduced motion, show the mean over all words instead of playing.
  play() {
    if (still.matches) {
      this.overlay.draw(this.overlay.mean);
      return;
    }
    this.playing = true;
    if (this.word < 0) this.show(0);
    else this.frame();
  }

  pause() {
    this.playing = false;
    clearTimeout(this.later);
  }

  stop() {
    this.pause();
    this.ended = true;
    cancelAnimationFrame(this.next);
    this.marks.forEach((mark) => mark.classList.remove("current"));
    this.overlay.clear();
  }
}

// ---- cards ----

function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

function confidenceOf(entry) {
  if (entry.confidence === undefined) return [element("span", { textContent: entry.score.toFixed(2), title: "score" })];
  return [confidenceLabel(entry.confidence)];
}

/** A note of the forced words that a caption lacks, if any. */
function missingOf({ missing_words: words = [] }) {
  return words.length ? [element("small", { className: "missing", textContent: `without ${words.join(", ")}` })] : [];
}

const baseName = (entry) => entry.file_name.split(/[/\\]/).pop();

function cardOf(entry) {
  const image = element("img", { alt: entry.caption, decoding: "async" });
  const button = element("button", { type: "button" }, element("span", { className: "picture" }, image));
  const caption = element("p", { className: "caption", textContent: entry.caption, ariaHidden: "true" });
  const confidence = element("span", { className: "confidence", title: "probability that the caption is better than this model's median caption" }, ...confidenceOf(entry));
  const name = element("span", { className: "name", textContent: baseName(entry), title: entry.file_name });
  const card = element("div", { className: "card", role: "listitem" }, button, caption, ...missingOf(entry),
    element("div", { className: "foot" }, name, confidence));
  Object.assign(card, { entry, image, button, caption });
  entry.card = card;
  return card;
}

// Cards are grouped in whole rows so that the browser can skip distant groups. Only cards near the viewport have images.
const near = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    for (const { image, entry } of target.children) {
      if (isIntersecting) image.src = entry.thumbnail;
      else image.removeAttribute("src");
    }
  }
}, { rootMargin: "600px 0px" });
let columns = 0;

function columnsNow() {
  const gap = 16, width = list.clientWidth;
  return innerWidth <= 520 ? 2 : Math.max(1, Math.floor((width + gap) / (220 + gap)));
}

function arrange() {
  columns = columnsNow();
  const size = columns * Math.ceil(GROUP / columns), groups = [];
  for (let start = 0; start < shown.length; start += size) {
    const cards = shown.slice(start, start + size).map((entry) => entry.card);
    const group = element("div", { className: "group", role: "none" }, ...cards);
    group.style.setProperty("--rows", Math.ceil(cards.length / columns));
    groups.push(group);
  }
  near.disconnect();
  list.style.setProperty("--columns", columns);
  list.replaceChildren(...groups);
  groups.forEach((group) => near.observe(group));
}

let playing = null; // the card whose words are being shown

function play(card) {
  if (playing === card) return;
  stop();
  const { attention } = card.entry, { image } = card;
  if (!attention) return;
  playing = card;
  image.decode().catch(() => {}).then(() => {
    if (playing !== card || !image.naturalWidth) return;
    const marks = attention.words.map((word) => element("span", { textContent: word.trimStart() }));
    card.caption.replaceChildren(...attention.words.flatMap((word, i) => (word.startsWith(" ") ? [" ", marks[i]] : [marks[i]])));
    const canvas = element("canvas");
    image.after(canvas);
    card.player = new Player(new Overlay(canvas, card.entry, image.naturalWidth, image.naturalHeight), marks);
    card.player.play();
  });
}

function stop() {
  if (!playing) return;
  playing.player?.stop();
  playing.player = null;
  playing.querySelector("canvas")?.remove();
  playing.caption.textContent = playing.entry.caption;
  playing = null;
}

const list = byId("cards");
const cardAt = (target) => target.closest?.(".card");
list.addEventListener("pointerover", (event) => {
  if (event.pointerType === "mouse" && cardAt(event.target)) play(cardAt(event.target));
});
list.addEventListener("pointerleave", stop);
list.addEventListener("focusin", (event) => play(cardAt(event.target)));
list.addEventListener("focusout", stop);
list.addEventListener("click", (event) => {
  if (cardAt(event.target) && !getSelection().toString()) open(cardAt(event.target).entry);
});
list.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  const target = by && shown[shown.indexOf(cardAt(event.target).entry) + by];
  if (!target) return;
  event.preventDefault();
  target.card.button.focus();
});

// ---- search and order ----

const names = new Intl.Collator(undefined, { numeric: true });
const ORDERS = {
  given: (a, b) => a.index - b.index,
  ascending: (a, b) => a.rank - b.rank || a.index - b.index,
  descending: (a, b) => b.rank - a.rank || a.index - b.index,
  name: (a, b) => names.compare(a.file_name, b.file_name) || a.index - b.index,
};
const counted = (count) => `${count.toLocaleString("en")} photograph${count === 1 ? "" : "s"}`;
let shown = [];

function sort() {
  entries.sorted = [...entries].sort(ORDERS[byId("order").value]);
  filter();
}

function filter() {
  stop();
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  // Search words match the beginning of a caption's words ("men" must not match "women") and any part of a file name.
  const has = (entry) => (word) => entry.words.includes(` ${word}`) || entry.name.includes(word);
  shown = entries.sorted.filter((entry) => words.every(has(entry)));
  arrange();
  byId("none").hidden = shown.length > 0 || !entries.length;
  byId("count").textContent = words.length ? `${shown.length.toLocaleString("en")} of ${counted(entries.length)}`
    : counted(entries.length);
}

byId("search").addEventListener("input", filter);
byId("order").addEventListener("change", () => {
  sort();
  scrollTo(0, 0);
});

// ---- one photograph, large ----

const large = byId("large"), picture = large.querySelector("img"), canvas = large.querySelector("canvas");
let opened = null, player = null;

function open(entry) {
  stop();
  player?.stop();
  player = null;
  opened = entry;
  canvas.hidden = true;
  byId("large-caption").textContent = entry.caption;
  large.querySelector(".confidence").replaceChildren(
    ...(entry.confidence === undefined ? [...confidenceOf(entry), " (score)"] : [confidenceText(entry.confidence)]),
    ...missingOf(entry),
  );
  const place = shown.indexOf(entry);
  byId("place").textContent = `${(place + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place >= shown.length - 1;
  const link = large.querySelector(".file a");
  Object.assign(link, { href: entry.link, textContent: entry.file_name });
  const others = (entry.captions || []).map((each) => element("li", { textContent: each.caption },
    element("small", {}, `score ${each.score.toFixed(2)} `, ...(each.confidence === undefined ? [] : confidenceOf(each))), ...missingOf(each)));
  byId("alternatives").replaceChildren(...(others.length ? [element("ol", {}, ...others)] : []));
  const marks = (entry.attention?.words || []).map((word, index) =>
    element("button", { type: "button", textContent: word.trim(), onclick: () => choose(index),
      onpointerenter: () => choose(index), onfocus: () => choose(index) }));
  byId("words").replaceChildren(...marks);
  byId("words").hidden = byId("play").hidden = !entry.attention;
  picture.alt = entry.caption;
  picture.onload = () => {
    if (opened !== entry || !entry.attention) return;
    const word = player?.word ?? -1;
    player?.stop();
    canvas.hidden = false;
    player = new Player(new Overlay(canvas, entry, picture.naturalWidth, picture.naturalHeight), marks);
    player.word = word;
    setPlaying(!still.matches);
  };
  // Show the thumbnail if the photograph has been moved or the browser cannot decode it.
  picture.onerror = () => {
    picture.onerror = null;
    picture.src = entry.thumbnail;
  };
  picture.src = entry.link;
  if (!large.open) large.showModal();
}

function setPlaying(on) {
  byId("play").textContent = on ? "Pause" : "Play";
  byId("play").setAttribute("aria-pressed", on);
  if (on) player.play();
  else if (player.word < 0) player.show(0);
  else player.pause();
}

function choose(word) {
  if (!player) return;
  setPlaying(false);
  player.show(word);
}

function turn(by) {
  const entry = shown[shown.indexOf(opened) + by];
  if (entry) open(entry);
}

byId("play").addEventListener("click", () => player && setPlaying(!player.playing));
byId("previous").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
byId("close").addEventListener("click", () => large.close());
large.addEventListener("click", (event) => event.target === large && large.close());
large.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by) turn(by);
});
large.addEventListener("close", () => {
  player?.stop();
  player = null;
  picture.removeAttribute("src");
  opened.card.button.focus();
});

// ---- the page ----

document.title = `Captions of ${counted(entries.length)}`;
if (about.failed.length) {
  byId("failed").hidden = false;
  byId("failed").querySelector("h2").textContent = `${counted(about.failed.length)} that could not be read`;
  byId("failed").querySelector("ul").append(...about.failed.map((reason) => element("li", { textContent: reason })));
}
if (about.least_confident_first) byId("order").value = "ascending";
entries.forEach(cardOf);
sort();
new ResizeObserver(() => columns !== columnsNow() && arrange()).observe(list);
