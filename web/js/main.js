// Entry point: renders the whole page into the document, or the one job of a link for others.
import { App } from "./app.js";
import { html, render } from "./preact.js";
import { SharedPage } from "./shared_page.js";

render(location.pathname.startsWith("/shared/") ? html`<${SharedPage} />` : html`<${App} />`, document.body);
