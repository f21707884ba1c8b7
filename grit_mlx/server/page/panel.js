// The panel with a source: the file's text around a passage, with more of it on demand.

import * as api from "./api.js";
import { $, element, plain } from "./dom.js";

const AROUND = 30;
const MORE = 100;

let running = new AbortController();
let opener = null;
let shown = null;

export const isOpen = () => !$("panel").hidden;

export async function open(source) {
  if (shown === source && isOpen()) return $("panel-text").focus({ preventScroll: true });
  shown = source;
  running.abort();
  running = new AbortController();
  opener ??= document.activeElement;
  $("panel").hidden = false;
  document.body.classList.add("open");
  if (matchMedia("(max-width: 60rem)").matches) $("panel-close").focus(); // it covers the results
  $("panel-name").textContent = plain(source.path.split("/").pop());
  $("panel-name").title = source.path;
  $("panel-place").textContent = plain(placeOf(source));
  $("panel-copy").onclick = () => navigator.clipboard?.writeText(`${source.path}:${source.line}`).then(
    () => flash($("panel-copy"), "Copied"), () => flash($("panel-copy"), source.path));
  const text = $("panel-text");
  text.replaceChildren(element("p", { kind: "note", text: "Reading…" }));
  const first = Math.max(1, source.line - AROUND);
  try {
    const part = await api.file(source.store, source.path, first, source.end_line + AROUND - first + 1, running.signal);
    show(text, source, part);
  } catch (error) {
    if (error.name === "AbortError") return;
    // The passage itself is still at hand.
    text.replaceChildren(
      element("p", { kind: "note", text: error.message }),
      element("div", { kind: "passages text", dir: "auto", text: source.text }),
    );
  }
}

export function close() {
  running.abort();
  $("panel").hidden = true;
  document.body.classList.remove("open");
  const now = document.querySelector("main section:not([hidden]) [aria-current=true]") ?? opener;
  if (now?.isConnected) now.focus({ preventScroll: true });
  opener = shown = null;
}

function placeOf({ path, unit, line, end_line: end }) {
  const folder = path.split("/").slice(0, -1).join("/");
  const range = end > line ? `${unit}s ${line}–${end}` : `${unit} ${line}`;
  return folder ? `${range} · ${folder}` : range;
}

function show(text, source, part) {
  if (part.passages) {
    text.replaceChildren(
      element("p", { kind: "note", text: `What was indexed of ${part.unit}s ${part.line}–${part.end_line} of ${part.total}:` }),
      element("div", { kind: "passages text", dir: "auto", text: part.text }),
    );
    return;
  }
  const rows = rowsOf(source, part);
  const above = moreButton("above", part.line > 1);
  const below = moreButton("below", part.end_line < part.total);
  above.onclick = () => more(source, Math.max(1, part.line - MORE), part.line - 1, (next) => {
    const height = text.scrollHeight;
    above.after(...rowsOf(source, next));
    text.scrollTop += text.scrollHeight - height;
    part.line = next.line;
    above.hidden = next.line <= 1;
  });
  below.onclick = () => more(source, part.end_line + 1, part.end_line + MORE, (next) => {
    below.before(...rowsOf(source, next));
    part.end_line = next.end_line;
    below.hidden = next.end_line >= next.total;
  });
  text.replaceChildren(above, ...rows, below);
  const here = text.querySelector(".here");
  if (here) text.scrollTop = here.offsetTop - text.offsetTop - text.clientHeight / 4;
}

function rowsOf(source, part) {
  return part.text.split("\n").map((line, i) => {
    const number = part.line + i;
    const here = number >= source.line && number <= source.end_line;
    return element(
      "div",
      { kind: here ? "row here" : "row", data: { line: number } },
      element("span", { text: number, "aria-hidden": "true" }),
      element("div", { kind: "text", dir: "auto", text: line }),
    );
  });
}

const moreButton = (where, wanted) => {
  const made = element("button", { kind: "quiet more", type: "button", text: `More ${where}` });
  made.hidden = !wanted;
  return made;
};

async function more(source, first, last, add) {
  try {
    add(await api.file(source.store, source.path, first, last - first + 1, running.signal));
  } catch (error) {
    if (error.name !== "AbortError") $("panel-text").append(element("p", { kind: "note", text: error.message }));
  }
}

function flash(button, text) {
  const before = "Copy place";
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 1500);
}
