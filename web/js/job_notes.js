// A job's id, tags and notes on its page, and the form in which its name, notes and tags are changed in place.
import { html, useId, useLayoutEffect, useRef, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";
import { TagChips } from "./tag_chips.js";

export function JobNotes({ job, store }) {
  const [isOpen, setOpen] = useState(false);
  const button = useRef(null);
  const wasOpen = useRef(false);
  useLayoutEffect(() => {
    if (wasOpen.current && !isOpen) button.current?.focus();
    wasOpen.current = isOpen;
  }, [isOpen]);
  if (isOpen) return html`<${Editor} job=${job} store=${store} onEnd=${() => setOpen(false)} />`;
  return html`
    <div class="job-notes">
      ${job.notes && html`<p class="notes" dir="auto">${job.notes}</p>`}
      <p class="labels">
        <${TagChips} tags=${job.tags} />
        ${job.request && html`<button class="quiet" ref=${button} onClick=${() => setOpen(true)}>
          ${job.name || job.notes || Object.keys(job.tags ?? {}).length ? "Edit name, notes and tags" : "Add a name, notes or tags"}</button>`}
        <span class="muted">Job <code>${job.job_id}</code></span>
      </p>
    </div>
  `;
}

function Editor({ job, store, onEnd }) {
  const [before] = useState({ name: job.name ?? "", notes: job.notes ?? "", tags: job.tags ?? {} });
  const [name, setName] = useState(before.name);
  const [notes, setNotes] = useState(before.notes);
  const [tags, setTags] = useState(textOfTags(before.tags));
  const [problem, setProblem] = useState(null);
  const first = useRef(null);
  const id = useId();
  useLayoutEffect(() => first.current.focus(), []);
  const save = async (event) => {
    event?.preventDefault();
    try {
      // What was not changed here is not sent: somebody else may have changed it meanwhile.
      const changes = {
        ...(name !== before.name && { name }),
        ...(notes !== before.notes && { notes }),
        ...(tags !== textOfTags(before.tags) && { tags: changesOfTags(before.tags, tags) }),
      };
      if (Object.keys(changes).length) await store.update(job, changes);
      onEnd();
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  const onKeyDown = (event) => {
    if (event.key === "Escape") onEnd();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(event);
  };
  const field = (suffix, label, control, help) => html`
    <div class="field"><label for=${id + suffix}>${label}</label>${control(id + suffix)}${help && html`<p class="help">${help}</p>`}</div>`;
  return html`
    <form class="job-notes editing" aria-label="Name, notes and tags" onSubmit=${save} onKeyDown=${onKeyDown}>
      ${field("name", "Name", (id) => html`<input type="text" id=${id} ref=${first} dir="auto" maxlength="200" value=${name} onInput=${(event) => setName(event.target.value)} />`)}
      ${field("notes", "Notes", (id) => html`<textarea id=${id} rows="3" dir="auto" maxlength="20000" value=${notes} onInput=${(event) => setNotes(event.target.value)}></textarea>`)}
      ${field("tags", "Tags", (id) => html`<textarea id=${id} rows="2" value=${tags} onInput=${(event) => setTags(event.target.value)}></textarea>`, "One a line, as study: bias. A value in quotes may have line breaks, as \"one\\ntwo\".")}
      ${problem && html`<${Notice} problem=${problem}>
        ${problem.errors?.length > 1 && html`<ul>${problem.errors.map((each) => html`<li>${each.pointer}: ${each.detail}</li>`)}</ul>`}<//>`}
      <p class="actions"><button class="primary">Save</button> <button type="button" class="quiet" onClick=${onEnd}>Discard changes</button></p>
    </form>
  `;
}

/** Tags as text, one a line; a value that is no plain rest of a line is in quotes, as in JSON. */
const textOfTags = (tags) => Object.entries(tags).map(([name, value]) => (value ? `${name}: ${isPlain(value) ? value : JSON.stringify(value)}` : name)).join("\n");

const isPlain = (value) => value === value.trim() && !/^"|[\n\r]/.test(value);

/** The change from these tags to those in the text: a tag that is no longer there becomes null. */
function changesOfTags(before, text) {
  const wanted = Object.fromEntries(text.split("\n").filter((line) => line.trim()).map((line) => {
    const [name, ...value] = line.split(":");
    return [name.trim(), unquoted(value.join(":").trim())];
  }));
  const removed = Object.keys(before).filter((name) => !(name in wanted)).map((name) => [name, null]);
  return Object.fromEntries([...removed, ...Object.entries(wanted).filter(([name, value]) => before[name] !== value)]);
}

function unquoted(value) {
  try {
    return value.startsWith('"') ? JSON.parse(value) : value;
  } catch {
    return value;
  }
}
