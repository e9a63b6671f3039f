// The target: what the model generates, or the text that it is made to generate.
import { errorsAt, Labelled } from "./form_field.js";
import { Fold } from "./form_fold.js";
import { isEncoderDecoder } from "./model_facts.js";
import { html } from "./preact.js";
import { groupSpecs, inputPointer, isTargetGiven, MAX_NEW_TOKENS, maxNewTokensSpec } from "./request_draft.js";

export function Generation({ draft, catalogue, errors, change, fields }) {
  const isGiven = isTargetGiven(draft);
  const specs = groupSpecs(draft, "generation", catalogue).filter(({ pointer }) => !isGiven || pointer !== "/generation_args");
  const most = draft.values[MAX_NEW_TOKENS];
  const state = draft.inputs.some(({ target }) => target) ? "the text is given" : most ? `at most ${most} new tokens` : "";
  return html`
    <${Fold} title="Generated text" state=${state} className="generation">
      ${draft.inputs.map((input, index) => html`<${Target} key=${index} draft=${draft} index=${index} catalogue=${catalogue} errors=${errors} change=${change} />`)}
      ${isGiven && html`<p class="muted">Nothing is generated, since the text is given.</p>`}
      <div class="grid">${fields([...(isGiven ? [] : [maxNewTokensSpec()]), ...specs])}</div>
    <//>
  `;
}

function Target({ draft, index, catalogue, errors, change }) {
  const isOne = draft.inputs.length === 1;
  const { text, target } = draft.inputs[index];
  const edit = (target) => change((draft) => ({
    ...draft, inputs: draft.inputs.map((each, other) => (other === index ? { ...each, target } : each)),
  }));
  const startsWithInput = !draft.isChat && isEncoderDecoder(catalogue.models, draft.model) !== true;
  const name = draft.isChat ? "The assistant’s reply" : "Generated text";
  const own = isOne ? errorsAt(errors, "/generated_text")
    : errors.filter(({ pointer }) => pointer === `/generated_text/${index}` || (index === 0 && pointer === "/generated_text"));
  return html`
    <${Labelled} label=${isOne ? name : `${name} ${index + 1}`} identifier="generated_text" hint="optional" pointer=${inputPointer(draft, "generated_text", index)} errors=${own}
      help=${index ? undefined : helpOf(draft.isChat, startsWithInput)}
      control=${(attributes) => html`
        <textarea ...${attributes} rows="2" dir="auto" value=${target} onInput=${(event) => edit(event.target.value)} />`}>
      ${startsWithInput && text && !target.startsWith(text) && html`
        <button type="button" class="quiet" onClick=${() => edit(text + target)}>Begin with the input text</button>`}
    <//>
  `;
}

const helpOf = (isChat, startsWithInput) =>
  `Makes the model generate this text; without it the model writes its own.${!isChat && startsWithInput ? " For a decoder-only model it begins with the input text." : ""}`;
