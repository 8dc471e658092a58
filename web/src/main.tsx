import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import { takeSignInNotice } from "./signInNotice";
import "./styles/base.css";
import "./styles/welcome.css";
import "./styles/line.css";
import "./styles/snapshots.css";
import "./styles/event-log.css";
import "./styles/account.css";

const root = document.getElementById("root");
if (!root) throw new Error("index.html has no #root");

const notice = takeSignInNotice();

createRoot(root).render(
  <StrictMode>
    <App notice={notice} />
  </StrictMode>,
);
