// One field of a form, with its label, help and errors. field_specs.js describes the specs that fields are made from.
import { shownDefault, typeInWords } from "./field_specs.js";
import { html, useId } from "./preact.js";

/** The errors at a field's pointer or inside its value. */
export const errorsAt = (errors, pointer) =>
  errors.filter((error) => error.pointer === pointer || error.pointer?.startsWith(`${pointer}/`));

/** The errors of one field among several. An error belongs to the field with the longest pointer that contains it. */
export function errorsAmong(errors, pointer, pointers) {
  return errorsAt(errors, pointer).filter((error) =>
    pointers.every((other) => other.length <= pointer.length || !errorsAt([error], other).length));
}

/** A description in which text between backticks becomes code. */
export const prose = (text) => text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));

/**
 * A label, a control and messages. `control(attributes)` draws the control with the ids that connect the three.
 * `identifier` is the field's name in a request, shown beside its name in words.
 */
export function Labelled({ label, identifier, hint, help, errors = [], pointer, control, isInline = false, children }) {
  const id = useId();
  const described = [help && `${id}-help`, errors.length && `${id}-error`].filter(Boolean).join(" ") || undefined;
  const attributes = {
    id,
    "data-pointer": pointer,
    "aria-describedby": described,
    "aria-invalid": errors.length ? "true" : undefined,
  };
  const name = html`
    <label for=${id}>${label}${identifier && html` <code class="identifier">${identifier}</code>`}${hint && html` <span class="hint">${hint}</span>`}</label>`;
  return html`
    <div class=${`field ${isInline ? "inline" : ""} ${errors.length ? "invalid" : ""}`}>
      ${isInline ? html`${control(attributes)} ${name}` : html`${name} ${control(attributes)}`}
      ${help && html`<p class="help" id=${`${id}-help`}>${typeof help === "string" ? prose(help) : help}</p>`}
      ${children}
      ${errors.length > 0 && html`<p class="error" id=${`${id}-error`}>${errors.map((error) => error.detail).join(" ")}</p>`}
    </div>
  `;
}

export function Field({ spec, value, errors, onChange, children }) {
  const shown = value ?? shownDefault(spec);
  const help = [spec.help, typeInWords(spec)].filter(Boolean).join(" ");
  const common = { pointer: spec.pointer, label: spec.label, identifier: spec.name, help, errors, children };
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
  if (spec.kind === "texts") {
    return html`<${Labelled} ...${common} control=${(attributes) => html`
      <textarea ...${attributes} rows="1" dir="auto" value=${shown} onInput=${(event) => onChange(event.target.value)} />`} />`;
  }
  const isNumber = spec.kind === "integer" || spec.kind === "number";
  return html`<${Labelled} ...${common} control=${(attributes) => html`
    <input ...${attributes} type="text" class=${isNumber ? "short" : ""} inputmode=${isNumber ? "decimal" : undefined}
      autocomplete="off" spellcheck=${false} dir="auto" value=${shown} onInput=${(event) => onChange(event.target.value)} />`} />`;
}
