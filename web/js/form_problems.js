// The list of all errors of a refused request. A click on an error moves the focus to its field.
import { html } from "./preact.js";

export function FormProblems({ problem, form }) {
  const visit = (pointer) => {
    const field = fieldAt(form.current, pointer);
    const folded = field?.closest("details");
    if (folded) folded.open = true;
    field?.focus();
  };
  return html`
    <div class="notice" role="alert" tabindex="-1">
      <strong>${problem.title}</strong>
      ${problem.errors.length
        ? html`<ul>${problem.errors.map((error) => html`
            <li>
              ${error.pointer && html`
                <button type="button" class="link" onClick=${() => visit(error.pointer)}>${nameOf(error.pointer)}</button>${" "}`}
              ${error.detail}
            </li>`)}</ul>`
        : html`<p>${problem.message}</p>`}
    </div>
  `;
}

const nameOf = (pointer) => pointer.slice(1).replaceAll("/", " › ");

/** The field at a pointer, or the nearest field that contains it. */
function fieldAt(form, pointer) {
  for (let path = pointer; path; path = path.slice(0, path.lastIndexOf("/"))) {
    const field = form.querySelector(`[data-pointer="${CSS.escape(path)}"]`);
    if (field) return field;
  }
  return null;
}
