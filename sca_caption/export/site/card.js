// A photograph with its caption. Each word shows the attention with which it was chosen.

import { Heat, maxMultiple, positionName } from "./attention.js";
import { confidenceLabel, confidenceText } from "./confidence_scale.js";

const percent = (fraction) => (fraction < 0.005 ? "under 1\u00a0%" : `${Math.round(100 * fraction)}\u00a0%`);

export class Card {
  /** remove: called when the user removes the card. */
  constructor(file, remove) {
    this.file = file;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.isWaiting = true;
    this.find(".file span").textContent = file.name;
    this.find(".remove").setAttribute("aria-label", `Remove ${file.name}`);
    this.find(".remove").onclick = remove;
    for (const name of [".others", ".copy", "canvas"]) this.find(name).hidden = true;
    const image = this.find("img");
    image.onerror = () => (image.hidden = true); // the worker gives the reason
    this.show(file);
  }

  /** Show a file or blob as the photograph. */
  show(blob) {
    this.forget();
    this.address = this.find("img").src = URL.createObjectURL(blob);
  }

  /** The worker has begun with this photograph. */
  begun() {
    this.find(".waiting").textContent = "Captioning…";
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  /** The text that the search looks in. */
  get searched() {
    return `${this.file.name} ${this.result?.captions[0].text ?? ""}`.toLowerCase();
  }

  /** The confidence or score to sort by; photographs without a caption come last. */
  get confidence() {
    const best = this.result?.captions[0];
    return best ? (best.confidence ?? best.score) : Infinity;
  }

  /** Show the worker's result, {captions, words, layers, preview, ...}. */
  captioned(result) {
    this.result = result;
    this.isWaiting = false;
    const [best, ...others] = result.captions;
    const image = this.find("img");
    this.show(result.preview);
    [image.hidden, image.alt] = [false, best.text];
    [image.width, image.height] = [result.width, result.height];
    this.find(".waiting").remove();
    this.find(".confidence").replaceChildren(
      best.confidence === null ? `Score ${best.score.toFixed(2)}` : confidenceText(best.confidence),
    );
    this.find(".copy").hidden = false;
    this.find(".copy").onclick = () => this.copy(best.text);
    this.find(".others").hidden = !others.length;
    for (const { text, score, confidence } of others) {
      const item = document.createElement("li");
      item.append(`${text} `, confidence === null ? `(score ${score.toFixed(2)})` : confidenceLabel(confidence));
      this.find(".others ol").append(item);
    }
    this.words(result);
  }

  refused(reason) {
    this.isWaiting = false;
    this.element.classList.add("refused");
    this.find(".picture").remove();
    const line = this.find(".caption");
    line.removeAttribute("aria-label");
    line.setAttribute("role", "alert");
    line.textContent = `${this.file.name}: ${reason}`;
    this.find(".file span").textContent = "";
  }

  /** The words as buttons: the tab key reaches one of them, the arrow keys the others. */
  words({ words, layers }) {
    const line = this.find(".caption");
    const buttons = words.map(({ text }, index) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      button.tabIndex = index ? -1 : 0;
      button.onclick = button.onfocus = button.onmouseenter = () => this.showWord(index, buttons);
      return button;
    });
    line.append(...buttons.flatMap((button) => [button, " "]));
    line.onkeydown = (event) => {
      const places = { ArrowLeft: -1, ArrowRight: 1, Home: -words.length, End: words.length };
      if (!(event.key in places)) return;
      event.preventDefault();
      const place = buttons.indexOf(document.activeElement) + places[event.key];
      buttons[Math.min(words.length - 1, Math.max(0, place))].focus();
    };
    line.addEventListener("focusout", ({ relatedTarget }) => {
      if (!line.contains(relatedTarget)) this.showWord(null, buttons);
    });
    line.onmouseleave = () => {
      const place = buttons.indexOf(document.activeElement); // back to the word that has the keyboard focus
      this.showWord(place < 0 ? null : place, buttons);
    };
    if (layers.length) this.heat = new Heat(this.find("canvas"));
    ["left", "top", "width", "height"].forEach((side, k) => {
      this.find("canvas").style[side] = `${100 * this.result.region[k]}%`;
    });
    this.most = maxMultiple(layers);
  }

  /** Show the attention and probability of a word, or of none (null). */
  showWord(index, buttons) {
    buttons.forEach((button, place) => {
      button.classList.toggle("looked", place === index);
      if (index !== null) button.tabIndex = place === index ? 0 : -1;
    });
    const layer = this.result.layers.at(-1);
    const map = index === null ? null : layer?.spatial[index];
    this.element.classList.toggle("attending", map !== null);
    if (this.heat) {
      this.find("canvas").hidden = false;
      this.heat.show(map, ...(layer?.grid ?? [1, 1]), this.most);
    }
    const word = this.result.words[index];
    const where = map ? `, attention highest at the ${positionName(map, ...layer.grid)}` : "";
    this.find(".word").textContent = word ? `${word.text}: probability ${percent(word.probability)}${where}` : "";
  }

  async copy(text) {
    await navigator.clipboard?.writeText(text);
    this.find(".copy").textContent = "Copied";
    setTimeout(() => (this.find(".copy").textContent = "Copy"), 1500);
  }

  forget() {
    if (this.address) URL.revokeObjectURL(this.address);
  }
}
