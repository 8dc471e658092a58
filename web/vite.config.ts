import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

const backend = "http://127.0.0.1:8000";

export default defineConfig({
  plugins: [react()],
  build: {
    // The page is served under a policy without `data:`, so nothing is inlined.
    assetsInlineLimit: 0,
    // The polyfill only serves browsers older than the ones the build targets.
    modulePreload: { polyfill: false },
    rolldownOptions: { input: ["index.html", "docs.html", "catalogue.html"] },
    // The docs page is one large library; the page itself is far below this.
    chunkSizeWarningLimit: 2000,
  },
  server: { proxy: { "/api": backend, "/events": backend } },
  // A busy machine takes its time; no test waits for time to pass.
  test: { environment: "happy-dom", testTimeout: 30_000, restoreMocks: true, unstubGlobals: true },
});
