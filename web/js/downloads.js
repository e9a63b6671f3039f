// Links that download the result in each format of the server, with the aggregation and normalisation that are shown.
import { apiKey, call, withQuery } from "./api.js";
import { html, useState } from "./preact.js";

const NAMES = { json: "JSON", inseq: "Inseq file", csv: "CSV", parquet: "Parquet", html: "HTML" };

export function Downloads({ job, query, formats }) {
  const [problem, setProblem] = useState(null);
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(location.href);
    setCopied(true);
  };
  return html`
    <div class="downloads" role="group" aria-label="Download">
      <span class="label">Download</span>
      ${formats.map((format) => {
        const path = withQuery(job.links.results, { ...queryFor(format, query), format });
        const name = `${job.job_id}.${format === "inseq" ? "inseq.json" : format}`;
        const save = async (event) => {
          if (!apiKey.get()) return; // without a key, the browser itself follows the link
          event.preventDefault();
          setProblem(null);
          try {
            saveAs(await (await call(path)).blob(), name);
          } catch (problem) {
            setProblem(problem);
          }
        };
        return html`<a href=${path} download=${name} onClick=${save}>${NAMES[format] ?? format}</a>`;
      })}
      ${navigator.clipboard && html`
        <button type="button" class="quiet" onClick=${copy}>${isCopied ? "Link copied" : "Copy link to this view"}</button>`}
      ${problem && html`<p class="error" role="alert">${problem.message}</p>`}
    </div>
  `;
}

/** Inseq's file format stores unaggregated scores, to which normalisation does not apply. */
const queryFor = (format, query) => (format === "inseq" && !query.aggregator ? { ...query, normalize: undefined } : query);

/** Save a file that was fetched: a link cannot send the API key. */
function saveAs(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
