// What a job asks, in a line: method, attributed function, model, seed, number of texts, tags and the rest.
import { html, useState } from "./preact.js";
import { methodsOf } from "./job.js";
import { oneLine } from "./shown_tokens.js";

/** The parts of a request that tell it from others, each `{text, title}`; those with their default value are left out. */
export function questionOf(request) {
  if (!request) return [];
  const { model, seed, attributed_fn: fn, attributed_fn_args: args, tags, input_text, messages } = request;
  const count = Array.isArray(messages?.[0]) ? messages.length : Array.isArray(input_text) ? input_text.length : 1;
  const contrast = [args?.contrast_targets].flat().filter(Boolean)[0];
  return [
    ...methodsOf(request).map((method) => ({ text: method, title: "method" })),
    { text: functionOf(fn), title: "attributed function" },
    contrast && { text: `rather than “${oneLine(String(contrast)).slice(-40)}”`, title: "contrast" },
    { text: model, title: "model" },
    request.dtype && request.dtype !== "float32" && { text: request.dtype, title: "precision" },
    { text: `seed ${seed ?? 0}`, title: "seed" },
    count > 1 && { text: `${count} texts`, title: "texts" },
    ...Object.entries(tags ?? {}).map(([name, value]) => ({ text: value ? `#${name}: ${value}` : `#${name}`, title: "tag" })),
  ].filter(Boolean);
}

const functionOf = (name) => (!name || name === "probability" ? "p(token)" : name === "logit" ? "logit(token)" : name);

export function JobQuestion({ job }) {
  return html`
    <ul class="question" aria-label="Question">
      ${questionOf(job.request).map(({ text, title }) => html`<li class="chip ${title}" title=${title}><bdi>${text}</bdi></li>`)}
      <li class="chip id" title="job"><${JobId} id=${job.job_id} /></li>
    </ul>
  `;
}

function JobId({ id }) {
  const [isCopied, setCopied] = useState(false);
  if (!navigator.clipboard) return html`<code>${id}</code>`;
  const copy = async () => {
    await navigator.clipboard.writeText(id);
    setCopied(true);
  };
  return html`<button type="button" class="link" title="Copy the job’s id" onClick=${copy}><code>${id}</code>${isCopied && " copied"}</button>`;
}
