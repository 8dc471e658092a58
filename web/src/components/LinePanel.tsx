import { useRef } from "react";
import type { RefObject } from "react";
import { pageLine, useLine } from "../events";
import type { LineView } from "../events";
import { useHeir } from "../useHeir";
import { useNow } from "../useNow";
import { ageWords, lineWords, resetWords } from "../words";

/** The state of the line: how this page and a replica are connected right now. */
export function LinePanel() {
  const line = useLine();
  const { title, detail } = lineWords(line);
  const titleRef = useRef<HTMLHeadingElement>(null);
  return (
    <section className="card line" aria-label="Stream">
      <Wire line={line} />
      <div className="line-head">
        <div role="status" data-testid="line-state" data-state={line.state} data-resume={line.resume ?? ""} data-replayed={line.replayed}>
          <h2 ref={titleRef} className="line-title" tabIndex={-1}>
            {title}
          </h2>
          <p className="muted">{detail}</p>
          <Resets line={line} />
        </div>
        <ReopenButton line={line} heir={titleRef} />
      </div>
      <Facts line={line} />
    </section>
  );
}

function Wire({ line: { state, replica, lastFrameAt } }: { line: LineView }) {
  return (
    <div className="wire" data-state={state} aria-hidden="true">
      <span className="wire-end">this page</span>
      <span className="wire-line">
        {/* A new key starts the pulse anew: one for every frame. */}
        {state === "open" && lastFrameAt && <span key={lastFrameAt} className="wire-pulse" />}
      </span>
      <span className="wire-end">{state === "open" ? replica : "…"}</span>
    </div>
  );
}

function Resets({ line: { state, resume, resets, gap } }: { line: LineView }) {
  if (state !== "open") return null;
  const shown = resume === "reset" ? resets : [];
  if (shown.length === 0 && !gap) return null;
  return (
    <ul className="resets" data-testid="resets">
      {shown.map(({ topic, reason }) => (
        <li key={topic} data-topic={topic} data-reason={reason}>
          <code>{topic}</code> was reset: {resetWords(reason)}.
        </li>
      ))}
      {gap && (
        <li data-testid="gap" data-reason={gap.reason}>
          A gap on <code>{gap.topics.join(", ")}</code>: {resetWords(gap.reason)}. The list is loaded again.
        </li>
      )}
    </ul>
  );
}

interface ReopenButtonProps {
  line: LineView;
  heir: RefObject<HTMLElement | null>;
}

function ReopenButton({ line: { state, closeReason, nextTryAt }, heir }: ReopenButtonProps) {
  if (state === "ended") return <Reopen label={closeReason === "replaced" ? "Continue here" : "Try again"} heir={heir} />;
  if (nextTryAt === null) return null;
  return <Reopen label="Try now" heir={heir} />;
}

function Reopen({ label, heir }: { label: string; heir: RefObject<HTMLElement | null> }) {
  const button = useHeir<HTMLButtonElement>(heir);
  return (
    <button ref={button} type="button" className="button" data-testid="reopen" onClick={pageLine.reopen}>
      {label}
    </button>
  );
}

function Facts({ line }: { line: LineView }) {
  const isOpen = line.state === "open";
  return (
    <dl className="facts">
      <Fact label={isOpen ? "Replica" : "Last replica"}>
        <span data-testid="replica">{line.replica ?? "–"}</span>
      </Fact>
      <Fact label="Last heard">
        <Age since={line.lastFrameAt} />
      </Fact>
      <Fact label="Last event ID">
        <code data-testid="last-event-id">{line.lastEventId ?? "–"}</code>
      </Fact>
      <Fact label={isOpen ? "Stream" : "Last stream"}>
        <code data-testid="stream-id">{line.streamId ?? "–"}</code>
      </Fact>
    </dl>
  );
}

function Fact({ label, children }: { label: string; children: React.ReactNode }) {
  return (
    <div>
      <dt>{label}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function Age({ since }: { since: number | null }) {
  const now = useNow(1_000);
  return <span data-testid="last-heard">{since === null ? "–" : ageWords(now - since)}</span>;
}
