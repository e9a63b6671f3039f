// Calls of the API. Sends the API key with each, and throws a `Problem` for every failure.

import { apiKey } from "./api_key.js";

export { apiKey };
const unauthorizedListeners = new Set();
const answerListeners = new Set();

/** Call `listener(hadKey)` whenever the server asks for a key. Returns a function that stops the calls. */
export function onUnauthorized(listener) {
  unauthorizedListeners.add(listener);
  return () => unauthorizedListeners.delete(listener);
}

/** Call `listener()` after every answer of the server, errors included. Returns a function that stops the calls. */
export function onAnswer(listener) {
  answerListeners.add(listener);
  return () => answerListeners.delete(listener);
}

/** An error made from a problem document (RFC 9457). */
export class Problem extends Error {
  constructor(document, status) {
    super(document.detail || document.title || "The request failed.");
    this.status = status;
    this.title = document.title;
    this.errors = document.errors ?? [];
  }

  /** Whether the server did not answer. Such a problem is over as soon as the server answers any call. */
  get isUnanswered() {
    return this.status === 0;
  }
}

/** Fetch `path`. Throws a `Problem` for an error status and where the server cannot be reached. */
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const isOpen = path.startsWith("/shared/"); // needs no key
  const key = isOpen ? null : apiKey.get();
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
  for (const listener of [...answerListeners]) listener();
  if (key && response.status !== 401 && path.startsWith("/attribution/")) apiKey.accepted(key); // others are open to all
  if (response.ok) return response;
  if (response.status === 401 && !key && !isOpen && (apiKey.get() || (await apiKey.takeOver()))) {
    return call(path, { method, body, headers, signal });
  }
  // A late refusal of an older key does not concern a key that was entered since.
  if (response.status === 401 && apiKey.get() === key) {
    apiKey.forget();
    for (const listener of unauthorizedListeners) listener(Boolean(key));
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

/** The path with a query of those parameters that have a value. */
export function withQuery(path, parameters) {
  const query = new URLSearchParams(
    Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== ""),
  ).toString();
  return query ? `${path}${path.includes("?") ? "&" : "?"}${query}` : path;
}
