// The list of all errors of a refused request. A click on an error moves the focus to its field.
import { html } from "./preact.js";

export function FormProblems({ problem, form }) {
  const visit = (pointer) => {
    const field = fieldAt(form.current, pointer);
    unfold(field);
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

/** Open the `<details>` around invalid fields, and focus the first such field. */
export function showErrors(form) {
  const invalid = [...form.querySelectorAll("[aria-invalid=true]")];
  invalid.forEach(unfold);
  (invalid[0] ?? form.querySelector(".notice"))?.focus();
}

function unfold(field) {
  for (let folded = field?.closest("details"); folded; folded = folded.parentElement.closest("details")) folded.open = true;
}

/** The field at a pointer, or the nearest one that contains it or is in it. */
function fieldAt(form, pointer) {
  for (let path = pointer; path; path = path.slice(0, path.lastIndexOf("/"))) {
    const own = CSS.escape(path);
    const field = form.querySelector(`[data-pointer="${own}"]`) ?? form.querySelector(`[data-pointer^="${own}\\/"]`);
    if (field) return field;
  }
  return null;
}
