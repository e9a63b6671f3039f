// What differs between the requests of several jobs, as a table: a row for each field, a column for each job.
import { html } from "./preact.js";
import { jobHash } from "./route.js";
import { textOf } from "./shown_tokens.js";

// What a job is called, how it is queued and who is told of its end changes nothing of its result.
const LEFT_OUT = new Set(["name", "notes", "webhook", "webhook_events", "priority", "reuse", "timeout_seconds", "methods"]);
const SHOWN_AROUND = 40; // characters before and after what differs in a long text

export function CompareRequests({ jobs, names: titles, runs, index }) {
  const readable = jobs.filter((job) => job.request);
  const fields = readable.map((job) => ({ ...fieldsOf(job.request), ...generatedOf(job, runs, index) }));
  const names = [...new Set(fields.flatMap(Object.keys))];
  const differing = names.filter((name) => new Set(fields.map((each) => each[name])).size > 1);
  if (readable.length < 2) return null;
  return html`
    <section class="differences" aria-labelledby="differences">
      <h2 id="differences">What differs</h2>
      ${!differing.length
        ? html`<p class="muted">Nothing: the requests and the generated texts are the same.</p>`
        : html`
          <div class="scroll" role="region" aria-labelledby="differences" tabindex="0">
            <table>
              <thead>
                <tr><td></td>${readable.map((job) => html`<th scope="col" key=${job.job_id}><a href=${jobHash(job.job_id)} dir="auto">${titles[jobs.indexOf(job)]}</a></th>`)}</tr>
              </thead>
              <tbody>${differing.map((name) => html`<${Field} key=${name} name=${name} values=${fields.map((each) => each[name])} />`)}</tbody>
            </table>
          </div>`}
    </section>
  `;
}

function Field({ name, values }) {
  const parts = partsOf(values.map((value) => value ?? ""));
  return html`
    <tr>
      <th scope="row">${name}</th>
      ${values.map((value, at) => html`<td key=${at} dir="auto">${!value ? html`<span class="muted">${value === "" ? "empty" : "–"}</span>` : html`<${Marked} ...${parts[at]} />`}</td>`)}
    </tr>
  `;
}

const Marked = ({ before, differing, after }) => html`${before}${differing && html`<mark>${differing}</mark>`}${after}`;

/**
 * Each value as `{before, differing, after}`, where `before` and `after` are whole words that all have in common. Values
 * of which nothing is in common, or which are short, are not marked.
 */
function partsOf(values) {
  const isLong = values.some((value) => value.length > 2 * SHOWN_AROUND);
  const words = values.map((value) => value.match(/\S+\s*|^\s+/g) ?? []);
  const shortest = Math.min(...words.map((each) => each.length));
  const isCommon = (at) => words.every((each) => each.at(at) === words[0].at(at));
  let first = 0;
  while (first < shortest && isCommon(first)) first += 1;
  let last = 0;
  while (last < shortest - first && isCommon(-1 - last)) last += 1;
  if (first + last === 0) return values.map((value) => ({ before: value }));
  return words.map((each) => {
    const [before, after] = [each.slice(0, first).join(""), each.slice(each.length - last).join("")];
    const [, differing, space] = /^(.*?)(\s*)$/s.exec(each.slice(first, each.length - last).join(""));
    return {
      before: isLong && before.length > SHOWN_AROUND ? `…${before.slice(-SHOWN_AROUND)}` : before,
      differing,
      after: space + (isLong && after.length > SHOWN_AROUND ? `${after.slice(0, SHOWN_AROUND)}…` : after),
    };
  });
}

/** The fields of a request as texts by name; those of objects by `outer.inner`. Without what is not given. */
function fieldsOf(request) {
  const fields = { model: request.model, method: (request.methods ?? [request.method]).join(", ") };
  const add = (name, value) => {
    if (value === null || value === undefined) return;
    if (name === "messages") fields[name] = value.flat().map(({ role, content }) => `${role}: ${[content ?? ""].flat().map((part) => part.text ?? part).join("")}`).join("\n");
    else if (typeof value === "object" && !Array.isArray(value)) for (const [key, each] of Object.entries(value)) add(`${name}.${key}`, each);
    else if (Array.isArray(value) && !value.length) return;
    else fields[name] = typeof value === "string" ? value : Array.isArray(value) && value.every((each) => typeof each === "string") ? value.join("\n") : JSON.stringify(value);
  };
  for (const [name, value] of Object.entries(request)) if (!LEFT_OUT.has(name) && name !== "method") add(name, value);
  return fields;
}

/** The whole text that the model wrote, or whose ids were given, of a request that does not say it. */
function generatedOf(job, runs, index) {
  const sequence = runs.find((run) => run.job.job_id === job.job_id)?.sequences[index];
  if (!sequence || job.request.generated_text) return {};
  const { target, source_attributions: source, attr_pos_start: start } = sequence;
  // The attributed tokens may begin later than the answer; results of older versions do not mark the prompt.
  const answer = source || target.some(({ prompt }) => prompt) ? target.filter(({ prompt }) => !prompt) : target.slice(start);
  return { "text of the model": answer.filter(({ span, special, continues }) => !span && !special && !continues).map(textOf).join("").trim() };
}
