// Which aggregators make one score a word of a result: its methods differ in what they leave to be summed up.
import { getJson, Problem, withQuery } from "./api.js";
import { tableOf } from "./scores.js";

// Scores of embedding dimensions, of tokens, of layers and heads.
const CANDIDATES = ["subwords,scores", "subwords", "subwords,mean,mean"];

/** The aggregators, in order. Throws a `Problem` where words cannot be told, or where there is no one way. */
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
  throw last ?? new Problem({ detail: "No aggregation leaves one score a word." }, 0);
}
