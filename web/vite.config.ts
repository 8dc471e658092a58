import react from "@vitejs/plugin-react";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

// Served below /api/, so that their files are one level up; every address is relative, wherever allim is mounted.
const BELOW = /\/(docs|catalogue)\.html$/;

const oneLevelUp: Plugin = {
  name: "one-level-up",
  enforce: "post",
  transformIndexHtml: {
    order: "post",
    handler: (html, { filename }) => (BELOW.test(filename) ? html.replaceAll('"./', '"../') : html),
  },
};

const backend = "http://127.0.0.1:8000";

export default defineConfig({
  base: "./",
  plugins: [react(), oneLevelUp],
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
