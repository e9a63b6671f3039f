// The dialog that makes links through which others read one job without a key, lists them, and revokes them.
import { call, getJson } from "./api.js";
import { when } from "./job.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";

const DAY = 86_400; // seconds
const TIMES = { "1 day": DAY, "7 days": 7 * DAY, "30 days": 30 * DAY, "90 days": 90 * DAY };

export function ShareButton({ job }) {
  const [isOpen, setOpen] = useState(false);
  return html`
    <button type="button" onClick=${() => setOpen(true)}>Share</button>
    ${isOpen && html`<${ShareDialog} path=${`${job.links.self}/shares`} onClose=${() => setOpen(false)} />`}
  `;
}

function ShareDialog({ path, onClose }) {
  const dialog = useRef(null);
  const [seconds, setSeconds] = useState(TIMES["7 days"]);
  const [made, setMade] = useState(null); // the link that was just made; the server does not tell it again
  const [shares, setShares] = useState([]);
  const [problem, setProblem] = useState(null);
  const attempt = async (action) => {
    setProblem(null);
    try {
      await action();
      setShares((await getJson(path)).shares);
    } catch (problem) {
      setProblem(problem);
    }
  };
  useEffect(() => {
    dialog.current.showModal();
    attempt(() => {});
  }, []);
  const make = (event) => {
    event.preventDefault();
    attempt(async () => setMade(await getJson(path, { method: "POST", body: { expires_in_seconds: seconds } })));
  };
  const revoke = (share) => attempt(async () => {
    await call(`${path}/${share.share_id}`, { method: "DELETE" });
    if (made?.share_id === share.share_id) setMade(null);
  });
  return html`
    <dialog ref=${dialog} class="share" aria-labelledby="share-title" onClose=${onClose}>
      <h2 id="share-title">Share this job</h2>
      <p class="muted">Whoever has a link reads this job, its texts and its result, and nothing else. No API key is needed.</p>
      <form class="make" onSubmit=${make}>
        <label>Expires after
          <select value=${seconds} onChange=${(event) => setSeconds(Number(event.target.value))}>
            ${Object.entries(TIMES).map(([name, value]) => html`<option value=${value}>${name}</option>`)}
          </select>
        </label>
        <button class="primary" type="submit">Make a link</button>
      </form>
      ${problem && html`<${Notice} problem=${problem} />`}
      ${made && html`<${MadeLink} key=${made.share_id} url=${location.origin + made.url} />`}
      ${shares.length > 0 && html`
        <h3 id="share-list">Links to this job</h3>
        <ul class="links" aria-labelledby="share-list">
          ${shares.map((share) => html`
            <li key=${share.share_id}>
              <span>${made?.share_id === share.share_id && html`<strong>This link</strong>, `}made ${when(share.created_at)}, expires ${when(share.expires_at)}</span>
              <button type="button" class="quiet" aria-label=${`Revoke the link made ${when(share.created_at)}`} onClick=${() => revoke(share)}>Revoke</button>
            </li>`)}
        </ul>`}
      <div class="actions"><button type="button" onClick=${() => dialog.current.close()}>Close</button></div>
    </dialog>
  `;
}

function MadeLink({ url }) {
  const input = useRef(null);
  const [isCopied, setCopied] = useState(false);
  useLayoutEffect(() => input.current.select(), []);
  const copy = async () => {
    await navigator.clipboard.writeText(url);
    setCopied(true);
  };
  return html`
    <div class="made">
      <label>Link
        <input ref=${input} readonly value=${url} onFocus=${(event) => event.target.select()} />
      </label>
      ${navigator.clipboard && html`<button type="button" onClick=${copy}>Copy</button>`}
      <p class="muted" role="status">${isCopied ? "Copied." : "Copy it now: it is not shown again."}</p>
    </div>
  `;
}
