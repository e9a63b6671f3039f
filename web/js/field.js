// One field of a form, for whatever a spec says it takes, with its errors beside it.
import { html, useId } from "./preact.js";
import { shownDefault } from "./spec.js";

/** The errors that belong to a field: at its pointer, or inside what stands there. */
export const errorsAt = (errors, pointer) =>
  errors.filter((error) => error.pointer === pointer || error.pointer?.startsWith(`${pointer}/`));

/** The errors of one field among several: each belongs to the field whose pointer comes nearest. */
export function errorsAmong(errors, pointer, pointers) {
  return errorsAt(errors, pointer).filter((error) =>
    pointers.every((other) => other.length <= pointer.length || !errorsAt([error], other).length));
}

/** A description, with what stands between backticks as code. */
export const prose = (text) => text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));

/** Label, control and messages. `control` gets the attributes that tie them together. */
export function Labelled({ label, type, help, errors = [], pointer, control, isInline = false }) {
  const id = useId();
  const described = [help && `${id}-help`, errors.length && `${id}-error`].filter(Boolean).join(" ") || undefined;
  const attributes = {
    id,
    "data-pointer": pointer,
    "aria-describedby": described,
    "aria-invalid": errors.length ? "true" : undefined,
  };
  const name = html`<label for=${id}>${label} ${type && html`<span class="type">${type}</span>`}</label>`;
  return html`
    <div class=${`field ${isInline ? "inline" : ""} ${errors.length ? "invalid" : ""}`}>
      ${isInline ? html`${control(attributes)} ${name}` : html`${name} ${control(attributes)}`}
      ${help && html`<p class="help" id=${`${id}-help`}>${typeof help === "string" ? prose(help) : help}</p>`}
      ${errors.length > 0 && html`<p class="error" id=${`${id}-error`}>${errors.map((error) => error.detail).join(" ")}</p>`}
    </div>
  `;
}

export function Field({ spec, value, errors, onChange }) {
  const shown = value ?? shownDefault(spec);
  const common = { pointer: spec.pointer, label: spec.name, help: spec.help, errors };
  if (spec.kind === "boolean") {
    return html`<${Labelled} ...${common} isInline=${true} control=${(attributes) =>
      html`<input type="checkbox" ...${attributes} checked=${shown} onChange=${(event) => onChange(event.target.checked)} />`} />`;
  }
  if (spec.kind === "choice") {
    return html`<${Labelled} ...${common} control=${(attributes) => html`
      <select ...${attributes} value=${shown} onChange=${(event) => onChange(event.target.value)}>
        ${spec.choices.map((choice) => html`<option value=${choice}>${choice}</option>`)}
      </select>`} />`;
  }
  const isNumber = spec.kind === "integer" || spec.kind === "number";
  const type = spec.isRequired ? `${spec.type}, required` : spec.type;
  return html`<${Labelled} ...${common} type=${type} control=${(attributes) => html`
    <input ...${attributes} type="text" class=${isNumber ? "short" : ""} inputmode=${isNumber ? "decimal" : undefined}
      autocomplete="off" spellcheck=${false} dir="auto" value=${shown} onInput=${(event) => onChange(event.target.value)} />`} />`;
}
