import SwaggerUI from "swagger-ui-dist/swagger-ui-es-bundle.js";
import "./styles/docs.css";

const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dress();
dark.addEventListener("change", dress);

// An answer is shown when it has ended, and a stream does not end.
const streamsAreOnlyRead = {
  statePlugins: {
    spec: { wrapSelectors: { allowTryItOutFor: () => (_: unknown, path: string) => path !== "/events" } },
  },
};

SwaggerUI({
  url: "openapi.json", // beside this page, wherever the application is mounted
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  plugins: [streamsAreOnlyRead],
  validatorUrl: null, // it would send the document elsewhere
});
