import { useState } from "react";
import { wordsFor } from "../api";
import { useSnapshots } from "../useSnapshots";
import { SnapshotRow } from "./SnapshotRow";

export function SnapshotPanel() {
  const [news, setNews] = useState("");
  const snapshots = useSnapshots(setNews);
  const { items, loading, error } = snapshots;
  return (
    <section className="card snapshots" aria-labelledby="snapshots-title">
      <div className="card-head">
        <h2 id="snapshots-title">Snapshots</h2>
        <RequestButton request={snapshots.request} />
      </div>
      <p className="visually-hidden" role="status" data-testid="news">
        {news}
      </p>
      {error && (
        <p className="note bad" role="alert">
          {error}{" "}
          <button type="button" className="link" onClick={() => void snapshots.reload()}>
            Load again
          </button>
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
      {items.length === 0 && !error && (
        <p className="muted empty">{loading === "list" ? "Loading…" : "No snapshots yet. Request the first one."}</p>
      )}
      {snapshots.nextCursor !== null && (
        <button
          type="button"
          className="button more"
          data-testid="load-more"
          aria-disabled={loading !== null}
          onClick={() => loading === null && void snapshots.more()}
        >
          {loading === "more" ? "Loading…" : "Load more"}
        </button>
      )}
    </section>
  );
}

function RequestButton({ request }: { request: () => Promise<void> }) {
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);

  const click = async () => {
    // aria-disabled keeps the focus where it is, so the click is refused here.
    if (isBusy) return;
    setBusy(true);
    setError(null);
    await request().catch((failure: unknown) => setError(wordsFor(failure)));
    setBusy(false);
  };

  return (
    <>
      <button
        type="button"
        id="request-snapshot"
        className="button primary"
        data-testid="request-snapshot"
        aria-disabled={isBusy}
        onClick={() => void click()}
      >
        Request a snapshot
      </button>
      {error && (
        <p className="note bad wide" role="alert" data-testid="request-error">
          {error}
        </p>
      )}
    </>
  );
}
