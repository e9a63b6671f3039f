// Starts Swagger UI, the interactive documentation of the API, with the key of the page if there is one.
import { apiKey, onKeyChange } from "./api_key.js";

const SCHEME = "ApiKey"; // its name in the OpenAPI document

let isAuthorized = false; // with the page's key, not with one that was entered here
const ui = window.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  onComplete: async () => {
    if (!apiKey.get()) await apiKey.takeOver();
    authorize();
    onKeyChange(authorize);
  },
});

function authorize() {
  const key = apiKey.get();
  if (key) ui.preauthorizeApiKey(SCHEME, key);
  else if (isAuthorized) ui.authActions.logout([SCHEME]);
  isAuthorized = Boolean(key);
}
