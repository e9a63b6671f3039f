// The choice of a method, or of several to compare, and the fields of their arguments.
import { errorsAt, Labelled, prose } from "./form_field.js";
import { html } from "./preact.js";
import { methodSpecs } from "./request_draft.js";

export function Methods({ draft, catalogue, errors, change, fields }) {
  const names = Object.keys(catalogue.methods);
  const [first, ...others] = draft.methods;
  const choose = (name) => change({ methods: [name, ...others.filter((other) => other !== name)] });
  const toggle = (name) => change({
    methods: draft.methods.includes(name) ? draft.methods.filter((each) => each !== name) : [...draft.methods, name],
  });
  const own = [...errorsAt(errors, "/method"), ...errorsAt(errors, "/methods")];
  return html`
    <${Labelled} label="Method" pointer=${others.length ? "/methods" : "/method"} errors=${own} help=${html`<${About} method=${catalogue.methods[first]} />`}
      control=${(attributes) => html`
        <select ...${attributes} value=${first} onChange=${(event) => choose(event.target.value)}>
          ${names.map((name) => html`<option value=${name}>${name}</option>`)}
        </select>`} />
    ${catalogue.request.methods && html`
      <details class="compare" open=${others.length > 0}>
        <summary>Compare with other methods</summary>
        <div class="checks">
          ${names.filter((name) => name !== first).map((name) => html`
            <label><input type="checkbox" checked=${others.includes(name)} onChange=${() => toggle(name)} /> ${name}</label>`)}
        </div>
      </details>`}
    ${draft.methods.map((name) => {
      const specs = methodSpecs(draft, name, catalogue);
      return specs.length > 0 && html`
        <fieldset class="arguments" key=${name}>
          <legend>Arguments of ${name}</legend>
          <div class="grid">${fields(specs)}</div>
        </fieldset>`;
    })}
  `;
}

function About({ method }) {
  if (!method) return null;
  const isLink = /^https:\/\//.test(method.reference ?? "");
  return html`${prose(method.description)} ${isLink && html`<a href=${method.reference} rel="noreferrer">Reference</a>`}`;
}
