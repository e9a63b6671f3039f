// A job that is being written: what the fields hold, and the request that it makes. Knows nothing of how it is shown.
//
// `values` has what was typed, by the JSON pointer of its field: the server's errors come with the same pointers.
import { parse, specOfParameter, specsOfProperty, toText } from "./spec.js";

// Fields of the request that the form shows in a place of their own.
const OWN_PLACE = new Set([
  "model", "method", "methods", "input_text", "generated_text", "step_scores", "attributed_fn", "attribution_args",
  "attributed_fn_args", "step_scores_args",
  "n_steps", "internal_batch_size", // shorthands of the method's own arguments
]); // prettier-ignore
export const MAX_NEW_TOKENS = "/generation_args/max_new_tokens";

export function emptyDraft() {
  return { model: "", methods: ["saliency"], inputs: [{ text: "", target: "" }], stepScores: [], attributedFn: "", values: {} };
}

/** The draft that makes this request again. */
export function draftOf(request, catalogue) {
  const methods = request.methods ?? [request.method];
  const texts = [request.input_text ?? ""].flat();
  const targets = [request.generated_text ?? ""].flat();
  const draft = {
    model: request.model,
    methods,
    inputs: texts.map((text, index) => ({ text, target: targets[index] ?? "" })),
    stepScores: request.step_scores ?? [],
    attributedFn: request.attributed_fn ?? "",
    values: {},
  };
  for (const spec of specsOf(draft, catalogue)) {
    const value = at(request, spec.pointer);
    if (value !== undefined && value !== null) draft.values[spec.pointer] = spec.kind === "boolean" ? value : toText(value);
  }
  const others = { ...request.generation_args };
  delete others.max_new_tokens;
  draft.values["/generation_args"] = toText(others);
  return draft;
}

/** The fields of the method at this place of the list. */
export function methodSpecs(draft, name, catalogue) {
  const pointer = draft.methods.length > 1 ? `/attribution_args/${name}` : "/attribution_args";
  const parameters = catalogue.methods[name]?.parameters ?? [];
  return parameters.map((each) => specOfParameter(each, `${pointer}/${each.name}`));
}

export function attributedFnSpecs(draft, catalogue) {
  return functionSpecs([draft.attributedFn || "probability"], "/attributed_fn_args", catalogue);
}

export function stepScoreSpecs(draft, catalogue) {
  return functionSpecs(draft.stepScores, "/step_scores_args", catalogue);
}

function functionSpecs(names, pointer, catalogue) {
  const parameters = names.flatMap((name) => catalogue.stepFunctions[name]?.parameters ?? []);
  const unique = [...new Map(parameters.map((each) => [each.name, each])).values()];
  return unique.map((each) => specOfParameter(each, `${pointer}/${each.name}`));
}

/** The rest of the request's fields, read from the OpenAPI document. */
export function advancedSpecs(catalogue) {
  return Object.entries(catalogue.request)
    .filter(([name]) => !OWN_PLACE.has(name))
    .flatMap(([name, property]) => specsOfProperty(name, property, catalogue.schemas));
}

export function maxNewTokensSpec() {
  return { pointer: MAX_NEW_TOKENS, name: "max_new_tokens", kind: "integer", type: "int", default: null, help: "New tokens at most." };
}

function specsOf(draft, catalogue) {
  return [
    ...draft.methods.flatMap((name) => methodSpecs(draft, name, catalogue)),
    ...attributedFnSpecs(draft, catalogue),
    ...stepScoreSpecs(draft, catalogue),
    ...advancedSpecs(catalogue), // before what goes inside generation_args
    maxNewTokensSpec(),
  ];
}

/** The body of the request, without what is its default. */
export function requestOf(draft, catalogue) {
  const request = { model: draft.model.trim() };
  if (draft.methods.length > 1) request.methods = draft.methods;
  else [request.method] = draft.methods;
  const texts = draft.inputs.map(({ text }) => text);
  const targets = draft.inputs.map(({ target }) => target);
  if (!(draft.values["/messages"] ?? "").trim() || texts.some(Boolean)) request.input_text = oneOrMany(texts);
  if (targets.some(Boolean)) request.generated_text = oneOrMany(targets);
  if (draft.stepScores.length) request.step_scores = draft.stepScores;
  if (draft.attributedFn) request.attributed_fn = draft.attributedFn;
  for (const spec of specsOf(draft, catalogue)) {
    const value = parse(spec, draft.values[spec.pointer]);
    if (value !== undefined) set(request, spec.pointer, value);
  }
  return request;
}

const oneOrMany = (texts) => (texts.length === 1 ? texts[0] : texts);

const keysOf = (pointer) => pointer.split("/").slice(1);

function at(document, pointer) {
  return keysOf(pointer).reduce((part, key) => part?.[key], document);
}

function set(document, pointer, value) {
  const keys = keysOf(pointer);
  const last = keys.pop();
  let part = document;
  for (const key of keys) {
    // A text that should have been an object stays, for the server to say so.
    if (typeof (part[key] ??= {}) !== "object") return;
    part = part[key];
  }
  part[last] = value;
}
