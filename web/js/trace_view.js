// The trace of an answer: what it rests on directly, and by way of the tokens that were generated before it. The server
// works it out from the stored result; the address says what is traced (`trace`, `through`, `bare`) and which hop is
// coloured (`hop`).
import { getJson, withQuery } from "./api.js";
import { Downloads } from "./downloads.js";
import { heat, short } from "./number_scale.js";
import { html, useEffect, useMemo, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";
import { tableOf } from "./score_table.js";
import { selectionOf } from "./selection.js";
import { directionOf, quoted } from "./shown_tokens.js";
import { RunningText, TokenText } from "./token_text.js";
import { TraceControls } from "./trace_controls.js";
import { defaultSpans } from "./trace_spans.js";
import { queryOf } from "./view_controls.js";

const STRONGEST = 6;

export function Trace({ job, sequence, index, parameters, onShow }) {
  const table = useMemo(() => tableOf(sequence), [sequence]);
  // Without scores between generated tokens there is nothing to follow.
  if (table.depth !== 1 || !sequence.target_attributions || !table.columns.length) return null;
  const selection = selectionOf(parameters, table);
  const isOpen = Boolean(parameters.trace);
  const onToggle = ({ target }) => {
    if (target.open !== isOpen) onShow(target.open ? defaultSpans(sequence, selection) : { trace: "", through: "", hop: "", bare: "" });
  };
  const shown = { trace: parameters.trace ?? "", through: parameters.through ?? "", withoutTemplate: parameters.bare === "yes" };
  const hasTemplate = table.rows.some(({ token }) => token.template || token.special);
  return html`
    <details class="trace" open=${isOpen} onToggle=${onToggle}>
      <summary>Trace an answer back through the reasoning</summary>
      ${isOpen && html`
        <${TraceControls} sequence=${sequence} selection=${selection} shown=${shown} hasTemplate=${hasTemplate} onShow=${onShow} />
        <${Traced} job=${job} index=${index} parameters=${parameters} shown=${shown} onShow=${onShow} />`}
    </details>
  `;
}

/** The trace that the address asks for, once it is read. */
function Traced({ job, index, parameters, shown, onShow }) {
  const query = {
    ...queryOf(parameters), normalize: undefined, trace: shown.trace, through: shown.through,
    sequence: index, without_template: shown.withoutTemplate || undefined, partial: job.status === "completed" ? undefined : true,
  };
  const path = withQuery(job.links.results, { ...query, format: "json", decode_tokens: true });
  const [answer, setAnswer] = useState({});
  useEffect(() => {
    let isAsked = true;
    getJson(path).then(({ traces }) => isAsked && setAnswer({ path, traces }), (problem) => isAsked && setAnswer({ path, problem }));
    return () => { isAsked = false; };
  }, [path]);
  if (answer.problem) return html`<${Notice} problem=${answer.problem} />`;
  const trace = answer.traces?.[0];
  if (!trace) return html`<p class="muted" role="status">Reading the trace…</p>`;
  return html`
    <div class="trace-shown" aria-busy=${answer.path !== path}>
      <${Sentences} trace=${trace} />
      <${Hops} trace=${trace} parameters=${parameters} onShow=${onShow} />
      <${Parts} trace=${trace} hop=${trace.hops[parameters.hop]} />
      <${Paths} paths=${trace.paths} />
      <${Downloads} job=${job} query=${query} formats=${["json", "csv", "parquet", "html"]} />
    </div>
  `;
}

const percent = (share) => (share && share < 0.0005 ? "< 0.1%" : `${(100 * share).toFixed(1)}%`);
const sum = (values) => values.reduce((total, value) => total + value, 0);

function Sentences({ trace }) {
  const { scores, elsewhere, mass_left: left, dropped, warnings } = trace;
  const rested = [`${percent(sum(scores))} of the answer came to the input`];
  if (elsewhere) rested.push(`${percent(elsewhere)} ended on other generated tokens`);
  if (left) rested.push(`${percent(left)} is left on the reasoning`);
  return html`
    <p class="muted">Shares of absolute scores, not causes: ${rested.join("; ")}.${dropped !== undefined && dropped !== null &&
      html` ${dropped} special and template tokens got no share.`}</p>
    ${warnings.map((each) => html`<p class="muted">${each}</p>`)}
  `;
}

/** Each hop with what it brings to the input and to the reasoning. A click colours the text by this hop alone. */
function Hops({ trace, parameters, onShow }) {
  const all = { prompt: sum(trace.scores), reasoning: trace.mass_left };
  const row = (name, label, { prompt, reasoning }) => html`
    <li key=${name}>
      <button type="button" aria-pressed=${(parameters.hop ?? "") === name} onClick=${() => onShow({ hop: name })}>${label}</button>
      <span class="bar-line more" style=${{ "--w": prompt.toFixed(4) }}></span>
      <span class="number" data-value=${prompt}>${percent(prompt)}</span>
      <span class="bar-line passed" style=${{ "--w": reasoning.toFixed(4) }}></span>
      <span class="number" data-value=${reasoning}>${percent(reasoning)}</span>
    </li>`;
  return html`
    <ol class="trace-hops" aria-label="Hops">
      <li class="heading"><span class="head">hop</span><span class="head">to the input</span><span></span><span class="head">to the reasoning</span><span></span></li>
      ${row("", "All", all)}
      ${trace.hops.filter(({ hop, prompt, reasoning }) => hop < 2 || prompt + reasoning >= 0.0005)
        .map((each) => row(String(each.hop), String(each.hop), each))}
    </ol>
  `;
}

/** Answer, reasoning and input as coloured text, for all hops together or for one. */
function Parts({ trace, hop }) {
  const { from, through, generated, inputs } = trace;
  const start = generated[0].position;
  const within = ({ start: first, end }) => generated.slice(first - start, end - start);
  const scores = hop ? hop.scores : trace.scores;
  return html`
    <${Part} label="Answer" tokens=${within(from)} />
    ${through && html`<${Part} label="Reasoning" tokens=${within(through)} scores=${hop ? hop.reasoning_scores : trace.reasoning_scores} />`}
    <${Part} label="Input" tokens=${inputs} scores=${scores} />
    <${Strongest} tokens=${inputs} scores=${scores} />
  `;
}

function Part({ label, tokens, scores }) {
  const largest = Math.max(0, ...(scores ?? []));
  return html`
    <div class="trace-part">
      <section class="block">
        <h3 class="role">${label}</h3>
        <div class="tokens" role="group" aria-label=${`${label}: tokens`} dir=${directionOf(tokens)}>
          ${tokens.map((token, index) => {
            const drawn = scores ? heat(scores[index], { largest }) : { class: "" };
            const kind = `token ${token.template || token.special ? "template" : ""} ${token.continues ? "continues" : ""} ${drawn.class}`;
            return html`<span key=${index} class=${kind} style=${drawn.style} data-value=${scores?.[index]}
              title=${scores && `${quoted(token)}: ${percent(scores[index])}`}><${RunningText} token=${token} /></span>`;
          })}
        </div>
      </section>
      ${scores && html`
        <div class="legend">
          <span class="muted">${label.toLowerCase()}</span><span class="number">0</span>
          <span class="ramp" aria-hidden="true"></span><span class="number">${short(largest)}</span>
        </div>`}
    </div>
  `;
}

function Strongest({ tokens, scores }) {
  const order = scores.map((_, index) => index).filter((index) => scores[index] > 0)
    .sort((a, b) => scores[b] - scores[a]).slice(0, STRONGEST);
  if (!order.length) return null;
  return html`
    <section class="strongest" aria-live="polite">
      <h3>Strongest tokens of the input</h3>
      <ol class="bars">
        ${order.map((index) => html`
          <li key=${index}>
            <span class="bar-token"><${TokenText} token=${tokens[index]} /></span>
            <span class="bar-line more" style=${{ "--w": (scores[index] / scores[order[0]]).toFixed(4) }}></span>
            <span class="number" data-value=${scores[index]}>${percent(scores[index])}</span>
          </li>`)}
      </ol>
    </section>
  `;
}

function Paths({ paths }) {
  if (!paths.length) return null;
  return html`
    <section class="strongest">
      <h3>Strongest paths</h3>
      <ol class="trace-paths">
        ${paths.map(({ tokens, mass }) => html`
          <li><span class="number">${percent(mass)}</span>${" "}
            ${tokens.map((token, index) => html`${index > 0 && " → "}<${TokenText} token=${token} /><span class="place">@${token.position}</span>`)}</li>`)}
      </ol>
    </section>
  `;
}
