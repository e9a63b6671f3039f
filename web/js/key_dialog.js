// The dialog that asks for an API key.
import { html, useLayoutEffect, useRef, useState } from "./preact.js";

export function KeyDialog({ wasRefused, onEnter }) {
  const dialog = useRef(null);
  const [value, setValue] = useState("");
  useLayoutEffect(() => dialog.current.showModal(), []);
  const enter = (event) => {
    event.preventDefault();
    if (value.trim()) onEnter(value.trim());
  };
  return html`
    <dialog ref=${dialog} class="key" aria-labelledby="key-title" onCancel=${(event) => event.preventDefault()}>
      <form onSubmit=${enter}>
        <h2 id="key-title">This server needs an API key</h2>
        ${wasRefused && html`<p class="error" role="alert">That key was not accepted. It may have been revoked.</p>`}
        <p class="muted">
          The operator of the server creates one with <code>python main.py keys create NAME</code>. It is kept in the
          open tabs of this page only, and gone when the last of them is closed.
        </p>
        <label for="key">API key</label>
        <input id="key" type="password" autocomplete="off" required value=${value} onInput=${(event) => setValue(event.target.value)} />
        <div class="actions"><button class="primary" type="submit">Use this key</button></div>
      </form>
    </dialog>
  `;
}
