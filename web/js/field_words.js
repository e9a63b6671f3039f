// What the fields of a request are called and which group of the form they are in. A field of a newer server that is not
// listed is called by its identifier, in the group of other options.

/** The groups of fields, in their order. */
export const GROUPS = [
  { name: "positions", title: "Positions and tokens" },
  { name: "precision", title: "Precision and engine" },
  { name: "bookkeeping", title: "Seed, limits and tags" },
  { name: "other", title: "Other options" },
];

const FIELDS = {
  "/generation_args": { group: "generation", label: "Other arguments of generation", help: 'Of Transformers’ `generate`, such as `{"do_sample": true, "temperature": 0.7}`.' },
  "/tokenizer_args/src_lang": { group: "generation", label: "Source language", help: "Of a multilingual translation model, such as `eng_Latn`." },
  "/tokenizer_args/tgt_lang": { group: "generation", label: "Target language", help: "Generation starts with its token; such as `fra_Latn`." },
  "/chat_template_args": { group: "generation", label: "Variables of the chat template", help: 'Such as `{"enable_thinking": false}`; tools are in `tools`.' },
  "/candidates": { group: "generation", label: "Likeliest next tokens to report" },
  "/generated_ids": { group: "generation", label: "Target as token ids", help: "In place of the generated text: one list of ids for each input." },
  "/choices": { group: "generation", label: "Choices", help: 'Texts that might follow the input, in place of a generated one: `[" yes", " no"]`. The first is attributed against the others.' },
  "/spans": { group: "positions", label: "Spans to attribute as wholes", help: 'Parts of the answer, each with one column of scores: `[{"name": "answer", "after": "</think>"}]`, or `[{}]` for all of it.' },
  "/trace/from": { group: "positions", label: "Trace from the span" },
  "/trace/through": { group: "positions", label: "Trace through the span" },
  "/trace/hops": { group: "positions", label: "Hops of the trace" },
  "/trace/mode": { group: "positions", label: "Trace by" },
  "/trace": { group: "positions", label: "Trace", help: 'From one of the spans through another, by one column for each hop: `{"from": "answer", "through": "reasoning", "mode": "span"}`.' },
  "/completeness_tolerance": { group: "method", label: "How far scores may be off" },
  "/segments": { group: "positions", label: "Segments of the input", help: 'A unit (`sentences`, `paragraphs`, `lines`, `words`, `messages`), or a list such as `[{"name": "one", "text": "…"}, {"text": "…", "pinned": true}]`.' },
  "/attr_pos_start": { group: "positions", label: "First position" },
  "/attr_pos_end": { group: "positions", label: "Position to stop before" },
  "/attribute_target": { group: "positions", label: "Attribute the target prefix too" },
  "/include_eos_baseline": { group: "positions", label: "Replace the end-of-text token too" },
  "/skip_special_tokens": { group: "positions", label: "Without special tokens" },
  "/clean_special_chars": { group: "positions", label: "Strip the tokenizer’s marks" },
  "/output_step_attributions": { group: "positions", label: "Return each step too" },
  "/dtype": { group: "precision", label: "Precision" },
  "/force_cpu": { group: "precision", label: "Run on the CPU" },
  "/corrections": { group: "precision", label: "Correct Inseq where it is wrong" },
  "/engine": { group: "precision", label: "Engine" },
  "/seed": { group: "bookkeeping", label: "Seed" },
  "/timeout_seconds": { group: "bookkeeping", label: "Longest run time, in seconds" },
  "/reuse": { group: "bookkeeping", label: "Reuse a stored result" },
  "/priority": { group: "bookkeeping", label: "Priority" },
  "/name": { group: "bookkeeping", label: "Name" },
  "/notes": { group: "bookkeeping", label: "Notes" },
  "/tags": { group: "bookkeeping", label: "Tags", help: 'To find the job again, such as `{"study": "one"}`.' },
  "/webhook": { group: "bookkeeping", label: "URL to call when the job ends" },
  "/webhook_events": { group: "bookkeeping", label: "Ends that are called", help: 'Such as `["failed"]`; all by default.' },
};

/** The spec with its group, and with its words where they are known. */
export const placed = (spec) => ({ ...spec, group: "other", ...FIELDS[spec.pointer] });
