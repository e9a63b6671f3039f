// The likeliest next tokens at a generated token. A click on one makes the job that asks why this token and not that one.
import { getJson } from "./api.js";
import { short } from "./number_scale.js";
import { html, useState } from "./preact.js";
import { go, jobHash } from "./route.js";
import { textOf } from "./shown_tokens.js";
import { TokenText } from "./token_text.js";

/**
 * The request of the contrastive job, as `contrast_request` of the client makes it. `column` is the generated token,
 * `index` the text of the job, `method` that of the result.
 */
export function contrastRequest(request, method, sequence, index, column, candidate) {
  const position = sequence.attr_pos_start + column;
  const ids = targetIds(sequence);
  const { methods, ...one } = request;
  const conversations = Array.isArray(request.messages?.[0]) ? request.messages : [request.messages];
  return {
    ...one,
    method,
    ...(methods ? { attribution_args: request.attribution_args?.[method] ?? {} } : {}),
    input_text: request.messages ? undefined : [request.input_text].flat()[index],
    messages: request.messages ? conversations[index] : undefined,
    generated_text: undefined,
    generated_ids: [ids],
    generation_args: {},
    step_scores: [],
    step_scores_args: {},
    attributed_fn: "contrast_prob_diff",
    attributed_fn_args: { contrast_ids: [ids.map((id, at) => (at === position ? candidate.token_id : id))] },
    attr_pos_start: position,
    attr_pos_end: position + 1,
    webhook: undefined,
    webhook_events: undefined,
    name: undefined,
    notes: undefined,
  };
}

/** The ids of the whole target. The token of a contrast's own step has none, but its candidates do. */
function targetIds({ target, candidates, attr_pos_start: start }) {
  const ids = target.map(({ token_id }) => token_id);
  (candidates ?? []).forEach((each, step) => {
    const chosen = each?.find((candidate) => candidate.chosen);
    if (chosen) ids[start + step] = chosen.token_id;
  });
  return ids;
}

export function Candidates({ job, method, sequence, index, column, catalogue, store }) {
  const [problem, setProblem] = useState(null);
  const found = column === undefined ? null : sequence.candidates?.[column];
  if (!found?.length) return null;
  const token = sequence.target[sequence.attr_pos_start + column];
  const canAsk = store && !store.isReadOnly && job.request && catalogue.methods?.[method]?.supports_attributed_fn;
  const ask = (candidate) => async () => {
    setProblem(null);
    try {
      const body = contrastRequest(job.request, method, sequence, index, column, candidate);
      const made = await getJson("/attribution/jobs", { method: "POST", body });
      store.put(made);
      store.refresh();
      go(jobHash(made.job_id));
    } catch (problem) {
      setProblem(problem);
    }
  };
  return html`
    <section class="candidates">
      <h3>The model’s likeliest tokens here</h3>
      <ol class="bars">
        ${found.map((candidate) => html`
          <li key=${candidate.token_id} class=${candidate.chosen ? "chosen" : ""}>
            ${candidate.chosen || !canAsk
              ? html`<span class="bar-token" title=${textOf(candidate)}><${TokenText} token=${candidate} /></span>`
              : html`<button type="button" class="bar-token link" title=${`Why “${textOf(token).trim()}” and not “${textOf(candidate).trim()}”?`}
                  onClick=${ask(candidate)}><${TokenText} token=${candidate} /></button>`}
            <span class="bar-line" style=${{ "--w": (candidate.probability ?? 0).toFixed(4) }}></span>
            <span class="number" data-value=${candidate.probability ?? undefined}>${candidate.probability === null ? "–" : short(candidate.probability)}</span>
          </li>`)}
      </ol>
      ${canAsk && html`<p class="help muted">Click one to ask why the model wrote “<bdi>${textOf(token).trim()}</bdi>” and not that.</p>`}
      ${problem && html`<p class="error" role="alert">${problem.message}</p>`}
    </section>
  `;
}
