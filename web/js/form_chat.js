// A conversation: a row for each message, which may be moved and removed.
import { errorsAt, Labelled } from "./form_field.js";
import { hasContentInJson, newRow, nextRole } from "./messages_draft.js";
import { html, useLayoutEffect, useRef } from "./preact.js";

const ROLES = ["system", "user", "assistant", "tool"];
const MORE = "`tool_calls`, `tool_call_id`, `name`, or a `content` in parts.";

export function Conversation({ label, rows, pointer, errors, onChange }) {
  const list = useRef(null);
  const added = useRef(null); // the id of a row that a click added, to which the focus goes before the next key is pressed
  useLayoutEffect(() => {
    if (added.current === null) return;
    list.current.querySelector(`[data-row="${added.current}"] textarea`)?.focus();
    added.current = null;
  });
  const add = (row, index) => {
    added.current = row.id;
    onChange(rows.toSpliced(index, 0, row));
  };
  const move = (index, step) => onChange(rows.toSpliced(index, 1).toSpliced(index + step, 0, rows[index]));
  // Errors about the conversation as a whole, or about a message that is not there.
  const own = errors.filter((error) => error.pointer.length <= pointer.length || !rows[error.pointer.slice(pointer.length + 1).split("/")[0]]);
  return html`
    <fieldset class="conversation" ref=${list}>
      <legend>${label}</legend>
      <ol>
        ${rows.map((row, index) => html`
          <${Message} key=${row.id} row=${row} index=${index} count=${rows.length} pointer=${`${pointer}/${index}`} errors=${errorsAt(errors, `${pointer}/${index}`)}
            onChange=${(changes) => onChange(rows.map((each) => (each === row ? { ...each, ...changes } : each)))}
            onMove=${(step) => move(index, step)} onRemove=${() => onChange(rows.toSpliced(index, 1))} />`)}
      </ol>
      ${own.length > 0 && html`<p class="error">${own.map((error) => error.detail).join(" ")}</p>`}
      <div class="actions">
        <button type="button" class="quiet" data-pointer=${rows.length ? undefined : pointer} onClick=${() => add(newRow(nextRole(rows)), rows.length)}>Add a message</button>
        ${!rows.some(({ role }) => role === "system") && html`
          <button type="button" class="quiet" onClick=${() => add(newRow("system"), 0)}>Add a system prompt</button>`}
      </div>
    </fieldset>
  `;
}

function Message({ row, index, count, pointer, errors, onChange, onMove, onRemove }) {
  const name = `message ${index + 1}`;
  const isContinued = index === count - 1 && row.role === "assistant";
  const inJson = hasContentInJson(row);
  const takesMore = row.more === null && ["assistant", "tool"].includes(row.role);
  const ofContent = errorsAt(errors, `${pointer}/content`);
  const others = errors.filter((error) => !ofContent.includes(error));
  return html`
    <li class="message ${row.role}" data-row=${row.id}>
      <div class="message-head">
        <select aria-label=${`Role of ${name}`} data-pointer=${`${pointer}/role`} value=${row.role} onChange=${(event) => onChange({ role: event.target.value })}>
          ${[...new Set([...ROLES, row.role])].map((role) => html`<option value=${role}>${role}</option>`)}
        </select>
        <span class="tools" role="group" aria-label=${`Change ${name}`}>
          ${index > 0 && html`<button type="button" class="quiet" aria-label=${`Move ${name} up`} onClick=${() => onMove(-1)}>↑</button>`}
          ${index < count - 1 && html`<button type="button" class="quiet" aria-label=${`Move ${name} down`} onClick=${() => onMove(1)}>↓</button>`}
          ${takesMore && html`<button type="button" class="quiet" onClick=${() => onChange({ more: "" })}>Tool fields</button>`}
          ${count > 1 && html`<button type="button" class="quiet" aria-label=${`Remove ${name}`} onClick=${onRemove}>×</button>`}
        </span>
      </div>
      ${!inJson && html`
        <${Labelled} label=${html`<span class="hidden">Content of ${name}, ${row.role}</span>`} pointer=${`${pointer}/content`} errors=${ofContent}
          help=${isContinued ? "The model continues this turn." : undefined}
          control=${(attributes) => html`
            <textarea ...${attributes} rows="2" dir="auto" value=${row.content} onInput=${(event) => onChange({ content: event.target.value })} />`} />`}
      ${row.more === null ? others.length > 0 && html`<p class="error">${others.map((error) => error.detail).join(" ")}</p>` : html`
        <${Labelled} label=${inJson ? "Content and other fields as JSON" : "Other fields as JSON"} pointer=${`${pointer}/more`} errors=${inJson ? errors : others}
          help=${MORE}
          control=${(attributes) => html`
            <textarea ...${attributes} class="code" rows=${Math.min(12, row.more.split("\n").length + 1)} spellcheck=${false} value=${row.more}
              onInput=${(event) => onChange({ more: event.target.value })} />`} />
        <button type="button" class="quiet" onClick=${() => onChange({ more: null })}>Remove the other fields</button>`}
    </li>
  `;
}
