// The API key of the browser session. Each tab keeps it in its sessionStorage, which is gone when the tab is closed. A tab
// without a key asks the other tabs of this server for it, and a key that is forgotten in one is forgotten in all.
const STORAGE_KEY = "inseq-api-key";
const ANSWERED_WITHIN = 300; // milliseconds that another tab may take to answer
const listeners = new Set();
const channel = new BroadcastChannel("inseq-api-key");
let asking = null; // the promise of `takeOver` while it waits
let announced = null; // the key that the server has accepted, which the other tabs were told

/** The API key of this tab, or null. */
export const apiKey = {
  get: () => sessionStorage.getItem(STORAGE_KEY),
  set(value) {
    sessionStorage.setItem(STORAGE_KEY, value);
  },
  /** Note that the server has accepted the key: tabs that have none take it. */
  accepted(key) {
    if (key === announced || key !== apiKey.get()) return;
    announced = key;
    channel.postMessage({ type: "key", key });
  },
  /** Forget the key, here and in the other tabs that have it. */
  forget() {
    const key = apiKey.get();
    sessionStorage.removeItem(STORAGE_KEY);
    announced = null;
    if (key) channel.postMessage({ type: "forget", key });
  },
  /** Ask the other tabs for a key. Resolves to it, or to null if none answers. */
  takeOver() {
    asking ??= new Promise((resolve) => {
      const answer = () => {
        clearTimeout(timer);
        stop();
        asking = null;
        resolve(apiKey.get());
      };
      const stop = onKeyChange(answer);
      const timer = setTimeout(answer, ANSWERED_WITHIN);
      channel.postMessage({ type: "ask" });
    });
    return asking;
  },
};

/** Call `listener(isAwaited)` when another tab gave a key to this one, for which `takeOver` may wait, or had it forgotten. */
export function onKeyChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

channel.addEventListener("message", ({ data: { type, key } }) => {
  const own = apiKey.get();
  if (type === "ask" && own) channel.postMessage({ type: "key", key: own });
  if (type === "key" && !own) apiKey.set(key);
  else if (type === "forget" && own === key) sessionStorage.removeItem(STORAGE_KEY);
  else return;
  announced = apiKey.get();
  const isAwaited = Boolean(asking);
  for (const listener of [...listeners]) listener(isAwaited);
});
