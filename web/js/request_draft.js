// The state of the form, called a draft, and its conversion from and to a request. Knows nothing of how it is shown.
//
// `inputs` has for each input its text, its conversation and its target; `isChat` says which of text and conversation is
// sent. `values` maps the JSON pointer of a field to the text in it. The server's errors name fields by the same
// pointers.
import { parse, specOfParameter, specsOfProperty, toText } from "./field_specs.js";
import { placed } from "./field_words.js";
import { lastUserText, messageOf, newRow, problemOf, rowOf, withUserText } from "./messages_draft.js";
import { isEncoderDecoder, takesChat } from "./model_facts.js";

// Fields of the request that have their own place in the form, outside the groups of options.
const PLACED_FIELDS = new Set([
  "model", "method", "methods", "input_text", "messages", "generated_text", "step_scores", "attributed_fn", "attribution_args",
  "attributed_fn_args", "step_scores_args",
  "n_steps", "internal_batch_size", // shorthands of the method's own arguments
]); // prettier-ignore
export const MAX_NEW_TOKENS = "/generation_args/max_new_tokens";

export const emptyInput = () => ({ text: "", messages: [newRow()], target: "" });

/** The draft that produces this request. */
export function draftOf(request, catalogue) {
  const methods = request.methods ?? [request.method];
  const targets = [request.generated_text ?? ""].flat();
  const isChat = Boolean(request.messages);
  const conversations = isChat && (Array.isArray(request.messages[0]) ? request.messages : [request.messages]);
  const inputs = isChat
    ? conversations.map((messages) => messages.map(rowOf)).map((messages) => ({ text: lastUserText(messages), messages }))
    : [request.input_text ?? ""].flat().map((text) => ({ text, messages: [newRow("user", text)] }));
  const draft = {
    model: request.model,
    isChat,
    isKindChosen: false,
    methods,
    inputs: inputs.map((input, index) => ({ ...input, target: targets[index] ?? "" })),
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

/** The draft with conversations or with texts; what was typed is kept as the user's words, or as the text. */
export function withKind(draft, isChat, catalogue) {
  if (draft.isChat === isChat) return draft;
  const startsWithInput = isEncoderDecoder(catalogue.models, draft.model) !== true;
  const inputs = draft.inputs.map(({ text, messages, target }) => {
    if (isChat) {
      const reply = text && target.startsWith(text) ? target.slice(text.length).trimStart() : target;
      return { text, messages: withUserText(messages, text), target: reply };
    }
    const words = lastUserText(messages);
    return { text: words, messages, target: target && startsWithInput ? `${words} ${target}` : target };
  });
  return { ...draft, isChat, inputs };
}

/** The draft with another model, and of its kind unless the user has chosen one. */
export function withModel(draft, model, catalogue) {
  const changed = { ...draft, model };
  const isChat = takesChat(catalogue.models, model);
  return draft.isKindChosen || isChat === null ? changed : withKind(changed, isChat, catalogue);
}

/** The draft with another text. For a decoder-only model, what begins with the text follows it. */
export function withText(draft, index, text, catalogue) {
  const before = draft.inputs[index].text;
  const follows = before && isEncoderDecoder(catalogue.models, draft.model) === false;
  const moved = (each) => (follows && each?.startsWith(before) ? text + each.slice(before.length) : each);
  const values = { ...draft.values };
  if (draft.inputs.length === 1) {
    for (const pointer of Object.keys(values).filter((each) => each.endsWith("/contrast_targets"))) values[pointer] = moved(values[pointer]);
  }
  const inputs = draft.inputs.map((each, other) => (other === index ? { ...each, text, target: moved(each.target) } : each));
  return { ...draft, inputs, values };
}

/** The fields of a method's arguments. */
export function methodSpecs(draft, name, catalogue) {
  const pointer = draft.methods.length > 1 ? `/attribution_args/${name}` : "/attribution_args";
  const parameters = catalogue.methods[name]?.parameters ?? [];
  return parameters.map((each) => specOfParameter(each, `${pointer}/${each.name}`));
}

export function attributedFnSpecs(draft, catalogue) {
  return functionSpecs(draft, [draft.attributedFn || "probability"], "/attributed_fn_args", catalogue);
}

export function stepScoreSpecs(draft, catalogue) {
  return functionSpecs(draft, draft.stepScores, "/step_scores_args", catalogue);
}

// The contrast first; another source only of a model that has sources.
const FIRST = ["contrast_targets", "contrast_sources"];

function functionSpecs(draft, names, pointer, catalogue) {
  const functions = names.map((name) => catalogue.stepFunctions[name]).filter(Boolean);
  const unique = [...new Map(functions.flatMap(({ parameters }) => parameters).map((each) => [each.name, each])).values()];
  const ownersOf = (name) => functions.filter(({ parameters }) => parameters.some((each) => each.name === name)).map(({ title }) => title);
  const hasSource = isEncoderDecoder(catalogue.models, draft.model) !== false;
  const place = ({ name }) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  return unique
    .sort((a, b) => place(a) - place(b))
    .map((each) => ({ ...specOfParameter(each, `${pointer}/${each.name}`), owners: ownersOf(each.name) }))
    .filter(({ name, pointer: own }) => hasSource || name !== "contrast_sources" || draft.values?.[own]);
}

/** The fields of a group of options, read from the OpenAPI document; without those that this kind of input or model has not. */
export function groupSpecs(draft, group, catalogue) {
  return optionSpecs(draft, catalogue).filter((spec) => spec.group === group);
}

function optionSpecs(draft, catalogue) {
  const unfit = [draft.isChat ? "/skip_special_tokens" : "/chat_template_args"];
  if (isEncoderDecoder(catalogue.models, draft.model) === false) unfit.push("/tokenizer_args/src_lang", "/tokenizer_args/tgt_lang");
  const parameters = draft.methods.flatMap((name) => catalogue.methods[name]?.parameters ?? []);
  if (!parameters.some(({ name }) => name === "n_steps")) unfit.push("/completeness_tolerance");
  return Object.entries(catalogue.request)
    .filter(([name]) => !PLACED_FIELDS.has(name))
    .flatMap(([name, property]) => specsOfProperty(name, property, catalogue.schemas))
    .filter(({ pointer }) => !unfit.includes(pointer))
    .map(placed);
}

export function maxNewTokensSpec() {
  return { pointer: MAX_NEW_TOKENS, name: "max_new_tokens", label: "Most new tokens", kind: "integer", type: "int", default: null, help: "The model’s own limit if empty." };
}

function specsOf(draft, catalogue) {
  return [
    ...draft.methods.flatMap((name) => methodSpecs(draft, name, catalogue)),
    ...attributedFnSpecs(draft, catalogue),
    ...stepScoreSpecs(draft, catalogue),
    ...optionSpecs(draft, catalogue), // before max_new_tokens, which is set inside generation_args
    maxNewTokensSpec(),
  ];
}

/** Whether every target is given, so that nothing is generated. */
export const isTargetGiven = (draft) => draft.inputs.every(({ target }) => target);

/** The body of the request, without values that equal their defaults. */
export function requestOf(draft, catalogue) {
  const request = { model: draft.model.trim() };
  if (draft.methods.length > 1) request.methods = draft.methods;
  else [request.method] = draft.methods;
  const targets = draft.inputs.map(({ target }) => target);
  if (draft.isChat) request.messages = oneOrMany(draft.inputs.map(({ messages }) => messages.map(messageOf)));
  else request.input_text = oneOrMany(draft.inputs.map(({ text }) => text));
  if (targets.some(Boolean)) request.generated_text = oneOrMany(targets);
  if (draft.stepScores.length) request.step_scores = draft.stepScores;
  if (draft.attributedFn) request.attributed_fn = draft.attributedFn;
  for (const spec of specsOf(draft, catalogue)) {
    if (isTargetGiven(draft) && spec.pointer.startsWith("/generation_args")) continue;
    const value = parse(spec, draft.values[spec.pointer]);
    if (value !== undefined) set(request, spec.pointer, value);
  }
  return request;
}

/** A request as short as it can be: without the defaults that the server filled in. */
export const shortest = (request, catalogue) => requestOf(draftOf(request, catalogue), catalogue);

/** Errors that the page itself finds, as the server writes them. */
export function errorsOf(draft) {
  if (!draft.isChat) return [];
  return draft.inputs.flatMap(({ messages }, index) => messages.flatMap((row, place) => {
    const detail = problemOf(row);
    return detail ? [{ pointer: `${messagePointer(draft, index)}/${place}/more`, detail }] : [];
  }));
}

/** Whether the server would probably accept the draft: its texts are there, and its numbers are numbers. */
export function isPlausible(draft, catalogue) {
  const hasText = draft.inputs.every(({ text, messages }) => (draft.isChat ? messages.length > 0 && messages.some(({ content, more }) => content || more) : text));
  return Boolean(draft.model.trim() && hasText) && !errorsOf(draft).length && specsOf(draft, catalogue).every((spec) => {
    const value = parse(spec, draft.values[spec.pointer]);
    return !["integer", "number"].includes(spec.kind) || typeof value !== "string" || value === "auto";
  });
}

/** The place of an input's text, conversation or target in the request. */
export const inputPointer = (draft, name, index) => (draft.inputs.length === 1 ? `/${name}` : `/${name}/${index}`);
export const messagePointer = (draft, index) => inputPointer(draft, "messages", index);

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
