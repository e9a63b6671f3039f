// The page of a link for others: one job and its result, read only. All its calls go through the path of the link.
import { getJson } from "./api.js";
import { viewsOf } from "./catalogue.js";
import { JobView } from "./job_view.js";
import { html, useEffect, useMemo, useState } from "./preact.js";
import { Notice } from "./problem_notice.js";
import { useRoute } from "./route.js";
import { SharedJobStore } from "./shared_job_store.js";

export function SharedPage() {
  const { parameters } = useRoute();
  const store = useMemo(() => new SharedJobStore(location.pathname), []);
  const [catalogue, setCatalogue] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const load = async () => {
      const job = await store.read();
      setCatalogue(viewsOf(await getJson(job.links.aggregators), await getJson("/openapi.json")));
    };
    load().catch(setProblem);
  }, []);
  return html`
    <header class="top">
      <span class="brand"><img src="/static/favicon.svg" alt="" width="22" height="22" /> Attribution as a service</span>
      <span class="muted">Shared with you, read only</span>
    </header>
    <main id="main" class="shared" tabindex="-1">
      ${problem && html`<h1>This job cannot be shown</h1><${Notice} problem=${problem} />`}
      ${!problem && !catalogue && html`<p class="muted" role="status">Loading…</p>`}
      ${catalogue && html`<${JobView} id=${store.id} parameters=${parameters} store=${store} catalogue=${catalogue} />`}
    </main>
  `;
}
