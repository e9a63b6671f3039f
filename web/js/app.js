// The page's frame: head, list of jobs, and the form or a job beside it. Asks for an API key where the server does.
import { apiKey, onUnauthorized } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { JobForm } from "./form.js";
import { JobList } from "./job_list.js";
import { JobStore } from "./job_store.js";
import { JobView } from "./job_view.js";
import { KeyDialog } from "./key_dialog.js";
import { Notice } from "./notice.js";
import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { formHash, useRoute } from "./route.js";

export function App() {
  const [session, setSession] = useState(0); // a new one with each key: nothing of another key's stays
  const [asked, setAsked] = useState(null);
  useEffect(() => onUnauthorized((hadKey) => setAsked({ hadKey })), []);
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
  event.preventDefault(); // the address is the router's
  document.getElementById("main").focus();
}

function Session() {
  const route = useRoute();
  const store = useMemo(() => new JobStore(), []);
  const [, setTick] = useState(0);
  const [catalogue, setCatalogue] = useState(null);
  useFocusOnMove(route.jobId);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const forget = store.subscribe(() => setTick((tick) => tick + 1));
    loadCatalogue().then((loaded) => {
      setCatalogue(loaded);
      store.start();
    }, setProblem);
    return () => {
      forget();
      store.stop();
    };
  }, []);
  if (problem) return html`<main id="main" tabindex="-1">${problem.status !== 401 && html`<${Notice} problem=${problem} />`}</main>`;
  if (!catalogue) return html`<main id="main" tabindex="-1"><p class="muted" role="status">Loading…</p></main>`;
  return html`
    <div class="columns">
      <main id="main" tabindex="-1">
        ${route.jobId
          ? html`<${JobView} key=${route.jobId} id=${route.jobId} parameters=${route.parameters} store=${store} catalogue=${catalogue} />`
          : html`<${JobForm} key=${route.parameters.from ?? ""} from=${route.parameters.from} store=${store} catalogue=${catalogue} />`}
      </main>
      <${JobList} store=${store} openId=${route.jobId} />
    </div>
  `;
}

/** After a move within the page the keyboard starts at what is new, as after a move to another page. */
function useFocusOnMove(place) {
  const before = useRef(place);
  useEffect(() => {
    if (before.current === place) return;
    before.current = place;
    document.getElementById("main")?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }, [place]);
}
