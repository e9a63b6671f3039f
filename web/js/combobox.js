// A text field with a list of suggestions: the editable combobox with a listbox popup of the ARIA Authoring Practices.
// Any text may be typed; the list only helps.
import { html, useEffect, useRef, useState } from "./preact.js";

/**
 * `groupsFor(typed)` returns `[{label, options: [{value, detail}]}]`: all options for an empty text, which is what a
 * click or an arrow key opens, else those that fit what was typed. `onOpen(isOpen)` reports the popup.
 */
export function Combobox({ attributes, value, groupsFor, name, onChange, onOpen }) {
  const [isOpen, setOpen] = useState(false);
  const [typed, setTyped] = useState("");
  const [active, setActive] = useState(-1);
  const input = useRef(null);
  const groups = isOpen ? groupsFor(typed) : [];
  const options = groups.flatMap((group) => group.options);
  const list = `${attributes.id}-list`;
  const idOf = (index) => `${list}-${index}`;
  const isShown = options.length > 0;

  useEffect(() => onOpen?.(isShown), [isShown]);
  useEffect(() => {
    if (active >= 0) document.getElementById(idOf(active))?.scrollIntoView({ block: "nearest" });
  }, [active, isOpen]);

  const open = (text, index) => {
    setTyped(text);
    setActive(index);
    setOpen(true);
  };
  const close = () => setOpen(false);
  const choose = (option) => {
    onChange(option.value);
    close();
    input.current.focus();
  };
  const openAll = (isFromEnd) => {
    const all = groupsFor("").flatMap((group) => group.options);
    const current = all.findIndex((option) => option.value === value);
    open("", current >= 0 ? current : isFromEnd ? all.length - 1 : 0);
  };
  const onKeyDown = (event) => {
    if (event.ctrlKey || event.metaKey) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (event.altKey && step < 0) close();
      else if (!isShown) openAll(step < 0);
      else setActive(active < 0 && step < 0 ? options.length - 1 : (active + step + options.length) % options.length);
    } else if (event.key === "Enter" && isShown && active >= 0) {
      event.preventDefault();
      choose(options[active]);
    } else if (event.key === "Escape" && isShown) {
      event.preventDefault();
      close();
    }
  };
  let index = -1;
  return html`
    <div class="combobox">
      <input ...${attributes} ref=${input} type="text" role="combobox" autocomplete="off" spellcheck=${false} value=${value}
        aria-expanded=${isShown} aria-controls=${list} aria-autocomplete="list"
        aria-activedescendant=${isShown && active >= 0 ? idOf(active) : undefined}
        onInput=${(event) => { onChange(event.target.value); open(event.target.value, -1); }}
        onClick=${() => isShown || openAll()} onKeyDown=${onKeyDown} onBlur=${close} />
      <button type="button" class="quiet" tabindex="-1" aria-label=${`${isShown ? "Hide" : "Show"} ${name}`}
        onMouseDown=${(event) => event.preventDefault()}
        onClick=${() => { input.current.focus(); if (isShown) close(); else openAll(); }}>▾</button>
      <div id=${list} role="listbox" aria-label=${name} hidden=${!isShown} onMouseDown=${(event) => event.preventDefault()}>
        ${groups.map((group, place) => html`
          <div role="group" aria-labelledby=${`${list}-group-${place}`} key=${group.label}>
            <div class="group-label" role="presentation" id=${`${list}-group-${place}`}>${group.label}</div>
            ${group.options.map((option) => {
              const own = ++index;
              return html`
                <div role="option" id=${idOf(own)} key=${option.value} aria-selected=${own === active} class=${own === active ? "active" : ""}
                  onClick=${() => choose(option)}>
                  <span class="value">${option.value}</span> <span class="muted">${option.detail}</span>
                </div>`;
            })}
          </div>`)}
      </div>
      <span class="hidden" role="status">${isShown ? `${options.length} in the list` : ""}</span>
    </div>
  `;
}
