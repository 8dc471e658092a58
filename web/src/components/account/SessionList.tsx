import { useCallback, useEffect, useState } from "react";
import { api, wordsFor } from "../../api";
import type { Session } from "../../api";
import { timeWords } from "../../words";

/** Where the account is signed in. The page's own session ends with its button to sign out. */
export function SessionList() {
  const [sessions, setSessions] = useState<Session[] | null>(null);
  const [error, setError] = useState<string | null>(null);

  const load = useCallback(async (signal?: AbortSignal) => {
    try {
      const { items } = await api.sessions(signal);
      setSessions(items);
      setError(null);
    } catch (failure) {
      if (!signal?.aborted) setError(wordsFor(failure));
    }
  }, []);

  useEffect(() => {
    const leave = new AbortController();
    void load(leave.signal);
    return () => leave.abort();
  }, [load]);

  return (
    <>
      {error && (
        <p className="note bad" role="alert">
          {error}
        </p>
      )}
      {sessions === null && !error && <p className="muted">Loading…</p>}
      <ul className="session-list" data-testid="session-list">
        {sessions?.map((session) => (
          <SessionRow key={session.id} session={session} onEnded={load} onError={setError} />
        ))}
      </ul>
    </>
  );
}

interface SessionRowProps {
  session: Session;
  onEnded: () => Promise<void>;
  onError: (words: string) => void;
}

function SessionRow({ session, onEnded, onError }: SessionRowProps) {
  const [isBusy, setBusy] = useState(false);
  const name = session.agent ?? "Unknown device";

  const end = async () => {
    if (isBusy) return;
    setBusy(true);
    await api.endSession(session.id).then(onEnded, (failure: unknown) => onError(wordsFor(failure)));
    setBusy(false);
  };

  return (
    <li className="session" data-testid="session-row" data-session-id={session.id}>
      <div>
        <span className="session-name">{name}</span>
        {session.address !== null && <span className="muted"> from {session.address}</span>}
        <p className="muted session-times">
          Signed in {timeWords(session.createdAt)}, last seen {timeWords(session.seenAt)}
        </p>
      </div>
      {session.current ? (
        <span className="chip" data-testid="current-session">
          This one
        </span>
      ) : (
        <button
          type="button"
          className="button small"
          data-testid="end-session"
          aria-label={`End the session: ${name}`}
          aria-disabled={isBusy}
          onClick={() => void end()}
        >
          End
        </button>
      )}
    </li>
  );
}
