// The page: four things to do, one input, one thing running at a time.

import * as api from "./api.js";
import { $, element, marked, plain, plural } from "./dom.js";
import * as panel from "./panel.js";

const STORE = "rag:";
const SOURCES = "\n\nSources:\n"; // what the server writes below an answer; here they are shown as a list

const MODES = {
  search: { go: "Search", hint: "Search by meaning and by words", run: search, needs: "store" },
  ask: { go: "Ask", hint: "Ask a question about your documents", run: ask, needs: "store" },
  chat: { go: "Send", hint: "Write a message; Shift+Enter for a new line", run: chat, needs: "model", empties: true },
  compare: { go: "Compare", hint: "One text per line; Ctrl+Enter or ⌘Enter compares them", run: compare, needs: "model", lines: true },
};

let mode = "search";
let running = null; // the AbortController of what is running
let messages = []; // of the chat
const drafts = {};
const names = { models: [], stores: [] };

// ---- modes -------------------------------------------------------------------------------------

function choose(next, { focus = true } = {}) {
  if (running && next !== mode) running.abort();
  drafts[mode] = $("input").value;
  mode = next;
  for (const name of Object.keys(MODES)) {
    const tab = $(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === mode));
    tab.tabIndex = name === mode ? 0 : -1;
    $(`view-${name}`).hidden = name !== mode;
  }
  document.body.dataset.mode = mode;
  const { go, hint, needs, lines } = MODES[mode];
  $("go").textContent = go;
  $("input").value = drafts[mode] ?? "";
  $("input").placeholder = hint;
  $("input").rows = lines ? 4 : 1;
  $("input").setAttribute("aria-label", hint);
  $("store-label").hidden = needs !== "store" || names.stores.length < 2;
  offerModels();
  fail("");
  tell("");
  refresh();
  if (focus) $("input").focus();
  if (location.hash !== `#${mode}`) history.replaceState(null, "", `#${mode}`);
}

function offerModels() {
  const wanted = mode === "chat" ? [...names.models, ...names.stores.map((name) => STORE + name)] : names.models;
  const before = $("model").value;
  const label = (name) => name.startsWith(STORE) ? `${name.slice(STORE.length)} (with sources)` : name;
  $("model").replaceChildren(...wanted.map((name) => element("option", { value: name, text: label(name) })));
  if (wanted.includes(before)) $("model").value = before;
  $("model-label").hidden = MODES[mode].needs !== "model" || wanted.length < 2;
}

function refresh() {
  const { needs } = MODES[mode];
  const able = needs === "store" ? names.stores.length > 0 : names.models.length > 0;
  $("go").disabled = !able || !$("input").value.trim();
  $("go").hidden = Boolean(running);
  $("stop").hidden = !running;
}

const tell = (text) => { $("status").textContent = text; };

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

async function submit() {
  const text = $("input").value.trim();
  if (running || $("go").disabled || !text) return;
  running = new AbortController();
  const { signal } = running;
  const { run, empties } = MODES[mode];
  fail("");
  if (empties) $("input").value = "";
  refresh();
  try {
    await run(text, signal);
  } catch (error) {
    tell("");
    if (error.name !== "AbortError") {
      fail(error.message);
      if (empties && !$("input").value) $("input").value = text;
      if (error.status === 401) askForKey();
    }
  } finally {
    running = null;
    refresh();
  }
}

// ---- search ------------------------------------------------------------------------------------

async function search(query, signal) {
  tell("Searching…");
  const store = $("store").value;
  const started = performance.now();
  const found = await api.search(store, query, signal);
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  tell(found.results.length ? `${plural(found.results.length, "passage")} in ${seconds} s` : "");
  $("view-search").replaceChildren(
    ...(found.results.length && !found.relevant
      ? [element("p", { kind: "note", text: "Nothing matches well. The nearest passages:" })] : []),
    found.results.length ? listOf(found.results, query) : element("p", { kind: "note", text: "Nothing was found." }),
  );
}

function listOf(sources, query) {
  const list = element("ol", { kind: "results" });
  for (const source of sources) list.append(element("li", {}, resultOf(source, query)));
  return list;
}

