// The form that submits a job. Its fields are made from the catalogue of the server.
import { getJson } from "./api.js";
import { Estimate } from "./estimate.js";
import { COMPARISON, EXAMPLES } from "./examples.js";
import { errorsAmong, errorsAt, Field, Labelled } from "./form_field.js";
import { Inputs } from "./form_inputs.js";
import { Methods } from "./form_methods.js";
import { FormProblems } from "./form_problems.js";
import { LazyDetails } from "./lazy_details.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import {
  advancedSpecs, attributedFnSpecs, draftOf, maxNewTokensSpec, requestOf, stepScoreSpecs,
} from "./request_draft.js";
import { go, jobHash } from "./route.js";

export function JobForm({ from, store, catalogue }) {
  const examples = examplesFor(catalogue);
  const [draft, setDraft] = useState(() => draftOf((examples[0] ?? EXAMPLES[0]).request, catalogue));
  const [problem, setProblem] = useState(null);
  const [isSending, setSending] = useState(false);
  const [isReady, setReady] = useState(!from); // until then there is no form, so that nothing typed is replaced
  const form = useRef(null);
  useEffect(() => {
    if (!from) return;
    getJson(`/attribution/jobs/${encodeURIComponent(from)}`)
      .then((job) => job.request && setDraft(draftOf(job.request, catalogue)), setProblem)
      .then(() => setReady(true));
  }, [from]);
  const errors = problem?.errors ?? [];
  const change = (changes) => setDraft((draft) => ({ ...draft, ...changes }));
  const fields = (specs) => specs.map((spec) => html`
    <${Field} key=${spec.pointer} spec=${spec} value=${draft.values[spec.pointer]}
      errors=${errorsAmong(errors, spec.pointer, specs.map(({ pointer }) => pointer))}
      onChange=${(value) => setDraft((draft) => ({ ...draft, values: { ...draft.values, [spec.pointer]: value } }))} />`);
  const fillIn = (request) => {
    setProblem(null);
    setDraft(draftOf(request, catalogue));
  };
  const submit = async (event) => {
    event.preventDefault();
    setSending(true);
    try {
      const job = await getJson("/attribution/jobs", { method: "POST", body: requestOf(draft, catalogue) });
      store.put(job);
      store.refresh();
      go(jobHash(job.job_id));
    } catch (problem) {
      setSending(false);
      setProblem(problem);
    }
  };
  useEffect(() => problem && form.current && showErrors(form.current), [problem, isReady]);
  if (!isReady) return html`<p class="muted" role="status">Loading…</p>`;
  return html`
    <form class="job-form" ref=${form} onSubmit=${submit} novalidate aria-labelledby="form-title">
      <h1 id="form-title">Which input tokens did each generated token depend on?</h1>
      <div class="examples" role="group" aria-label="Examples">
        <span class="muted">Examples</span>
        ${examples.map(({ name, request }) => html`<button type="button" class="chip" onClick=${() => fillIn(request)}>${name}</button>`)}
      </div>
      ${problem && html`<${FormProblems} problem=${problem} form=${form} />`}
      <${Model} draft=${draft} catalogue=${catalogue} errors=${errors} change=${change} />
      <${Inputs} draft=${draft} errors=${errors} change=${change} />
      <${Methods} draft=${draft} catalogue=${catalogue} errors=${errors} change=${change} fields=${fields} />
      <${Functions} draft=${draft} catalogue=${catalogue} errors=${errors} change=${change} fields=${fields} />
      <details class="advanced">
        <summary>Advanced options</summary>
        <div class="grid">${fields([maxNewTokensSpec(), ...advancedSpecs(catalogue)])}</div>
      </details>
      <div class="actions">
        <button class="primary" type="submit" disabled=${isSending}>${isSending ? "Sending…" : "Attribute"}</button>
        ${catalogue.canEstimate && html`<${Estimate} request=${requestOf(draft, catalogue)} onProblem=${setProblem} />`}
      </div>
      <${AsJson} draft=${draft} catalogue=${catalogue} />
    </form>
  `;
}

function examplesFor(catalogue) {
  const known = catalogue.request.methods ? [...EXAMPLES, COMPARISON] : EXAMPLES;
  return known.filter(({ request }) => catalogue.models.bundled.includes(request.model));
}

/** Open the `<details>` around invalid fields, and focus the first such field. */
function showErrors(form) {
  const invalid = [...form.querySelectorAll("[aria-invalid=true]")];
  for (const each of invalid) {
    const folded = each.closest("details");
    if (folded) folded.open = true;
  }
  (invalid[0] ?? form.querySelector(".notice"))?.focus();
}

function Model({ draft, catalogue, errors, change }) {
  const { bundled, loaded } = catalogue.models;
  const names = [...new Set([...bundled, ...loaded.map(({ name }) => name)])];
  return html`
    <${Labelled} label="Model" pointer="/model" errors=${errorsAt(errors, "/model")}
      help="A bundled model, or one from the Hugging Face Hub: name, org/name or org/name@revision."
      control=${(attributes) => html`
        <input ...${attributes} type="text" list="models" autocomplete="off" spellcheck=${false} value=${draft.model}
          onInput=${(event) => change({ model: event.target.value })} />
        <datalist id="models">${names.map((name) => html`<option value=${name} />`)}</datalist>`} />
  `;
}

function Functions({ draft, catalogue, errors, change, fields }) {
  const functions = Object.values(catalogue.stepFunctions);
  const names = functions.sort((a, b) => a.is_contrastive - b.is_contrastive).map(({ name }) => name);
  const own = errorsAt(errors, "/step_scores");
  const toggle = (name) => change({
    stepScores: draft.stepScores.includes(name) ? draft.stepScores.filter((each) => each !== name) : [...draft.stepScores, name],
  });
  return html`
    <div class="pair">
      <${Labelled} label="Attributed function" pointer="/attributed_fn" errors=${errorsAt(errors, "/attributed_fn")}
        help=${catalogue.stepFunctions[draft.attributedFn || "probability"]?.description}
        control=${(attributes) => html`
          <select ...${attributes} value=${draft.attributedFn} onChange=${(event) => change({ attributedFn: event.target.value })}>
            <option value="">probability (default)</option>
            ${names.filter((name) => name !== "probability").map((name) => html`<option value=${name}>${name}</option>`)}
          </select>`} />
      <div class="grid arguments">${fields(attributedFnSpecs(draft, catalogue))}</div>
    </div>
    <fieldset class="scores">
      <legend>Step scores</legend>
      <div class="checks">
        ${names.map((name) => html`
          <label><input type="checkbox" checked=${draft.stepScores.includes(name)} onChange=${() => toggle(name)} /> ${name}</label>`)}
      </div>
      ${own.length > 0 && html`<p class="error">${own.map((error) => error.detail).join(" ")}</p>`}
      <div class="grid arguments">${fields(stepScoreSpecs(draft, catalogue))}</div>
    </fieldset>
  `;
}

function AsJson({ draft, catalogue }) {
  const text = () => JSON.stringify(requestOf(draft, catalogue), null, 2);
  return html`
    <${LazyDetails} className="as-json" summary="Request as JSON">${() => html`<pre tabindex="0" aria-label="Request">${text()}</pre>`}<//>
  `;
}
