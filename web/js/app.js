// The frame of the page: the header, the list of jobs, and the form, one job or several beside it. Shows the key dialog when the
// server asks for an API key.
import { onUnauthorized } from "./api.js";
import { apiKey, onKeyChange } from "./api_key.js";
import { loadCatalogue } from "./catalogue.js";
import { CompareView } from "./compare_view.js";
import { JobForm } from "./form.js";
import { JobList } from "./job_list.js";
import { JobStore } from "./job_store.js";
import { JobView } from "./job_view.js";
import { KeyDialog } from "./key_dialog.js";
import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";
import { formHash, useRoute } from "./route.js";

export function App() {
  const [session, setSession] = useState(0); // counts up with each key, so that no data of another key stays
  const [asked, setAsked] = useState(null);
  const [, setHasKey] = useState(false);
  useEffect(() => onUnauthorized((hadKey) => setAsked({ hadKey })), []);
  useEffect(() => onKeyChange((isAwaited) => {
    setAsked(null);
    setHasKey(Boolean(apiKey.get()));
    if (!isAwaited) setSession((count) => count + 1); // else the calls that wait for the key are repeated with it
  }), []);
  const enter = (key) => {
    apiKey.set(key);
    setAsked(null);
    setSession(session + 1);
  };
  const leave = () => {
    apiKey.forget();
    setSession(session + 1);
  };
  return html`
    <a class="skip" href="#main" onClick=${skipToMain}>Skip to content</a>
    <header class="top">
      <a class="brand" href=${formHash()}><img src="/static/favicon.svg" alt="" width="22" height="22" /> Attribution as a service</a>
      <nav aria-label="Site">
        ${apiKey.get() && html`<button class="quiet" onClick=${leave}>Forget API key</button>`}
        <a href="/docs">API</a>
      </nav>
    </header>
    <${Session} key=${session} />
    ${asked && html`<${KeyDialog} wasRefused=${asked.hadKey} onEnter=${enter} />`}
  `;
}

function skipToMain(event) {
  event.preventDefault(); // route.js owns the part of the address after #
  document.getElementById("main").focus();
}

function Session() {
  const route = useRoute();
  const store = useMemo(() => new JobStore(), []);
  const [catalogue, setCatalogue] = useState(null);
  useFocusOnNavigation(route.jobId ?? route.compared?.join());
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    loadCatalogue().then((loaded) => {
      setCatalogue(loaded);
      store.start();
    }, setProblem);
    return () => store.stop();
  }, []);
  if (problem) return html`<main id="main" tabindex="-1">${problem.status !== 401 && html`<${Notice} problem=${problem} />`}</main>`;
  if (!catalogue) return html`<main id="main" tabindex="-1"><p class="muted" role="status">Loading…</p></main>`;
  return html`
    <div class="columns">
      <main id="main" tabindex="-1">
        ${route.compared
          ? html`<${CompareView} key=${route.compared.join()} ids=${route.compared} parameters=${route.parameters} store=${store} />`
          : route.jobId
          ? html`<${JobView} key=${route.jobId} id=${route.jobId} parameters=${route.parameters} store=${store} catalogue=${catalogue} />`
          : html`<${JobForm} key=${route.parameters.from ?? ""} from=${route.parameters.from} store=${store} catalogue=${catalogue} />`}
      </main>
      <${JobList} store=${store} openId=${route.jobId} />
    </div>
  `;
}

/** Move the keyboard focus to the main content when another job, a comparison or the form is shown, as a new page would do. */
function useFocusOnNavigation(shown) {
  const before = useRef(shown);
  useEffect(() => {
    if (before.current === shown) return;
    before.current = shown;
    document.getElementById("main")?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }, [shown]);
}
