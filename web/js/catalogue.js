// The methods, functions, models and request fields that the server offers. Read from the server, so that the page
// repeats none of them.
import { getJson } from "./api.js";

const byName = (entries) => Object.fromEntries(entries.map((entry) => [entry.name, entry]));

export async function loadCatalogue() {
  const paths = ["methods", "step_functions", "aggregators", "models"].map((name) => `/attribution/${name}`);
  const [methods, functions, aggregators, models, openapi] = await Promise.all(
    [...paths, "/openapi.json"].map((path) => getJson(path)),
  );
  return {
    methods: byName(methods.methods),
    stepFunctions: byName(functions.step_functions),
    ...viewsOf(aggregators, openapi),
    models,
    loadedAt: performance.now(),
    request: openapi.components.schemas.AttributionRequest.properties,
    schemas: openapi.components.schemas,
    canEstimate: "/attribution/estimate" in openapi.paths,
  };
}

/** What a result can be shown as: the part of the catalogue that views of a result need. */
export function viewsOf(aggregators, openapi) {
  const { parameters } = openapi.paths["/attribution/jobs/{job_id}/results"].get;
  const format = parameters.find(({ name }) => name === "format").schema;
  return {
    aggregators: byName(aggregators.aggregators),
    aggregationFunctions: aggregators.aggregation_functions,
    formats: [format, ...(format.anyOf ?? [])].find((each) => each.enum)?.enum ?? ["json"],
  };
}
