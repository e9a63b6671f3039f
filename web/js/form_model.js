// The choice of a model: one of those on the server's machine, or any name of the Hugging Face Hub.
import { Combobox } from "./combobox.js";
import { errorsAt, Labelled } from "./form_field.js";
import { factsOf, matching, modelNamed } from "./model_facts.js";
import { html } from "./preact.js";

export function Model({ model, models, errors, onChange, onOpen }) {
  const groupsFor = (typed) => matching(models, typed).map((group) => ({
    label: group.label,
    options: group.models.map((each) => ({ value: each.name, detail: factsOf(each).join(" · ") })),
  }));
  return html`
    <${Labelled} label="Model" pointer="/model" errors=${errorsAt(errors, "/model")} help=${html`<${About} model=${model} models=${models} />`}
      control=${(attributes) => html`
        <${Combobox} attributes=${attributes} name="models" value=${model} groupsFor=${groupsFor} onChange=${onChange} onOpen=${onOpen} />`} />
  `;
}

function About({ model, models }) {
  if (!model.trim()) return "One of the list, or a name on the Hugging Face Hub: name, org/name or org/name@revision.";
  const known = modelNamed(models, model);
  if (known) return factsOf(known).join(" · ");
  const near = matching(models, model).flatMap((group) => group.models.map(({ name }) => name)).slice(0, 3);
  return `Not on the server’s machine: the Hugging Face Hub is asked for it.${near.length ? ` Near names: ${near.join(", ")}.` : ""}`;
}
