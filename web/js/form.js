// The form that submits a job. Its fields are made from the catalogue of the server.
import { getJson } from "./api.js";
import { CopyAs } from "./copy_as.js";
import { Estimate } from "./estimate.js";
import { examplesFor, firstRequest } from "./examples.js";
import { Examples } from "./form_examples.js";
import { errorsAmong, Field } from "./form_field.js";
import { Fold, setAmong } from "./form_fold.js";
import { AttributedFunction, StepScores } from "./form_functions.js";
import { Generation } from "./form_generation.js";
import { AddInput, Inputs, KindOfInput } from "./form_inputs.js";
import { Comparison, Method, MethodArguments } from "./form_methods.js";
import { Model } from "./form_model.js";
import { FormProblems, showErrors } from "./form_problems.js";
import { GROUPS } from "./field_words.js";
import { modelNamed } from "./model_facts.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { draftOf, errorsOf, groupSpecs, isPlausible, requestOf, withModel } from "./request_draft.js";
import { go, jobHash } from "./route.js";

const MODELS_ARE_NEW = 5000; // milliseconds
const SUBMIT_KEYS = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ Enter" : "Ctrl+Enter";
export function JobForm({ from, store, catalogue: loaded }) {
  const catalogue = useNewestModels(loaded);
  const [draft, setDraft] = useState(() => draftOf(firstRequest(catalogue), catalogue));
  const [problem, setProblem] = useState(null);
  const [isSending, setSending] = useState(false);
  const [isReady, setReady] = useState(!from); // until then there is no form, so that nothing typed is replaced
  const [isChoosing, setChoosing] = useState(false); // a model, in the open list
  const form = useRef(null);
  useEffect(() => {
    if (!from) return;
    getJson(`/attribution/jobs/${encodeURIComponent(from)}`)
      .then((job) => job.request && setDraft({ ...draftOf(job.request, catalogue), isKindChosen: true }), setProblem)
      .then(() => setReady(true));
  }, [from]);
  const errors = problem?.errors ?? [];
  const change = (changes) => setDraft((draft) => (typeof changes === "function" ? changes(draft) : { ...draft, ...changes }));
  // `extras` has what is drawn below a field, by its pointer.
  const fields = (specs, extras = {}) => specs.map((spec) => html`
    <${Field} key=${spec.pointer} spec=${spec} value=${draft.values[spec.pointer]}
      errors=${errorsAmong(errors, spec.pointer, specs.map(({ pointer }) => pointer))}
      onChange=${(value) => setDraft((draft) => ({ ...draft, values: { ...draft.values, [spec.pointer]: value } }))}>${extras[spec.pointer]}<//>`);
  const fillIn = (request) => {
    setProblem(null);
    setDraft(draftOf(request, catalogue));
    scrollTo(0, 0);
  };
  const submit = async (event) => {
    event.preventDefault();
    if (isSending) return;
    const own = errorsOf(draft);
    if (own.length) return setProblem({ title: "The request is not complete", errors: own });
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
  const submitByKey = (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    form.current.requestSubmit();
  };
  useEffect(() => problem && form.current && showErrors(form.current), [problem, isReady]);
  if (!isReady) return html`<p class="muted" role="status">Loading…</p>`;
  const parts = { draft, catalogue, errors, change, fields };
  const request = requestOf(draft, catalogue);
  const model = modelNamed(catalogue.models, draft.model);
  const canEstimate = catalogue.canEstimate && model && !model.problem && !isChoosing && isPlausible(draft, catalogue);
  return html`
    <form class="job-form" ref=${form} onSubmit=${submit} onKeyDown=${submitByKey} novalidate aria-labelledby="form-title">
      <h1 id="form-title">Which input tokens did each generated token depend on?</h1>
      ${problem && html`<${FormProblems} problem=${problem} form=${form} />`}
      <div class="essentials">
        <div class="subject">
          <${Model} model=${draft.model} models=${catalogue.models} errors=${errors} onOpen=${setChoosing}
            onChange=${(name) => change((draft) => withModel(draft, name, catalogue))} />
          <${KindOfInput} ...${parts} />
        </div>
        <${Inputs} ...${parts} />
        <${Method} ...${parts} />
      </div>
      <div class="submit">
        <button class="primary" type="submit" disabled=${isSending} aria-keyshortcuts="Control+Enter Meta+Enter">${isSending ? "Sending…" : "Attribute"}</button>
        <kbd class="muted" aria-hidden="true">${SUBMIT_KEYS}</kbd>
        <${Estimate} request=${canEstimate ? request : null} isCold=${!model?.loaded} />
      </div>
      <${Examples} examples=${examplesFor(catalogue)} onChoose=${fillIn} />
      <section class="options" aria-labelledby="options-title">
        <h2 id="options-title">Options</h2>
        <${Generation} ...${parts} />
        <${MethodArguments} ...${parts} />
        <${Comparison} ...${parts} />
        <${AttributedFunction} ...${parts} />
        <${StepScores} ...${parts} />
        <${Fold} title=${draft.isChat ? "Several conversations" : "Several texts"} state=${draft.inputs.length > 1 ? String(draft.inputs.length) : ""}>
          <p class="muted">Each is attributed by itself, in one job and with the same options.</p>
          <${AddInput} ...${parts} />
        <//>
        ${GROUPS.map(({ name, title }) => {
          const specs = groupSpecs(draft, name, catalogue);
          return specs.length > 0 && html`
            <${Fold} key=${name} title=${title} state=${setAmong(specs, draft.values)}><div class="grid">${fields(specs)}</div><//>`;
        })}
        <${CopyAs} request=${request} />
      </section>
    </form>
  `;
}

/** The catalogue with the models as they are now: others may have been loaded since the page was opened. */
function useNewestModels(catalogue) {
  const [models, setModels] = useState(catalogue.models);
  useEffect(() => {
    if (performance.now() - catalogue.loadedAt < MODELS_ARE_NEW) return undefined;
    const reading = new AbortController();
    getJson("/attribution/models", { signal: reading.signal }).then(setModels, () => {}); // the older list will do
    return () => reading.abort();
  }, []);
  return { ...catalogue, models };
}