function resultOf(source, query) {
  const score = source.cosine ?? null;
  const head = element(
    "span",
    { kind: "head" },
    element("span", { kind: "number", text: source.index }),
    element("span", { kind: "place", text: source.place }),
  );
  if (score !== null) head.append(element("span", { kind: "score", text: score.toFixed(2), title: "Cosine of query and passage" }));
  const made = element("button", {
    kind: "result", type: "button",
    on: { click: () => select(made, true) },
  }, head);
  if (source.heading) made.append(element("span", { kind: "heading", text: source.heading }));
  made.append(marked(source.text, query));
  made.source = source;
  return made;
}

const results = () => [...$(`view-${mode}`).querySelectorAll(".result")];

function select(result, opens) {
  for (const one of results()) one.removeAttribute("aria-current");
  result.setAttribute("aria-current", "true");
  result.focus({ preventScroll: true });
  result.scrollIntoView({ block: "nearest" });
  if (opens) panel.open(result.source);
}

function move(by) {
  const all = results();
  if (!all.length) return false;
  const now = all.findIndex((one) => one.getAttribute("aria-current") === "true");
  const next = now < 0 ? (by > 0 ? 0 : all.length - 1) : now + by;
  if (next < 0) {
    all[0].removeAttribute("aria-current");
    $("input").focus();
  } else if (next < all.length) {
    select(all[next], panel.isOpen());
  }
  return true;
}

// ---- answers -----------------------------------------------------------------------------------

async function ask(question, signal) {
  const view = $("view-ask");
  const answer = element("div", { kind: "answer text", dir: "auto" });
  const below = element("div");
  view.replaceChildren(answer, below);
  await stream(STORE + $("store").value, [{ role: "user", content: question }], signal, answer, below, question);
}

async function chat(text, signal) {
  const view = $("view-chat");
  if (!messages.length) view.replaceChildren(element("div", { kind: "actions" },
    element("button", { kind: "quiet", type: "button", text: "New chat", on: { click: newChat } })));
  const asked = element("div", { kind: "turn user text", dir: "auto", text });
  const answer = element("div", { kind: "answer text", dir: "auto" });
  const below = element("div");
  const turn = element("div", { kind: "turn" }, answer, below);
  view.append(asked, turn);
  turn.scrollIntoView({ block: "end" });
  const sent = messages;
  const next = [...sent, { role: "user", content: text }];
  let written = "";
  try {
    written = await stream($("model").value, next, signal, answer, below, text);
  } finally {
    if (messages === sent) {
      written ||= answer.dataset.whole ?? "";
      if (written) messages = [...next, { role: "assistant", content: written }];
      else { asked.remove(); turn.remove(); }
    }
  }
}

function newChat() {
  running?.abort();
  messages = [];
  intro();
  $("input").focus();
}

// Write an answer as it comes; what was written stays when it is stopped or breaks off.
async function stream(model, sent, signal, answer, below, question) {
  tell("Reading…");
  answer.classList.add("running");
  let whole = "";
  let citations = [];
  let reason = null;
  const follow = atEnd();
  try {
    for await (const chunk of api.chat(model, sent, signal)) {
      if (chunk.text && !whole) tell("");
      whole += chunk.text;
      citations = chunk.citations ?? citations;
      reason = chunk.reason ?? reason;
      answer.dataset.whole = whole;
      answer.textContent = plain(shown(whole));
      if (follow) $("form").parentElement.scrollTop = $("form").parentElement.scrollHeight;
    }
    if (!whole) answer.append(element("span", { kind: "stopped", text: "(The model wrote nothing.)" }));
    if (reason === "length") below.append(element("p", { kind: "stopped", text: "The answer was cut at its maximum length." }));
  } catch (error) {
    below.append(element("p", { kind: "stopped", text: error.name === "AbortError" ? "Stopped." : "Broken off." }));
    throw error;
  } finally {
    tell("");
    answer.classList.remove("running");
    if (!shown(whole).trim() && below.firstChild && !whole) answer.remove();
    if (citations.length && whole) {
      link(answer, plain(shown(whole)), citations, below);
      below.append(element("h2", { text: "Sources" }), listOf(citations, question));
    }
  }
  return whole;
}

