// What the list of jobs is filtered by, kept in the query of the address (`/?search=tea&status=failed#/jobs/ID`), apart
// from the part after #, so that it stays whichever job is shown, and a reload or a shared link has it.

export const NO_FILTERS = { search: "", status: "", model: "", method: "", tag: "" };

const NAMES = Object.keys(NO_FILTERS);

/** The filters in the address. */
export function filtersInAddress() {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(NAMES.map((name) => [name, query.get(name) ?? ""]));
}

/** Put the filters into the address, without a new entry in the browser's history. */
export function putInAddress(filters) {
  const query = new URLSearchParams(location.search);
  for (const name of NAMES) {
    if (filters[name]) query.set(name, filters[name]);
    else query.delete(name);
  }
  const text = query.toString();
  history.replaceState(history.state, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`);
}

export const isFiltered = (filters) => NAMES.some((name) => filters[name]);

export const sameFilters = (one, other) => NAMES.every((name) => one[name] === other[name]);
