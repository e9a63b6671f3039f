// A request as text to paste: for curl and a POSIX shell, for Python with the client, and for the command `attribution`.
//
// `request` is a body of POST /attribution/jobs. `view` is the query of the results route, as `queryOf` in
// view_controls.js makes it. With `jobId` the texts read that job's result, without it they run the request first. The
// API key never stands in a text: it is read from INSEQ_API_KEY.

/** A text as one word of a POSIX shell. */
export const shellWord = (text) => (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** The parameters of a view that are given. */
const given = (view) => Object.fromEntries(Object.entries(view ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== ""));

export function curlText({ request, jobId, view, server, hasKey }) {
  const key = hasKey ? ' -H "Authorization: Bearer $INSEQ_API_KEY"' : "";
  const query = new URLSearchParams(given(view)).toString();
  const results = (job) => `curl -sS${key} "${job}/results${query ? `?${query}` : ""}"`;
  if (jobId) return results(`${server}/attribution/jobs/${encodeURIComponent(jobId)}`);
  return `jobs=${shellWord(`${server}/attribution/jobs`)}
answer=$(curl -sS${key} "$jobs" -H 'Content-Type: application/json' -d ${shellWord(JSON.stringify(request, null, 2))})
job=$(printf '%s' "$answer" | sed -n 's/.*"job_id":"\\([^"]*\\)".*/\\1/p')
if [ -z "$job" ]; then printf '%s\\n' "$answer"; else
  while curl -sS${key} "$jobs/$job?wait=60" | grep -Eq '"status":"(pending|running)"'; do :; done
  ${results("$jobs/$job")}
fi`;
}

export function pythonText({ request, jobId, view, server }) {
  const options = Object.entries(given(view)).map(([name, value]) => `, ${name}=${pythonValue(["true", "false"].includes(value) ? value === "true" : value)}`);
  const read = request?.methods && !given(view).method ? "comparison" : "results";
  const result = (job) => `    result = client.${read}(${job}${options.join("")})`;
  const fields = Object.entries(request ?? {}).map(([name, value]) => `        ${name}=${pythonValue(value, 8)},`);
  return [
    "from attribution_client import AttributionClient",
    "",
    `with AttributionClient(${pythonValue(server)}) as client:`,
    ...(jobId ? [result(pythonValue(jobId))] : ["    job = client.submit(", ...fields, "    )", "    client.wait(job)", result("job")]),
  ].join("\n");
}

const LINE = 100; // characters; a longer list or object has a line for each entry

/** A JSON value as a Python literal. */
export function pythonValue(value, indent = 0) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value); // JSON's escapes are among Python's
  const [start, end] = Array.isArray(value) ? "[]" : "{}";
  const inner = indent + 4;
  const entries = (at) => Array.isArray(value)
    ? value.map((each) => pythonValue(each, at))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${pythonValue(each, at)}`);
  const short = `${start}${entries(indent).join(", ")}${end}`;
  if (indent + short.length <= LINE && !short.includes("\n")) return short;
  const space = " ".repeat(inner);
  return `${start}\n${entries(inner).map((each) => `${space}${each},\n`).join("")}${" ".repeat(indent)}${end}`;
}

// The options of the command for fields of the request. A list of values repeats the option.
const OPTIONS = {
  model: "model", method: "method", methods: "methods", input_text: "input_texts", generated_text: "generated_texts",
  step_scores: "step_scores", attributed_fn: "attributed_fn", attribution_args: "attribution_kwargs",
  attributed_fn_args: "attributed_fn_kwargs", step_scores_args: "step_scores_kwargs", generation_args: "generation_kwargs",
  tokenizer_args: "tokenizer_kwargs", n_steps: "n_steps", completeness_tolerance: "completeness_tolerance",
  internal_batch_size: "internal_batch_size", seed: "seed", choices: "choices", spans: "span", trace: "trace", candidates: "candidates", priority: "priority", name: "name", notes: "notes", webhook: "webhook",
  webhook_events: "webhook_events", attribute_target: "attribute_target",
  include_eos_baseline: "include_eos_baseline", output_step_attributions: "output_step_attributions", reuse: "reuse",
  attr_pos_start: "start_pos", attr_pos_end: "end_pos", dtype: "dtype", chat_template_args: "chat_template_kwargs",
  skip_special_tokens: "skip_special_tokens", clean_special_chars: "clean_special_chars", engine: "engine",
  corrections: "corrections", timeout_seconds: "timeout_seconds", segments: "segments",
}; // prettier-ignore
const VIEW_OPTIONS = { aggregator: "attribution_aggregators", normalize: "normalize_attributions" };

/** `{text, missing}`: the command, and the names of the fields for which it has no option. */
export function commandText({ request, jobId, view, server }) {
  const missing = [];
  const words = [];
  let input = ""; // what the command reads from standard input
  const add = (option, value) => {
    const word = typeof value === "object" ? JSON.stringify(value) : String(value);
    // A value that begins with a hyphen would be taken for an option.
    words.push(word.startsWith("-") ? `--${option}=${shellWord(word)}` : `--${option} ${shellWord(word)}`);
  };
  const addAll = (option, value) => [value].flat().forEach((each) => add(option, each));
  for (const [name, value] of jobId ? [] : Object.entries(request)) {
    if (name === "tags") Object.entries(value).forEach(([tag, text]) => add("tag", `${tag}=${text}`));
    else if (name === "force_cpu") value && add("device", "cpu");
    else if (name === "messages") {
      words.push("--messages -");
      input = ` <<'EOF'\n${JSON.stringify(value, null, 2)}\nEOF`; // a line of JSON is never EOF: its line breaks are escaped
    } else if (name === "segments") add(OPTIONS.segments, value); // a list is one value
    else if ([value].flat().includes("-")) missing.push(`${name} "-"`); // would be standard input
    else if (name in OPTIONS) addAll(OPTIONS[name], value);
    else missing.push(name);
  }
  for (const [name, value] of Object.entries(given(view))) {
    if (name === "aggregator") addAll(VIEW_OPTIONS.aggregator, value.split(","));
    else if (name === "normalize") add(VIEW_OPTIONS.normalize, value);
    else if (name === "method" && jobId) add("method", value);
    else missing.push(name);
  }
  const command = jobId ? `show ${shellWord(jobId)}` : "attribute";
  return { text: [`attribution --server ${shellWord(server)} ${command}`, ...words].join(" \\\n  ") + input, missing };
}
