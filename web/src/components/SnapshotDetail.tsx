import { useEffect, useState } from "react";
import { api, wordsFor } from "../api";
import type { SnapshotWithContent } from "../api";
import { useFailure } from "../useFailure";
import { timeWords } from "../words";

export function SnapshotDetail({ id }: { id: string }) {
  const [snapshot, setSnapshot] = useState<SnapshotWithContent | null>(null);
  const [error, fail] = useFailure();

  // Runs again when the error is over.
  useEffect(() => {
    if (error !== null) return;
    const leave = new AbortController();
    api.snapshot(id, leave.signal).then(setSnapshot, (failure: unknown) => {
      if (!leave.signal.aborted) fail(failure);
    });
    return () => leave.abort();
  }, [id, error, fail]);

  if (error !== null) {
    return (
      <p className="note bad" role="alert">
        {wordsFor(error)}
      </p>
    );
  }
  if (!snapshot) return <p className="muted detail">Loading…</p>;
  return (
    <div className="detail" data-testid="snapshot-detail">
      <dl className="facts">
        <div className="wide">
          <dt>ID</dt>
          <dd>
            <code>{snapshot.id}</code>
          </dd>
        </div>
        <div className="wide">
          <dt>SHA-256</dt>
          <dd>
            <code data-testid="snapshot-sha256">{snapshot.sha256 ?? "–"}</code>
          </dd>
        </div>
        <div>
          <dt>Requested</dt>
          <dd>{timeWords(snapshot.requestedAt)}</dd>
        </div>
      </dl>
      {snapshot.content == null ? (
        <p className="muted">The content follows once the snapshot is generated.</p>
      ) : (
        <pre data-testid="snapshot-content" tabIndex={0} role="region" aria-label="Content">
          {JSON.stringify(snapshot.content, null, 2)}
        </pre>
      )}
    </div>
  );
}
