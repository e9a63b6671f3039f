// Finds the aggregators that give one score per word. They depend on the dimensions of a method's scores.
import { getJson, Problem, withQuery } from "./api.js";
import { tableOf } from "./score_table.js";

// For scores per embedding dimension, per token, and per layer and head.
const CANDIDATES = ["subwords,scores", "subwords", "subwords,mean,mean"];

/**
 * The aggregators in order, as the `aggregator` parameter of the results. Throws a `Problem` if the words of this
 * result are unknown, or if no aggregation fits all its methods.
 */
export async function aggregatorsOfWords(resultsPath) {
  let last;
  for (const aggregator of CANDIDATES) {
    try {
      const result = await getJson(withQuery(resultsPath, { aggregator, format: "json" }));
      const sequences = (result.comparison ?? [result]).map(({ sequence_attributions: [first] }) => first);
      if (sequences.every((sequence) => tableOf(sequence).depth <= 1)) return aggregator;
    } catch (problem) {
      last = problem;
    }
  }
  throw last ?? new Problem({ detail: "No aggregation gives one score per word." }, 0);
}
