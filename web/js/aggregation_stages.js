// An aggregation as a list of aggregators in order, each with a function: Inseq's, and units of text.
import { parse, specOfParameter, toText } from "./field_specs.js";
import { Field } from "./form_field.js";
import { html, useState } from "./preact.js";

const split = (text) => (text ? text.split(",") : []);

/** The aggregators in the address, in order. */
export function stagesOf({ agg, fn }) {
  const functions = split(fn);
  return split(agg).map((name, index) => ({ name, fn: functions[index] ?? "" }));
}

export const queryOfStages = ({ agg, fn, args }) => ({
  aggregator: agg,
  aggregate_fn: split(fn).some(Boolean) ? fn : undefined,
  aggregator_args: args,
});

export function AggregationStages({ parameters, catalogue, onShow }) {
  const [isAdding, setAdding] = useState(false); // an empty step, which changes nothing before it has an aggregator
  const stages = stagesOf(parameters);
  const names = [...Object.keys(catalogue.aggregators), ...catalogue.aggregationFunctions];
  const put = (changed) => {
    setAdding(false);
    onShow({
      agg: changed.map(({ name }) => name).join(","),
      fn: changed.some(({ fn }) => fn) ? changed.map(({ fn }) => fn).join(",") : "",
      args: changed.length ? parameters.args : "",
    });
  };
  const edit = (index, change) => put(stages.map((stage, other) => (other === index ? { ...stage, ...change } : stage)));
  return html`
    <div class="stages" role="group" aria-label="Aggregation">
      <span class="label">Aggregation</span>
      ${!stages.length && html`<span class="muted">the method’s own</span>`}
      ${stages.map((stage, index) => html`
        <span class="stage" key=${index}>
          <select aria-label=${`Step ${index + 1}: aggregator`} value=${stage.name}
            onChange=${(event) => edit(index, { name: event.target.value, fn: "" })}>
            ${names.map((name) => html`<option value=${name}>${name}</option>`)}
          </select>
          ${stage.name in catalogue.aggregators && html`
            <select aria-label=${`Step ${index + 1}: function`} value=${stage.fn} onChange=${(event) => edit(index, { fn: event.target.value })}>
              <option value="">default function</option>
              ${catalogue.aggregationFunctions.map((name) => html`<option value=${name}>${name}</option>`)}
            </select>`}
          <button type="button" class="quiet" aria-label=${`Remove step ${index + 1}`}
            onClick=${() => put(stages.filter((_, other) => other !== index))}>×</button>
        </span>`)}
      ${isAdding && html`
        <span class="stage">
          <select aria-label=${`Step ${stages.length + 1}: aggregator`} value=""
            onChange=${(event) => put([...stages, { name: event.target.value, fn: "" }])}>
            <option value="" disabled>choose…</option>
            ${names.map((name) => html`<option value=${name}>${name}</option>`)}
          </select>
          <button type="button" class="quiet" aria-label=${`Remove step ${stages.length + 1}`} onClick=${() => setAdding(false)}>×</button>
        </span>`}
      <button type="button" class="quiet" disabled=${isAdding} onClick=${() => setAdding(true)}>Add a step</button>
      <${Arguments} key=${`${parameters.agg} ${parameters.args}`} stages=${stages} parameters=${parameters} catalogue=${catalogue} onShow=${onShow} />
    </div>
  `;
}

function Arguments({ stages, parameters, catalogue, onShow }) {
  const specs = stages
    .flatMap(({ name }) => catalogue.aggregators[name]?.parameters ?? [])
    .map((each) => specOfParameter(each, `/${each.name}`));
  const [values, setValues] = useState(() => read(parameters.args));
  if (!specs.length) return null;
  const apply = (event) => {
    event.preventDefault();
    const given = specs.map((spec) => [spec.name, parse(spec, values[spec.name])]).filter(([, value]) => value !== undefined);
    onShow({ args: given.length ? JSON.stringify(Object.fromEntries(given)) : "" });
  };
  return html`
    <details class="arguments" open=${Boolean(parameters.args)}>
      <summary>Arguments of the aggregators</summary>
      <form onSubmit=${apply} novalidate>
        <div class="grid">${specs.map((spec) => html`
          <${Field} key=${spec.name} spec=${spec} value=${values[spec.name]} errors=${[]} onChange=${(value) => setValues({ ...values, [spec.name]: value })} />`)}</div>
        <button type="submit">Apply</button>
      </form>
    </details>
  `;
}

function read(text) {
  try {
    return Object.fromEntries(Object.entries(JSON.parse(text)).map(([name, value]) => [name, typeof value === "boolean" ? value : toText(value)]));
  } catch {
    return {};
  }
}