const shown = (whole) => {
  const at = whole.lastIndexOf(SOURCES);
  if (at >= 0) return whole.slice(0, at);
  // The list may be about to begin.
  for (let n = SOURCES.length - 1; n > 1; n--) if (whole.endsWith(SOURCES.slice(0, n))) return whole.slice(0, -n);
  return whole;
};

// [1] in an answer opens its source.
function link(answer, text, citations, below) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(/\[(\d{1,3})\]/g)) {
    const source = citations.find((one) => one.index === Number(match[1]));
    if (!source) continue;
    const open = () => select([...below.querySelectorAll(".result")].find((one) => one.source === source), true);
    parts.push(text.slice(end, match.index), element("button", { kind: "cite", type: "button", text: match[1], title: source.place, on: { click: open } }));
    end = match.index + match[0].length;
  }
  answer.replaceChildren(...parts, text.slice(end));
}

function atEnd() {
  const main = $("form").parentElement;
  return main.scrollHeight - main.scrollTop - main.clientHeight < 80;
}

// ---- compare -----------------------------------------------------------------------------------

async function compare(text, signal) {
  const texts = text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (texts.length < 2) throw new Error("Write at least two texts, one per line.");
  if (texts.length > 60) throw new Error(`Compare at most 60 texts at a time, not ${texts.length}.`);
  tell("Embedding…");
  const vectors = await api.embed(`${$("model").value}:similarity`, texts, signal);
  tell("");
  const cosines = vectors.map((one) => vectors.map((other) => cosine(one, other)));
  const lowest = Math.min(...cosines.flat());
  const share = (value) => (value - lowest) / (1 - lowest || 1);
  const head = element("tr", {}, element("th"), ...texts.map((_, i) => element("th", { scope: "col", text: i + 1 })));
  const rows = texts.map((label, i) => element(
    "tr", {},
    element("th", { scope: "row", text: `${i + 1}  ${label}`, title: label }),
    ...texts.map((_, j) => {
      const cell = element("td", { kind: i === j ? "same" : "", text: cosines[i][j].toFixed(2) });
      if (i !== j) cell.style.setProperty("--share", share(cosines[i][j]).toFixed(3));
      return cell;
    }),
  ));
  const pairs = texts.flatMap((one, i) => texts.slice(i + 1).map((other, k) => [cosines[i][i + 1 + k], one, other]));
  pairs.sort((a, b) => b[0] - a[0]);
  $("view-compare").replaceChildren(
    element("div", { kind: "matrix" }, element("table", {}, head, ...rows)),
    element("h2", { text: "Nearest pairs" }),
    element("ol", { kind: "pairs" }, ...pairs.slice(0, 10).map(([value, one, other]) => element(
      "li", {},
      element("strong", { text: value.toFixed(3) }),
      element("div", {}, element("div", { kind: "text", dir: "auto", text: one }), element("div", { kind: "text", dir: "auto", text: other })),
    ))),
  );
}

function cosine(a, b) {
  let product = 0, one = 0, other = 0;
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    one += a[i] * a[i];
    other += b[i] * b[i];
  }
  return product / (Math.sqrt(one * other) || 1);
}

// ---- start, key, theme -------------------------------------------------------------------------

function intro() {
  const code = (text) => element("code", { text });
  const say = (view, ...children) => $(`view-${view}`).replaceChildren(element("p", { kind: "intro" }, ...children));
  if (names.stores.length) {
    const store = names.stores.length === 1 ? `the store ${names.stores[0]}` : "a store";
    say("search", `Passages of ${store}, by meaning and by words. Enter opens the file at the passage.`);
    say("ask", `An answer from ${store}, with its sources.`);
  } else {
    for (const view of ["search", "ask"]) $(`view-${view}`).replaceChildren(element(
      "div", { kind: "intro" },
      element("p", {}, "The server was started without a store. Index a folder, and name it with ", code("--store"), ":"),
      element("pre", { text: "grit rag index ~/notes --store ~/notes.grit\ngrit serve --store notes=~/notes.grit" }),
    ));
  }
  say("chat", "A conversation with the model. It stays in this tab.");
  say("compare", "How alike texts are in meaning: the cosine of their vectors, for each pair.");
}

