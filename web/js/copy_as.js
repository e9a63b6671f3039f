// Offers a request as text to copy: curl, Python, command line, JSON. copy_texts.js writes the texts.
//
// Of a job, `jobId` and `view` (the query of its results) are given too: the texts then read this result, or run the
// request again with the same view.
import { apiKey } from "./api.js";
import { curlText, commandText, pythonText } from "./copy_texts.js";
import { LazyDetails } from "./lazy_details.js";
import { html, useId, useRef, useState } from "./preact.js";

const WAYS = { curl: "curl", python: "Python", command: "Command line", json: "JSON" };

export function CopyAs({ request, jobId, view }) {
  return html`
    <${LazyDetails} className="copy-as" summary="Copy as curl, Python, command line or JSON">
      ${() => html`<${Texts} request=${request} jobId=${jobId} view=${view} />`}
    <//>
  `;
}

function Texts({ request, jobId, view }) {
  const [way, setWay] = useState("curl");
  const [isAgain, setAgain] = useState(false);
  const [copied, setCopied] = useState(null); // the text that was copied last
  const shown = useRef(null);
  const id = useId();
  const { text, missing } = textOf(way, { request, view, jobId: isAgain ? undefined : jobId, server: location.origin, hasKey: Boolean(apiKey.get()) });
  const copy = async () => {
    await copyText(text, shown.current);
    setCopied(text);
  };
  return html`
    <div class="copy-head">
      <fieldset class="choices">
        <legend class="hidden">Copy as</legend>
        ${Object.entries(WAYS).map(([name, label]) => html`
          <label key=${name}><input type="radio" name=${id} checked=${way === name} onChange=${() => setWay(name)} /> ${label}</label>`)}
      </fieldset>
      ${jobId && way !== "json" && html`
        <label class="again"><input type="checkbox" checked=${isAgain} onChange=${(event) => setAgain(event.target.checked)} /> Run it again</label>`}
      ${!missing.length && html`<button type="button" onClick=${copy}>${copied === text ? "Copied" : "Copy"}</button>`}
    </div>
    ${missing.length
      ? html`<p class="muted">The command line has no option for ${missing.join(", ")}: use curl or Python.</p>`
      : html`<pre ref=${shown} tabindex="0" aria-label=${`${WAYS[way]} text`}>${text}</pre>`}
    ${apiKey.get() && way !== "json" && html`<p class="muted">The API key is read from <code>INSEQ_API_KEY</code>.</p>`}
  `;
}

function textOf(way, given) {
  if (way === "command") return commandText(given);
  const texts = { curl: curlText, python: pythonText, json: ({ request }) => JSON.stringify(request, null, 2) };
  return { text: texts[way](given), missing: [] };
}

/** Copy a text. Without a secure origin there is no clipboard: the browser then copies what is selected. */
async function copyText(text, element) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  getSelection().selectAllChildren(element);
  return document.execCommand("copy");
}
