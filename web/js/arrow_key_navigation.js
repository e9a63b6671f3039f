// Moves the focus with the arrow keys within a group of elements that the Tab key enters only once: the "roving
// tabindex" of the ARIA Authoring Practices.

/** A keydown handler for a group whose elements match `selector`, either in lines of text or in the rows of a table. */
export function arrowKeyNavigation(selector) {
  return (event) => {
    const current = event.target.closest(selector);
    if (!current || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = nextOf(current, event.key, event.currentTarget, selector);
    if (!next) return;
    event.preventDefault();
    for (const each of event.currentTarget.querySelectorAll(`${selector}[tabindex="0"]`)) each.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
}

function nextOf(current, key, group, selector) {
  const isRightToLeft = getComputedStyle(group).direction === "rtl";
  const all = [...(current.closest("tr") ?? group).querySelectorAll(selector)];
  const step = { ArrowLeft: isRightToLeft ? 1 : -1, ArrowRight: isRightToLeft ? -1 : 1 }[key];
  if (step) return all[all.indexOf(current) + step];
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  const down = { ArrowUp: -1, ArrowDown: 1 }[key];
  if (!down) return null;
  const row = current.closest("tr");
  if (!row) return nextLine(current, all, down);
  const rows = [...group.querySelectorAll("tr")].filter((each) => each.querySelector(selector));
  return rows[rows.indexOf(row) + down]?.querySelectorAll(selector)[all.indexOf(current)];
}

/** The nearest element in the line above or below, in wrapped text. */
function nextLine(current, all, down) {
  const here = current.getBoundingClientRect();
  const middle = here.left + here.width / 2;
  let best = null;
  for (const each of all) {
    const box = each.getBoundingClientRect();
    if ((box.top - here.top) * down < here.height / 2) continue;
    const distance = Math.abs(box.top - here.top) * 1000 + Math.abs(box.left + box.width / 2 - middle);
    if (!best || distance < best.distance) best = { each, distance };
  }
  return best?.each;
}
