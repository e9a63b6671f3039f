// What the server's list of models says of a model by its name, in words.

const UNITS = [[1e9, "B"], [1e6, "M"], [1e3, "K"]]; // prettier-ignore

/** The model's entry in the list, or null if it is not on the server's machine. A revision is looked up without it. */
export function modelNamed(models, name) {
  const known = [...models.available, ...models.loaded];
  const wanted = name.trim();
  return known.find((each) => each.name === wanted) ?? known.find((each) => each.name === bare(wanted)) ?? null;
}

/** The name without revisions; of `base+adapter` the adapter. */
const bare = (name) => name.split("+").at(-1).split("@")[0];

/** Whether the model's tokenizer has a chat template; null if that is not known. */
export const takesChat = (models, name) => modelNamed(models, name)?.chat_template ?? null;

/** Whether the model is an encoder-decoder; null if that is not known. */
export const isEncoderDecoder = (models, name) => modelNamed(models, name)?.is_encoder_decoder ?? null;

/** The groups of the list: models in memory first, since they start at once. Each model is in one of them. */
export function groupedModels({ available, loaded }) {
  const listed = new Set(available.map(({ name }) => name));
  const elsewhere = loaded.filter(({ name }, index) => !listed.has(name) && loaded.findIndex((each) => each.name === name) === index);
  return [
    { label: "Loaded", models: [...available.filter((each) => each.loaded), ...elsewhere] },
    { label: "Bundled", models: available.filter((each) => !each.loaded && each.kind === "bundled") },
    { label: "On this machine", models: available.filter((each) => !each.loaded && each.kind !== "bundled") },
  ];
}

/** The groups with the models whose name or class contains a text; where there are none, the models with near names. */
export function matching(models, text) {
  const wanted = text.trim().toLowerCase();
  const groups = groupedModels(models);
  const found = groups
    .map((group) => ({ ...group, models: group.models.filter((each) => `${each.name} ${each.class ?? ""}`.toLowerCase().includes(wanted)) }))
    .filter((group) => group.models.length);
  if (found.length) return found;
  const near = nearNames(groups.flatMap((group) => group.models), wanted);
  return near.length ? [{ label: "Near names", models: near }] : [];
}

const LIKE = 0.5; // shared pairs of letters from which on names are alike (Dice's coefficient)

function nearNames(models, wanted) {
  const alike = (name) => Math.max(...[name, name.split("/").at(-1)].map((each) => dice(each.toLowerCase(), wanted)));
  return models
    .map((model) => ({ model, share: alike(model.name) }))
    .filter(({ share }) => share >= LIKE)
    .sort((a, b) => b.share - a.share)
    .slice(0, 5)
    .map(({ model }) => model);
}

function dice(one, other) {
  const [a, b] = [pairs(one), pairs(other)];
  return a.size + b.size ? (2 * [...a].filter((each) => b.has(each)).length) / (a.size + b.size) : 0;
}

const pairs = (text) => new Set([...text].slice(1).map((_, index) => text.slice(index, index + 2)));

/** Class, size, context length, kind of input and precision of a model, in words. */
export function factsOf(model) {
  if (model.problem) return [`cannot be loaded: ${model.problem}`];
  const bytes = typeof model.bytes === "number" ? { [model.dtype]: model.bytes } : (model.bytes ?? {});
  return [
    model.class,
    model.parameters && `${count(model.parameters)} parameters`,
    model.context_length && `${model.context_length.toLocaleString("en")} tokens of context`,
    model.chat_template && "chat",
    model.is_encoder_decoder && "encoder-decoder",
    [model.quantization, ...Object.keys(bytes)].filter(Boolean).join(", "),
    Object.keys(bytes).length > 0 && size(Object.values(bytes).reduce((sum, each) => sum + each, 0)),
  ].filter(Boolean);
}

function count(number) {
  const [unit, letter] = UNITS.find(([unit]) => number >= unit) ?? [1, ""];
  return `${rounded(number / unit)}${letter && ` ${letter}`}`;
}

const size = (bytes) => (bytes >= 1e9 ? `${rounded(bytes / 1e9)} GB` : `${rounded(Math.max(bytes, 1e5) / 1e6)} MB`);

const rounded = (number) => (number >= 100 ? Math.round(number).toLocaleString("en") : String(Number(number.toPrecision(2))));
