// Example jobs on the bundled models. Their correct answers are known, so a user can judge the attributions.

const EXAMPLES = [
  {
    name: "What does Anna like?",
    says: "The answer stands in the prompt.",
    request: {
      model: "lookup-gpt2",
      method: "input_x_gradient",
      input_text: "Anna likes tea. Ben likes milk. Anna likes",
      step_scores: ["probability"],
    },
  },
  {
    name: "English to Italian",
    says: "Each word has its translation.",
    request: {
      model: "phrasebook-t5",
      method: "saliency",
      input_text: "the red cat sees a dog",
      step_scores: ["probability", "entropy"],
    },
  },
  {
    name: "Why tea and not milk?",
    says: "A contrast of two answers.",
    request: {
      model: "lookup-gpt2",
      method: "input_x_gradient",
      input_text: "Anna likes tea. Ben likes milk. Anna likes",
      generated_text: "Anna likes tea. Ben likes milk. Anna likes tea",
      attributed_fn: "contrast_prob_diff",
      attributed_fn_args: { contrast_targets: "Anna likes tea. Ben likes milk. Anna likes milk" },
      step_scores: ["probability"],
    },
  },
  {
    name: "What did Ben buy?",
    says: "Two lookups, one after the other.",
    request: {
      model: "twostep-gpt2",
      method: "input_x_gradient",
      input_text: "Anna went to Rome. Ben went to Oslo. Rome sells tea. Oslo sells milk. Ben went to",
      step_scores: ["probability"],
    },
  },
];

const COMPARISON = {
  name: "Three methods side by side",
  says: "Do they agree?",
  request: {
    model: "phrasebook-t5",
    methods: ["saliency", "integrated_gradients", "occlusion"],
    input_text: "the red cat sees a dog",
    step_scores: ["probability"],
  },
};

/** The examples of the bundled models, or the first one's text without a model where none is bundled. */
export function examplesFor({ models, request }) {
  const known = (request.methods ? [...EXAMPLES, COMPARISON] : EXAMPLES).filter((each) => models.bundled.includes(each.request.model));
  const chat = chatExample(models);
  return chat ? [...known, chat] : known;
}

export const firstRequest = (catalogue) => (examplesFor(catalogue)[0] ?? EXAMPLES[0]).request;

/** A question about a passage, to the smallest chat model: only the passage has the answer. */
function chatExample(models) {
  const [model] = models.available
    .filter((each) => each.chat_template && !each.problem)
    .sort((a, b) => (a.parameters ?? Infinity) - (b.parameters ?? Infinity));
  return model && {
    name: "A question about a passage",
    says: "Which part did the answer come from?",
    request: {
      model: model.name,
      method: "input_x_gradient",
      messages: [
        { role: "system", content: "Answer with a short sentence from the passage." },
        { role: "user", content: PASSAGE },
      ],
      generation_args: { max_new_tokens: 24, do_sample: false },
      step_scores: ["probability"],
    },
  };
}

const PASSAGE = `The lighthouse of Torvik was built in 1912 by the engineer Ines Holm. It stands on a cliff above the harbour. The light was switched off in 1987.

Who built the lighthouse of Torvik?`;
