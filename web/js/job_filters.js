// The search box and the filters above the list of jobs.
import { STATUSES } from "./job.js";
import { isFiltered } from "./list_filters.js";
import { html, useEffect, useState } from "./preact.js";

const TYPING_PAUSE = 250; // milliseconds after the last key until the search runs

export function JobFilters({ store }) {
  const filters = store.filters.value;
  const { models, methods, tags } = store.facets.value;
  const menu = (name, label, values, named = (value) => value) =>
    html`<${Menu} label=${label} value=${filters[name]} values=${values} named=${named} onChange=${(value) => store.filter({ [name]: value })} />`;
  return html`
    <form class="job-filters" role="search" aria-label="Jobs" onSubmit=${(event) => event.preventDefault()}>
      <${SearchBox} store=${store} />
      <div class="menus">
        ${menu("status", "Status", STATUSES)}
        ${menu("model", "Model", models)}
        ${menu("method", "Method", methods, (value) => value.replaceAll(",", ", "))}
        ${menu("tag", "Tag", tagValues(tags), (value) => value.replace(":", ": ").replace(/: $/, ": empty"))}
      </div>
      ${isFiltered(filters) && html`<button type="button" class="quiet" onClick=${() => store.clearFilters()}>Clear search and filters</button>`}
    </form>
  `;
}

function SearchBox({ store }) {
  const searched = store.filters.value.search;
  const [typed, setTyped] = useState(searched);
  useEffect(() => setTyped(searched), [searched]);
  useEffect(() => {
    if (typed === searched) return;
    const timer = setTimeout(() => store.filter({ search: typed }), TYPING_PAUSE);
    return () => clearTimeout(timer);
  }, [typed]);
  return html`
    <input type="search" aria-label="Search jobs" placeholder="Search texts, names, tags, ids" maxlength="200" value=${typed}
      onInput=${(event) => setTyped(event.target.value)} />
  `;
}

/** A menu of values; none where there is nothing to choose. */
function Menu({ label, value, values, named, onChange }) {
  if (values.length < 2 && !value) return null;
  const all = !value || values.includes(value) ? values : [value, ...values];
  return html`
    <label>${label}
      <select value=${value} onChange=${(event) => onChange(event.target.value)}>
        <option value="">all</option>
        ${all.map((each) => html`<option key=${each} value=${each}>${named(each)}</option>`)}
      </select>
    </label>
  `;
}

/** `name`, for a tag of any value, and `name:value`, as the server's filter takes them. */
const tagValues = (tags) =>
  Object.entries(tags).flatMap(([name, values]) => {
    const each = values.map((value) => `${name}:${value}`);
    return values.length > 1 ? [name, ...each] : values[0] ? each : [name];
  });
