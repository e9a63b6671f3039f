// What to trace: the span that it begins at, the one that it leads through, and whether the template gets a share.
import { html, useState } from "./preact.js";
import { selectedSpan } from "./trace_spans.js";

/** `shown`: what the address says; `onShow` changes it. A span is read when the form is sent, or taken from the text. */
export function TraceControls({ sequence, selection, shown, hasTemplate, onShow }) {
  const [draft, setDraft] = useState({ of: shown, trace: shown.trace, through: shown.through });
  // Another address replaces what was written.
  const written = draft.of.trace === shown.trace && draft.of.through === shown.through ? draft : { ...shown, of: shown };
  const [isNothing, setNothing] = useState(false);
  const send = (event) => {
    event.preventDefault();
    onShow({ trace: written.trace.trim() ? written.trace : "", through: written.through.trim() ? written.through : "", hop: "" });
  };
  const take = (name) => () => {
    const span = selectedSpan(sequence, selection);
    setNothing(!span);
    if (span) onShow({ [name]: span, hop: "" });
  };
  const field = (name, label, placeholder) => html`
    <div class="span">
      <label>${label}
        <input type="text" value=${written[name]} placeholder=${placeholder} spellcheck=${false} autocomplete="off"
          onInput=${({ target }) => setDraft({ ...written, of: shown, [name]: target.value })} />
      </label>
      <button type="button" class="quiet" onClick=${take(name)}>Take what is selected in the text</button>
    </div>`;
  return html`
    <form class="trace-controls" onSubmit=${send}>
      ${field("trace", "From (the answer)", "after:</think>, text:milk or 19:20")}
      ${field("through", "Through (the reasoning)", "all that was generated before")}
      <div class="run">
        <button type="submit">Trace</button>
        ${hasTemplate && html`
          <label class="inline"><input type="checkbox" checked=${shown.withoutTemplate}
            onChange=${({ target }) => onShow({ bare: target.checked ? "yes" : "", hop: "" })} /> no share for the template</label>`}
      </div>
      ${isNothing && html`<p class="muted" role="status">Click a generated token above, or select several with the mouse, first.</p>`}
    </form>
  `;
}
