import { useId, useRef, useState } from "react";
import type { RefObject } from "react";
import { TIMEOUT_S, wordsFor } from "../api";
import { useFailure } from "../useFailure";
import { useHeir } from "../useHeir";
import { useLate } from "../useLate";
import { useSnapshots } from "../useSnapshots";
import { SnapshotRow } from "./SnapshotRow";

const NOTICED_MS = 300;

export function SnapshotPanel() {
  const [news, setNews] = useState("");
  const snapshots = useSnapshots(setNews);
  const { items, loading, error } = snapshots;
  const title = useRef<HTMLHeadingElement>(null);
  return (
    <section className="card snapshots" aria-labelledby="snapshots-title">
      <div className="card-head">
        <h2 ref={title} id="snapshots-title" tabIndex={-1}>
          Snapshots
        </h2>
        <RequestButton request={snapshots.request} />
      </div>
      <p className="visually-hidden" role="status" data-testid="news">
        {news}
      </p>
      {error !== null && (
        <p className="note bad" role="alert" data-testid="list-error">
          {wordsFor(error)}{" "}
          <LoadButton className="link" label="Load again" isLoading={loading !== null} load={snapshots.reload} heir={title} />
        </p>
      )}
      <ul className="snapshot-list" data-testid="snapshot-list" aria-busy={loading !== null}>
        {items.map((snapshot) => (
          <SnapshotRow
            key={snapshot.id}
            snapshot={snapshot}
            progress={snapshots.progress[snapshot.id]}
            heardThrough={snapshots.heardThrough[snapshot.id]}
          />
        ))}
      </ul>
      {items.length === 0 && error === null && (
        <p className="muted empty">{loading === "list" ? "Loading…" : "No snapshots yet. Request the first one."}</p>
      )}
      {snapshots.nextCursor !== null && (
        <LoadButton
          className="button more"
          label="Load more"
          isLoading={loading !== null}
          load={snapshots.more}
          heir={title}
          testId="load-more"
        />
      )}
    </section>
  );
}

interface LoadButtonProps {
  className: string;
  label: string;
  isLoading: boolean;
  load: () => Promise<void>;
  heir: RefObject<HTMLElement | null>;
  testId?: string;
}

function LoadButton({ className, label, isLoading, load, heir, testId }: LoadButtonProps) {
  const button = useHeir<HTMLButtonElement>(heir);
  return (
    <button
      ref={button}
      type="button"
      className={className}
      data-testid={testId}
      aria-disabled={isLoading}
      onClick={() => !isLoading && void load()}
    >
      {isLoading ? "Loading…" : label}
    </button>
  );
}

function RequestButton({ request }: { request: () => Promise<void> }) {
  const waitId = useId();
  const [isBusy, setBusy] = useState(false);
  const [error, fail] = useFailure();
  const isWaiting = useLate(isBusy, NOTICED_MS);

  const click = async () => {
    // aria-disabled keeps the focus where it is, so the click is refused here.
    if (isBusy) return;
    setBusy(true);
    fail(null);
    await request().catch(fail);
    setBusy(false);
  };

  return (
    <>
      <button
        type="button"
        id="request-snapshot"
        className="button primary request"
        data-testid="request-snapshot"
        aria-disabled={isBusy}
        aria-describedby={waitId}
        onClick={() => void click()}
      >
        {isWaiting ? "Requesting…" : "Request a snapshot"}
      </button>
      <p id={waitId} className="wide muted request-wait" role="status" data-testid="request-wait">
        {isWaiting && `Waiting for the answer, for at most ${TIMEOUT_S} s.`}
      </p>
      {error !== null && (
        <p className="note bad wide" role="alert" data-testid="request-error">
          {wordsFor(error)}
        </p>
      )}
    </>
  );
}
