// Calls of the API: the key goes with each, and what goes wrong comes back as the problem that the server told.

const STORED = "inseq-api-key";
const listeners = new Set();
const hearers = new Set();

/** The API key of this tab, or null. It is forgotten with the tab. */
export const apiKey = {
  get: () => sessionStorage.getItem(STORED),
  set(value) {
    sessionStorage.setItem(STORED, value);
  },
  forget() {
    sessionStorage.removeItem(STORED);
  },
};

/** Call `listener(hadKey)` whenever the server asks for a key; returns how to stop it. */
export function onUnauthorized(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Call `hearer()` whenever the server answers, whatever it says; returns how to stop it. */
export function onAnswer(hearer) {
  hearers.add(hearer);
  return () => hearers.delete(hearer);
}

/** A problem document (RFC 9457), thrown. */
export class Problem extends Error {
  constructor(document, status) {
    super(document.detail || document.title || "The request failed.");
    this.status = status;
    this.title = document.title;
    this.errors = document.errors ?? [];
  }

  /** Whether there was no answer at all: it says nothing any more once there is one. */
  get isSilence() {
    return this.status === 0;
  }
}

/** Fetch `path`. Throws a `Problem` for whatever is not a success, also where the server cannot be reached. */
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const key = apiKey.get();
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
      headers: {
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(key ? { Authorization: `Bearer ${key}` } : {}),
        ...headers,
      },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "No answer", detail: "The server cannot be reached. Is it running?" }, 0);
  }
  for (const hearer of [...hearers]) hearer();
  if (response.ok) return response;
  // An answer to an older key says nothing of one that was entered since.
  if (response.status === 401 && apiKey.get() === key) {
    apiKey.forget();
    for (const listener of listeners) listener(Boolean(key));
  }
  let document = {};
  try {
    document = await response.json();
  } catch {
    document = { title: response.statusText, detail: `The server answered ${response.status}.` };
  }
  throw new Problem(document, response.status);
}

export const getJson = async (path, options) => (await call(path, options)).json();

/** A path with those parameters that have a value. */
export function withQuery(path, parameters) {
  const query = new URLSearchParams(
    Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== ""),
  ).toString();
  return query ? `${path}${path.includes("?") ? "&" : "?"}${query}` : path;
}
