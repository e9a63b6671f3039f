// Starts Swagger UI, the interactive documentation of the API.
window.SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
