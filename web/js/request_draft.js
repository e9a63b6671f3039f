// The state of the form, called a draft, and its conversion from and to a request. Knows nothing of how it is shown.
//
// `values` maps the JSON pointer of a field to the text in it. The server's errors name fields by the same pointers.
import { parse, specOfParameter, specsOfProperty, toText } from "./field_specs.js";

// Fields of the request that have their own place in the form, outside the advanced options.
const PLACED_FIELDS = new Set([
  "model", "method", "methods", "input_text", "generated_text", "step_scores", "attributed_fn", "attribution_args",
  "attributed_fn_args", "step_scores_args",
  "n_steps", "internal_batch_size", // shorthands of the method's own arguments
]); // prettier-ignore
export const MAX_NEW_TOKENS = "/generation_args/max_new_tokens";

export function emptyDraft() {
  return { model: "", methods: ["saliency"], inputs: [{ text: "", target: "" }], stepScores: [], attributedFn: "", values: {} };
}

/** The draft that produces this request. */
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

/** The fields of a method's arguments. */
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

/** The fields of the advanced options, read from the OpenAPI document. */
export function advancedSpecs(catalogue) {
  return Object.entries(catalogue.request)
    .filter(([name]) => !PLACED_FIELDS.has(name))
    .flatMap(([name, property]) => specsOfProperty(name, property, catalogue.schemas));
}

export function maxNewTokensSpec() {
  return { pointer: MAX_NEW_TOKENS, name: "max_new_tokens", kind: "integer", type: "int", default: null, help: "Maximum number of new tokens." };
}

function specsOf(draft, catalogue) {
  return [
    ...draft.methods.flatMap((name) => methodSpecs(draft, name, catalogue)),
    ...attributedFnSpecs(draft, catalogue),
    ...stepScoreSpecs(draft, catalogue),
    ...advancedSpecs(catalogue), // before max_new_tokens, which is set inside generation_args
    maxNewTokensSpec(),
  ];
}

/** The body of the request, without values that equal their defaults. */
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
    // Keep a text where an object belongs: the server then explains the error.
    if (typeof (part[key] ??= {}) !== "object") return;
    part = part[key];
  }
  part[last] = value;
}
