// What a job asks, in a line: method, attributed function, contrast, model, precision, seed and number of texts.
import { html } from "./preact.js";
import { methodsOf } from "./job.js";
import { oneLine } from "./shown_tokens.js";

/** The parts of a request that tell it from others, each `{text, title}`; those with their default value are left out. */
export function questionOf(request) {
  if (!request) return [];
  const { model, seed, attributed_fn: fn, attributed_fn_args: args, input_text, messages } = request;
  const count = Array.isArray(messages?.[0]) ? messages.length : Array.isArray(input_text) ? input_text.length : 1;
  const contrast = [args?.contrast_targets].flat().filter(Boolean)[0];
  return [
    ...methodsOf(request).map((method) => ({ text: method, title: "method" })),
    { text: functionOf(fn, request), title: "attributed function" },
    args?.contrast_ids && { text: "rather than other tokens", title: "contrast" },
    contrast && { text: `rather than “${oneLine(String(contrast)).slice(-40)}”`, title: "contrast" },
    { text: model, title: "model" },
    request.dtype && request.dtype !== "float32" && { text: request.dtype, title: "precision" },
    { text: `seed ${seed ?? 0}`, title: "seed" },
    count > 1 && { text: `${count} texts`, title: "texts" },
  ].filter(Boolean);
}

/** Of spans and choices it is the sum over their tokens. */
function functionOf(name, { attributed_fn_args: args, spans, choices, trace }) {
  const of = choices || (spans && trace?.mode !== "exact") ? "span" : "token";
  if (name === "logit") return `logit(${of})`;
  return !name || name === "probability" ? `${args?.logprob ? "log p" : "p"}(${of})` : name;
}

export function JobQuestion({ job }) {
  return html`
    <ul class="question" aria-label="Question">
      ${questionOf(job.request).map(({ text, title }) => html`<li class="chip ${title}" title=${title}><bdi>${text}</bdi></li>`)}
    </ul>
  `;
}
