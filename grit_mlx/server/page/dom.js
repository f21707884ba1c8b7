// Elements are made here, and texts become text nodes: what documents and models write is never read as markup.

export const $ = (id) => document.getElementById(id);

// Marks that turn the direction of what follows can make a text look like another one.
export const plain = (text) => String(text).replace(/[\u202a-\u202e\u2066-\u2069]/g, "");

export function element(tag, { text, kind, data = {}, on = {}, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = plain(text);
  Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const [name, listener] of Object.entries(on)) made.addEventListener(name, listener);
  made.append(...children);
  return made;
}

// A text whose words of the query are marked.
export function marked(given, query) {
  const text = plain(given);
  const words = [...new Set(query.toLowerCase().match(/[\p{L}\p{N}]{3,}/gu) ?? [])];
  const made = element("span", { kind: "text", dir: "auto" });
  if (!words.length) {
    made.textContent = text;
    return made;
  }
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}])(${words.join("|")})`, "giu");
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    made.append(text.slice(end, match.index), element("mark", { text: match[0] }));
    end = match.index + match[0].length;
  }
  made.append(text.slice(end));
  return made;
}

export const plural = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;
