// The examples as cards: a click fills the form.
import { html } from "./preact.js";

export function Examples({ examples, onChoose }) {
  if (!examples.length) return null;
  return html`
    <section class="examples" aria-labelledby="examples-title">
      <h2 id="examples-title">Examples</h2>
      <ul>
        ${examples.map(({ name, says, request }) => html`
          <li key=${name}>
            <button type="button" onClick=${() => onChoose(request)}>
              <span class="label">${name}</span>
              <span class="says">${says}</span>
              <span class="muted">${request.model}</span>
            </button>
          </li>`)}
      </ul>
    </section>
  `;
}
