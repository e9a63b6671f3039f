// Example jobs on the bundled models. Their correct answers are known, so a user can judge the attributions.

export const EXAMPLES = [
  {
    name: "What does Anna like?",
    request: {
      model: "lookup-gpt2",
      method: "input_x_gradient",
      input_text: "Anna likes tea. Ben likes milk. Anna likes",
      step_scores: ["probability"],
    },
  },
  {
    name: "English to Italian",
    request: {
      model: "phrasebook-t5",
      method: "saliency",
      input_text: "the red cat sees a dog",
      step_scores: ["probability", "entropy"],
    },
  },
  {
    name: "Why tea and not milk?",
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
];

export const COMPARISON = {
  name: "Three methods side by side",
  request: {
    model: "phrasebook-t5",
    methods: ["saliency", "integrated_gradients", "occlusion"],
    input_text: "the red cat sees a dog",
    step_scores: ["probability"],
  },
};