async function start() {
  tell("Connecting…");
  for (;;) {
    try {
      const all = await api.models();
      names.models = all.filter((name) => !name.startsWith(STORE));
      names.stores = all.filter((name) => name.startsWith(STORE)).map((name) => name.slice(STORE.length));
      break;
    } catch (error) {
      if (error.status === 401) {
        $("key").hidden = false;
        tell("");
        fail(error.message);
        return askForKey();
      }
      if (error.code !== "loading") {
        tell("");
        return fail(error.message);
      }
      tell("The model is being loaded…");
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
  $("key").hidden = !api.key.get();
  $("store").replaceChildren(...names.stores.map((name) => element("option", { value: name, text: name })));
  intro();
  const wanted = location.hash.slice(1);
  choose(wanted in MODES ? wanted : names.stores.length ? "search" : "chat", { focus: !panel.isOpen() });
}

function askForKey() {
  $("key").hidden = false;
  $("key-input").value = "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key").onclick = askForKey;
$("key-use").onclick = () => api.key.set($("key-input").value.trim());
$("key-dialog").onclose = () => { if ($("key-dialog").returnValue === "use") start(); };
$("key-input").onkeydown = (event) => {
  if (event.key !== "Enter") return; // the first button of a dialog is Cancel
  event.preventDefault();
  $("key-use").click();
};

const THEMES = ["system", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");

function theme(chosen) {
  const root = document.documentElement;
  const now = THEMES.includes(chosen) ? chosen : "system";
  root.dataset.theme = now;
  root.toggleAttribute("data-dark", now === "dark" || (now === "system" && system.matches));
  $("theme").textContent = { system: "◐", light: "☀", dark: "☾" }[now];
  $("theme").setAttribute("aria-label", `Colours: ${now}`);
  return now;
}

system.onchange = () => theme(localStorage.getItem("grit-theme"));
$("theme").onclick = () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  localStorage.setItem("grit-theme", theme(next));
};

// ---- keys --------------------------------------------------------------------------------------

$("form").onsubmit = (event) => {
  event.preventDefault();
  submit();
};
$("stop").onclick = () => running?.abort();
$("panel-close").onclick = panel.close;
$("input").oninput = () => {
  refresh();
  if (!CSS.supports("field-sizing", "content")) {
    $("input").style.height = "auto";
    $("input").style.height = `${$("input").scrollHeight}px`;
  }
};
for (const tab of document.querySelectorAll("[role=tab]")) tab.onclick = () => choose(tab.dataset.mode);
$("tabs").onkeydown = (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  const all = Object.keys(MODES);
  choose(all[(all.indexOf(mode) + by + all.length) % all.length], { focus: false });
  $(`tab-${mode}`).focus();
};
window.onhashchange = () => {
  const wanted = location.hash.slice(1);
  if (wanted in MODES && wanted !== mode) choose(wanted);
};

document.addEventListener("keydown", (event) => {
  if ($("key-dialog").open || event.isComposing) return;
  const target = event.target;
  const typing = target.matches?.("textarea, input, select");
  if (event.key === "Escape") {
    if (running) running.abort();
    else if (panel.isOpen()) panel.close();
    else target.blur?.();
    event.preventDefault();
  } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $("input").focus();
    $("input").select();
  } else if (event.key === "Enter" && target === $("input") && !event.shiftKey) {
    if (MODES[mode].lines && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    submit();
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !event.altKey && !target.closest("select, #tabs, #panel")) {
    // In several lines the arrows move the caret.
    if (target === $("input") && (target.value.includes("\n") || MODES[mode].lines)) return;
    if (move(event.key === "ArrowDown" ? 1 : -1)) event.preventDefault();
  }
});

theme(localStorage.getItem("grit-theme"));
start();
