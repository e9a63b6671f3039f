// The page's place in the address: `#/` is the form, `#/jobs/ID?seq=1` is a job and the view of its result,
// `#/compare?jobs=ID,ID` shows several jobs side by side.
import { useEffect, useState } from "./preact.js";

function read() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const found = /^\/jobs\/([^/]+)$/.exec(path);
  const parameters = Object.fromEntries(new URLSearchParams(query));
  const compared = path === "/compare" ? (parameters.jobs ?? "").split(",").filter(Boolean) : null;
  return { jobId: found ? decodeURIComponent(found[1]) : null, compared, parameters };
}

const hashOf = (path, parameters) => {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== undefined);
  const query = new URLSearchParams(given).toString();
  return `#${path}${query ? `?${query}` : ""}`;
};

export const jobHash = (id, parameters = {}) => hashOf(`/jobs/${encodeURIComponent(id)}`, parameters);
export const compareHash = (ids, parameters = {}) => hashOf("/compare", { jobs: ids.join(","), ...parameters }).replaceAll("%2C", ",");
export const formHash = (parameters = {}) => hashOf("/", parameters);

export function go(hash) {
  location.hash = hash;
}

/** Change the view of a job's result without a new entry in the browser's history. */
export const show = (id, parameters) => replace(jobHash(id, parameters));

/** Change the address without a new entry in the browser's history. */
export function replace(hash) {
  history.replaceState(null, "", hash);
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
