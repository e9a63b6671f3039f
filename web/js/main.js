// Entry point: renders the page into the document.
import { App } from "./app.js";
import { html, render } from "./preact.js";

render(html`<${App} />`, document.body);
