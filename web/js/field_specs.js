// Specs of form fields, made from Inseq's type names and from JSON Schema; and the conversion of a field's text to
// JSON.
//
// A spec is {pointer, name, label, kind, type, default, choices?, help?, isRequired?, multipliesCost?}. A text that does
// not fit its type is sent to the server unchanged, because the server's error explains best which values it accepts.

const KINDS = { int: "integer", float: "number", bool: "boolean", str: "text" };

/** An identifier in words. */
export const inWords = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

/** The spec of a parameter in the catalogue. `pointer` is its place in the request. */
export function specOfParameter(parameter, pointer) {
  const type = parameter.type.replace(/^Optional\[(.+)\]$/, "$1 | None");
  const literal = /^Literal\[(.+)\]$/.exec(type);
  const alternatives = type.split("|").map((each) => each.trim());
  const core = alternatives.filter((each) => each !== "None");
  return {
    pointer,
    name: parameter.name,
    label: parameter.title ?? inWords(parameter.name),
    help: parameter.description || undefined,
    type: type.replace(/Union\[(.+)\]/, (_, inner) => inner),
    kind: literal ? "choice" : (core.length === 1 && KINDS[core[0]]) || (/\bstr\b/.test(type) ? "texts" : "json"),
    choices: literal ? literal[1].split(",").map((each) => each.trim().replace(/^'|'$/g, "")) : undefined,
    default: parameter.default ?? null,
    isRequired: parameter.required,
    multipliesCost: parameter.multiplies_cost,
  };
}

/** The specs of a property in a JSON Schema: one, or one for each property of an object. */
export function specsOfProperty(name, property, schemas, pointer = `/${name}`) {
  const found = resolve(property, schemas);
  if (found.properties) {
    return Object.entries(found.properties).flatMap(([inner, each]) =>
      specsOfProperty(inner, each, schemas, `${pointer}/${inner}`),
    );
  }
  const options = (found.anyOf ?? [found]).flatMap((each) => each.oneOf ?? [each]).map((each) => resolve(each, schemas)).filter((each) => each.type !== "null");
  const [only] = options;
  const isSimple = options.length === 1 && ["integer", "number", "boolean", "string"].includes(only.type);
  const kind = !isSimple ? "json" : only.enum ? "choice" : only.type === "string" ? "text" : only.type;
  return [
    {
      pointer,
      name,
      label: inWords(name),
      kind,
      type: isSimple ? only.type : [...new Set(options.map((each) => each.type ?? "object"))].join(" or "),
      choices: only?.enum,
      default: property.default ?? null,
      help: property.description,
    },
  ];
}

function resolve(schema, schemas) {
  return schema.$ref ? { ...schemas[schema.$ref.split("/").at(-1)], default: schema.default } : schema;
}

/** What a field takes, in words; empty where the control itself shows it. */
export function typeInWords({ kind, type, isRequired }) {
  const words = {
    integer: "A whole number.",
    number: "A number.",
    texts: "A text, or a JSON list with one for each input.",
    json: type === "object" ? "A JSON object." : `JSON: \`${type.replace(/ \| None$/, "")}\`.`,
  };
  return [isRequired && "Required.", words[kind]].filter(Boolean).join(" ");
}

/** The value of a field that the user has not changed. */
export function shownDefault(spec) {
  if (spec.kind === "boolean") return Boolean(spec.default);
  return toText(spec.default);
}

/** A JSON value as the text of a field. */
export function toText(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "object") return String(value);
  return Object.keys(value).length ? JSON.stringify(value) : "";
}

/** The JSON value of a field's text, or undefined if it equals the default. */
export function parse(spec, raw) {
  if (raw === undefined || raw === shownDefault(spec)) return undefined;
  if (typeof raw === "boolean") return raw;
  const text = raw.trim();
  if (text === "") return undefined;
  if (spec.kind === "integer" || spec.kind === "number") return Number.isFinite(Number(text)) ? Number(text) : text;
  if (spec.kind !== "json" && spec.kind !== "texts") return raw;
  const value = parsed(text);
  // A text that happens to be JSON, such as "[1]" or "2024", stays a text.
  if (spec.kind === "texts") return Array.isArray(value) && value.every((each) => typeof each === "string") ? value : raw;
  return value === undefined ? text : value;
}

/** The value of a JSON text, or undefined if it is none. */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
