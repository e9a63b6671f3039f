// The input texts of a job, each with an optional target text.
import { errorsAt, Labelled } from "./form_field.js";
import { html } from "./preact.js";

const TARGET_HELP = "Makes the model generate this text. For a decoder-only model it starts with the input.";

export function Inputs({ draft, errors, change }) {
  const isOne = draft.inputs.length === 1;
  const edit = (index, changes) => change({
    inputs: draft.inputs.map((each, other) => (other === index ? { ...each, ...changes } : each)),
  });
  const add = () => change({ inputs: [...draft.inputs, { text: "", target: "" }] });
  const remove = (index) => change({ inputs: draft.inputs.filter((_, other) => other !== index) });
  // Errors about the whole list are shown at its first text.
  const at = (name, index) => (isOne ? errorsAt(errors, `/${name}`)
    : errors.filter(({ pointer }) => pointer === `/${name}/${index}` || (index === 0 && pointer === `/${name}`)));
  return html`
    ${draft.inputs.map(({ text, target }, index) => html`
      <div class="pair" key=${index}>
        <${Labelled} label=${isOne ? "Input text" : `Input text ${index + 1}`} pointer=${isOne ? "/input_text" : `/input_text/${index}`}
          errors=${at("input_text", index)}
          control=${(attributes) => html`
            <textarea ...${attributes} rows="2" dir="auto" value=${text} onInput=${({ target }) => edit(index, { text: target.value })} />`} />
        <${Labelled} label="Generated text" type="optional" pointer=${isOne ? "/generated_text" : `/generated_text/${index}`}
          errors=${at("generated_text", index)} help=${index ? undefined : TARGET_HELP}
          control=${(attributes) => html`
            <textarea ...${attributes} rows="2" dir="auto" value=${target} onInput=${(event) => edit(index, { target: event.target.value })} />`} />
        ${!isOne && html`<button type="button" class="quiet" onClick=${() => remove(index)}>Remove text ${index + 1}</button>`}
      </div>`)}
    <button type="button" class="quiet add" onClick=${add}>Add a text</button>
  `;
}
