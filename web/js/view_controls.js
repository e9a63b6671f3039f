// Controls for the method, unit of text, aggregation and normalisation of the shown result.
import { AggregationStages, queryOfStages } from "./aggregation_stages.js";
import { Granularity, isUnit } from "./granularity.js";
import { html, useState } from "./preact.js";

/** The query for the results route, from the parameters of the address. */
export const queryOf = (parameters) => ({
  method: parameters.method,
  ...queryOfStages(parameters),
  normalize: parameters.norm,
});

export function ViewControls({ methods, parameters, chosen, hasSegments, catalogue, onShow }) {
  const [isOpened, setOpened] = useState(false); // the list of aggregators, before it has one
  const isCustom = isOpened || !isUnit(parameters);
  const show = (changes) => {
    setOpened(false);
    onShow(changes);
  };
  return html`
    <div class="controls" role="group" aria-label="View">
      ${methods.length > 1 && html`
        <label class="inline method">Method
          <select value=${parameters.method ?? ""} onChange=${(event) => onShow({ method: event.target.value })}>
            <option value="">all, side by side</option>
            ${methods.map((name) => html`<option value=${name}>${name}</option>`)}
          </select>
        </label>`}
      <${Granularity} parameters=${parameters} chosen=${chosen} hasSegments=${hasSegments} isCustom=${isCustom} onCustom=${() => setOpened(true)} onShow=${show} />
      <label class="inline">Normalise
        <select value=${parameters.norm ?? ""} onChange=${(event) => onShow({ norm: event.target.value })}>
          <option value="">Inseq’s default</option>
          <option value="true">to sum 1</option>
          <option value="false">off</option>
        </select>
      </label>
      ${isCustom && html`<${AggregationStages} parameters=${parameters} catalogue=${catalogue} onShow=${onShow} />`}
    </div>
  `;
}
