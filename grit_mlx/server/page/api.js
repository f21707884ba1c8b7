// What the page asks of the server. Addresses are relative, so that it works behind a proxy with a path.

const KEY = "grit-key";

export class RequestError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY),
};

async function request(path, { body, signal } = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server does not answer. Is 'grit serve' still running?", 0);
  }
  if (response.ok) return response;
  throw refused(await response.json().catch(() => ({})), response.status);
}

function refused(body, status) {
  const { message, code } = body.error ?? {};
  return new RequestError(message ?? `The server answered with an error (${status}).`, status, code);
}

const json = async (path, options) => {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server's answer was cut off. Try again.", 0);
  }
};

export const models = async (signal) => (await json("v1/models", { signal })).data.map((model) => model.id);

export const search = (store, query, signal) =>
  json(`v1/stores/${encodeURIComponent(store)}/search`, { body: { query, top_k: 20 }, signal });

export const file = (store, path, line, count, signal) =>
  json(`v1/stores/${encodeURIComponent(store)}/file?${new URLSearchParams({ path, line, count })}`, { signal });

export const embed = async (model, input, signal) => {
  const { data } = await json("v1/embeddings", { body: { model, input, encoding_format: "float" }, signal });
  return data.map((one) => one.embedding);
};

// The chunks of an answer as they come.
export async function* chat(model, messages, signal) {
  const body = { model, messages, stream: true, max_tokens: 1024 };
  const response = await request("v1/chat/completions", { body, signal });
  let ended = false;
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") {
      ended = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw refused(chunk, response.status);
    const choice = chunk.choices?.[0] ?? {};
    yield {
      text: choice.delta?.content ?? "",
      citations: chunk.citations ?? choice.delta?.citations,
      reason: choice.finish_reason,
    };
  }
  if (!ended) throw new RequestError("The connection broke before the answer was complete.", 0);
}

// The data of server-sent events; comments, which keep a connection alive, are left out.
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const blocks = held.split(/\r?\n\r?\n/);
      held = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } catch (error) {
    if (signal?.aborted || error.name === "AbortError") throw new DOMException("stopped", "AbortError");
    if (error instanceof RequestError) throw error;
    throw new RequestError("The connection broke before the answer was complete.", 0);
  } finally {
    reader.cancel().catch(() => {});
  }
}
