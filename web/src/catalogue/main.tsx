import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { CataloguePage } from "./CataloguePage";
import "../styles/base.css";
import "../styles/catalogue.css";

const root = document.getElementById("root");
if (!root) throw new Error("catalogue.html has no #root");

createRoot(root).render(
  <StrictMode>
    <CataloguePage />
  </StrictMode>,
);
