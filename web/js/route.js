// Where the page is, in the address: `#/` is the form, `#/jobs/ID?seq=1` a job and what is shown of it.
import { useEffect, useState } from "./preact.js";

function read() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const found = /^\/jobs\/([^/]+)$/.exec(path);
  const parameters = Object.fromEntries(new URLSearchParams(query));
  return { jobId: found ? decodeURIComponent(found[1]) : null, parameters };
}

const hashOf = (path, parameters) => {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== undefined);
  const query = new URLSearchParams(given).toString();
  return `#${path}${query ? `?${query}` : ""}`;
};

export const jobHash = (id, parameters = {}) => hashOf(`/jobs/${encodeURIComponent(id)}`, parameters);
export const formHash = (parameters = {}) => hashOf("/", parameters);

export function go(hash) {
  location.hash = hash;
}

/** Change what is shown of a job without a step in the history. */
export function show(id, parameters) {
  history.replaceState(null, "", jobHash(id, parameters));
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export function useRoute() {
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const follow = () => setRoute(read());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
}
