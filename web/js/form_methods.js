// The choice of a method, or of several to compare, and the fields of their arguments.
import { errorsAt, Labelled, prose } from "./form_field.js";
import { Fold, setAmong } from "./form_fold.js";
import { html } from "./preact.js";
import { groupSpecs, methodSpecs } from "./request_draft.js";

const FAMILIES = { gradient: "Gradient", perturbation: "Perturbation", internals: "Internals", none: "No attribution" };

/** The families with their methods: the one to start with first, then those that cost least, of these the plainer names. */
function families(catalogue) {
  const methods = Object.values(catalogue.methods).sort((a, b) =>
    Boolean(b.start_here) - Boolean(a.start_here) || a.cost.relative - b.cost.relative || a.title.length - b.title.length);
  const named = [...new Set([...Object.keys(FAMILIES), ...methods.map(({ family }) => family)])];
  return named
    .map((family) => ({ label: FAMILIES[family] ?? family, methods: methods.filter((each) => each.family === family) }))
    .filter((each) => each.methods.length);
}

export function Method({ draft, catalogue, errors, change, fields }) {
  const [first, ...others] = draft.methods;
  const method = catalogue.methods[first];
  const choose = (name) => change({ methods: [name, ...others.filter((other) => other !== name)] });
  const own = [...errorsAt(errors, "/method"), ...errorsAt(errors, "/methods")];
  const main = others.length ? [] : methodSpecs(draft, first, catalogue).filter((spec) => spec.multipliesCost);
  return html`
    <div class="method">
      <${Labelled} label="Method" pointer=${others.length ? "/methods" : "/method"} errors=${own} help=${method && html`<${About} method=${method} />`}
        control=${(attributes) => html`
          <select ...${attributes} value=${first} onChange=${(event) => choose(event.target.value)}>
            ${!method && html`<option value=${first}>${first}</option>`}
            ${families(catalogue).map(({ label, methods }) => html`
              <optgroup label=${label} key=${label}>
                ${methods.map(({ name, title, cost, start_here }) => html`
                  <option value=${name}>${title} (${name}) · ${start_here ? "start here" : `costs ${cost.words}`}</option>`)}
              </optgroup>`)}
          </select>`} />
      ${fields(main)}
    </div>
  `;
}

function About({ method }) {
  return html`
    ${prose(method.description)} <strong>Cost:</strong> ${method.cost.words}.${" "}
    ${method.start_here && html`<strong>Start here:</strong> ${prose(method.start_here)}`}
  `;
}

/** The further arguments of the method; of several methods each has its own below their choice. */
export function MethodArguments({ draft, catalogue, fields }) {
  if (draft.methods.length > 1) return null;
  const [name] = draft.methods;
  const specs = [...methodSpecs(draft, name, catalogue).filter((spec) => !spec.multipliesCost), ...groupSpecs(draft, "method", catalogue)];
  const method = catalogue.methods[name];
  return html`
    <${Fold} title=${`Arguments of ${method?.title ?? name}`} state=${setAmong(specs, draft.values)} className="arguments">
      ${specs.length ? html`<div class="grid">${fields(specs)}</div>` : html`<p class="muted">It has none.</p>`}
      <${Reference} method=${method} />
    <//>
  `;
}

function Reference({ method }) {
  if (!/^https:\/\//.test(method?.reference ?? "")) return null;
  return html`<p><a href=${method.reference} rel="noreferrer">Reference of ${method.title}</a></p>`;
}

export function Comparison({ draft, catalogue, change, fields }) {
  if (!catalogue.request.methods) return null; // an older server
  const [first, ...others] = draft.methods;
  const toggle = (name) => change({
    methods: draft.methods.includes(name) ? draft.methods.filter((each) => each !== name) : [...draft.methods, name],
  });
  return html`
    <${Fold} title="Compare with other methods" state=${others.join(", ")} className="compare" isOpen=${others.length > 0}>
      ${families(catalogue).map(({ label, methods }) => html`
        <fieldset key=${label}>
          <legend>${label}</legend>
          <div class="checks">
            ${methods.filter(({ name }) => name !== first).map(({ name, title, cost }) => html`
              <label key=${name}><input type="checkbox" checked=${others.includes(name)} onChange=${() => toggle(name)} />
                <span>${title} <code class="identifier">${name}</code> <span class="hint">${cost.words}</span></span></label>`)}
          </div>
        </fieldset>`)}
      ${others.length > 0 && draft.methods.map((name) => {
        const specs = methodSpecs(draft, name, catalogue);
        return specs.length > 0 && html`
          <fieldset class="arguments" key=${name}>
            <legend>Arguments of ${catalogue.methods[name]?.title ?? name}</legend>
            <div class="grid">${fields(specs)}</div>
          </fieldset>`;
      })}
      ${others.length > 0 && html`<div class="grid">${fields(groupSpecs(draft, "method", catalogue))}</div>`}
    <//>
  `;
}
