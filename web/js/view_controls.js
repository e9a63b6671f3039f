// Controls for the method, aggregation and normalisation of the shown result. An aggregation is a list of Inseq's
// aggregators in order, each with a function.
import { parse, specOfParameter, toText } from "./field_specs.js";
import { Field } from "./form_field.js";
import { html, useState } from "./preact.js";
import { aggregatorsOfWords } from "./word_aggregation.js";

const split = (text) => (text ? text.split(",") : []);

/** The aggregators in the address, in order. */
export function stagesOf({ agg, fn }) {
  const functions = split(fn);
  return split(agg).map((name, index) => ({ name, fn: functions[index] ?? "" }));
}

/** The query for the results route, from the parameters of the address. */
export const queryOf = ({ agg, fn, args, norm, method }) => ({
  method,
  aggregator: agg,
  aggregate_fn: split(fn).some(Boolean) ? fn : undefined,
  aggregator_args: args,
  normalize: norm,
});

export function ViewControls({ resultsPath, methods, parameters, catalogue, onShow }) {
  const [problem, setProblem] = useState(null);
  const stages = stagesOf(parameters);
  const names = [...Object.keys(catalogue.aggregators), ...catalogue.aggregationFunctions];
  const put = (changed) => onShow({
    agg: changed.map(({ name }) => name).join(","),
    fn: changed.some(({ fn }) => fn) ? changed.map(({ fn }) => fn).join(",") : "",
    args: changed.length ? parameters.args : "",
  });
  const merge = async () => {
    setProblem(null);
    try {
      onShow({ agg: await aggregatorsOfWords(resultsPath) });
    } catch (problem) {
      const isComparison = methods.length > 1 && !parameters.method;
      setProblem(isComparison ? { message: "No single aggregation merges the words of all these methods. Choose one method." } : problem);
    }
  };
  const edit = (index, change) => put(stages.map((stage, other) => (other === index ? { ...stage, ...change } : stage)));
  return html`
    <div class="controls" role="group" aria-label="View">
      ${methods.length > 1 && html`
        <label class="inline method">Method
          <select value=${parameters.method ?? ""} onChange=${(event) => onShow({ method: event.target.value })}>
            <option value="">all, side by side</option>
            ${methods.map((name) => html`<option value=${name}>${name}</option>`)}
          </select>
        </label>`}
      <span class="label">Aggregation</span>
      ${!stages.length && html`<span class="muted">Inseq’s default</span>`}
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
      ${!stages.length && html`<button type="button" class="quiet" onClick=${merge}>Merge into words</button>`}
      <button type="button" class="quiet" onClick=${() => put([...stages, { name: "scores", fn: "" }])}>Add a step</button>
      ${problem && html`<p class="error" role="alert">${problem.message}</p>`}
      <label class="inline">Normalise
        <select value=${parameters.norm ?? ""} onChange=${(event) => onShow({ norm: event.target.value })}>
          <option value="">Inseq’s default</option>
          <option value="true">to sum 1</option>
          <option value="false">off</option>
        </select>
      </label>
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
