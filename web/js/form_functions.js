// What is attributed, and which scores of each generated token are reported beside it.
import { errorsAt, Labelled } from "./form_field.js";
import { Fold } from "./form_fold.js";
import { isEncoderDecoder } from "./model_facts.js";
import { html } from "./preact.js";
import { attributedFnSpecs, stepScoreSpecs } from "./request_draft.js";

const DEFAULT = "probability";
const CONTRAST = "/contrast_targets";

const sorted = (catalogue, isContrastive) => Object.values(catalogue.stepFunctions).filter((each) => Boolean(each.is_contrastive) === isContrastive);

export function AttributedFunction({ draft, catalogue, errors, change, fields }) {
  const name = draft.attributedFn || DEFAULT;
  const specs = attributedFnSpecs(draft, catalogue);
  const option = (each) => html`<option value=${each.name === DEFAULT ? "" : each.name}>${each.title} (${each.name})${each.name === DEFAULT ? " · default" : ""}</option>`;
  return html`
    <${Fold} title="What is attributed" state=${catalogue.stepFunctions[name]?.title ?? name} className="attributed">
      <${Labelled} label="Attributed function" identifier="attributed_fn" pointer="/attributed_fn" errors=${errorsAt(errors, "/attributed_fn")}
        help=${catalogue.stepFunctions[name]?.description}
        control=${(attributes) => html`
          <select ...${attributes} value=${draft.attributedFn === DEFAULT ? "" : draft.attributedFn} onChange=${(event) => change({ attributedFn: event.target.value })}>
            <optgroup label="Of the model’s output">${sorted(catalogue, false).map(option)}</optgroup>
            <optgroup label="Against a contrast: why this and not that?">${sorted(catalogue, true).map(option)}</optgroup>
          </select>`} />
      <${Arguments} specs=${specs} draft=${draft} catalogue=${catalogue} change=${change} fields=${fields} />
    <//>
  `;
}

export function StepScores({ draft, catalogue, errors, change, fields }) {
  const own = errorsAt(errors, "/step_scores");
  const contrastive = sorted(catalogue, true);
  const toggle = (name) => change({
    stepScores: draft.stepScores.includes(name) ? draft.stepScores.filter((each) => each !== name) : [...draft.stepScores, name],
  });
  const check = ({ name, title, description }) => html`
    <label key=${name}><input type="checkbox" checked=${draft.stepScores.includes(name)} onChange=${() => toggle(name)} />
      <span>${title} <code class="identifier">${name}</code> <span class="hint">${description.replaceAll("`", "")}</span></span></label>`;
  return html`
    <${Fold} title="Scores of each generated token" state=${draft.stepScores.join(", ")} className="scores">
      <fieldset>
        <legend>Step scores <code class="identifier">step_scores</code></legend>
        <div class="checks wide">${sorted(catalogue, false).map(check)}</div>
        <details class="contrastive" open=${contrastive.some(({ name }) => draft.stepScores.includes(name))}>
          <summary>Against a contrast: another text, or the same in another context</summary>
          <div class="checks wide">${contrastive.map(check)}</div>
        </details>
        ${own.length > 0 && html`<p class="error">${own.map((error) => error.detail).join(" ")}</p>`}
      </fieldset>
      <${Arguments} specs=${stepScoreSpecs(draft, catalogue)} draft=${draft} catalogue=${catalogue} change=${change} fields=${fields} />
    <//>
  `;
}

/** The fields of functions' arguments; a contrast of a decoder-only model may begin with the input texts. */
function Arguments({ specs, draft, catalogue, change, fields }) {
  const contrast = specs.find(({ pointer }) => pointer.endsWith(CONTRAST));
  const texts = draft.inputs.map(({ text }) => text);
  const start = texts.length === 1 ? texts[0] : JSON.stringify(texts);
  const mayBegin = contrast && !draft.isChat && isEncoderDecoder(catalogue.models, draft.model) !== true && texts.every(Boolean);
  const value = contrast && (draft.values[contrast.pointer] ?? "");
  const begin = () => change((draft) => ({ ...draft, values: { ...draft.values, [contrast.pointer]: texts.length === 1 ? start + value : start } }));
  if (!specs.length) return null;
  const titles = [...new Set(specs.flatMap(({ owners }) => owners))];
  return html`
    <fieldset class="arguments">
      <legend>Arguments of ${titles.join(", ")}</legend>
      <div class="grid">${fields(specs, {
        [contrast?.pointer]: mayBegin && !value.startsWith(texts.length === 1 ? start : "[") && html`
          <button type="button" class="quiet" onClick=${begin}>Begin with the input text</button>`,
      })}</div>
    </fieldset>
  `;
}
