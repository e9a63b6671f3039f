// Preact as the page uses it: with signals, and with htm's tagged templates in place of JSX, which would need a build.
import htm from "../vendor/htm.js";
import { h } from "../vendor/preact.js";
import "../vendor/preact-signals.js"; // renders a component again when a signal changes that it read by `.value`

export const html = htm.bind(h);
export { render } from "../vendor/preact.js";
export { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "../vendor/preact-hooks.js";
