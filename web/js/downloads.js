// The result as files, in the formats that the server offers and in the view that is shown.
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
        const path = withQuery(job.links.results, { ...fitting(query, format), format });
        const name = `${job.job_id}.${format === "inseq" ? "inseq.json" : format}`;
        const save = async (event) => {
          if (!apiKey.get()) return; // the browser's own download
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

/** Inseq's own file has scores as they are, where nothing is aggregated. */
const fitting = (query, format) => (format === "inseq" && !query.aggregator ? { ...query, normalize: undefined } : query);

/** A link cannot send the key, so the file is fetched and then handed over. */
function saveAs(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
