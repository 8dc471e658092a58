import { useEffect, useState } from "react";
import { api, ApiError, wordsFor } from "../api";
import type { Account } from "../api";
import { useLine } from "../events";
import { endWords } from "../words";
import { AccountButton } from "./account/AccountButton";
import { Brand } from "./Brand";
import { EventLog } from "./EventLog";
import { LinePanel } from "./LinePanel";
import { SnapshotPanel } from "./SnapshotPanel";

interface HomeProps {
  account: Account;
  onSignedOut: (notice: string | null) => void;
}

export function Home({ account, onSignedOut }: HomeProps) {
  const [error, setError] = useState<string | null>(null);
  const state = useLine((line) => line.state);
  const closeReason = useLine((line) => line.closeReason);

  // Signed out elsewhere, or the session has run out: the line is told first.
  useEffect(() => {
    const isOver = closeReason === "signed_out" || closeReason === "token_expired";
    if (state === "signed-out") onSignedOut("Your session has ended. Please sign in again.");
    else if (state === "ended" && isOver) onSignedOut(endWords(closeReason));
  }, [state, closeReason, onSignedOut]);

  const signOut = async () => {
    try {
      await api.signOut();
    } catch (failure) {
      const isOut = failure instanceof ApiError && failure.status === 401;
      if (!isOut) return setError(wordsFor(failure));
    }
    onSignedOut(endWords("signed_out"));
  };

  return (
    <div className="home">
      <header className="header">
        <Brand />
        <div className="account" data-testid="account">
          <span className="account-name">{account.name}</span>
          {account.email !== null && <span className="account-email muted">{account.email}</span>}
        </div>
        <AccountButton account={account} onDeleted={() => onSignedOut("Your account is deleted.")} />
        <button type="button" className="button" data-testid="sign-out" onClick={() => void signOut()}>
          Sign out
        </button>
      </header>
      {error && (
        <p className="note bad" role="alert">
          {error}
        </p>
      )}
      <main className="columns">
        <div className="column">
          <LinePanel />
          <SnapshotPanel />
        </div>
        <EventLog />
      </main>
    </div>
  );
}
