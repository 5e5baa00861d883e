// A file of its own, so that the page's policy need not allow scripts in the page.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // It would ask another host whether the document is valid.
  validatorUrl: null,
});
