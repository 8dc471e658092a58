import { useEffect, useState } from "react";
import { api, ApiError, wordsFor } from "../api";
import type { Account } from "../api";
import { useLine } from "../events";
import { useFailure } from "../useFailure";
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
  const [error, fail] = useFailure();
  const [isLeaving, setLeaving] = useState(false);
  const state = useLine((line) => line.state);
  const closeReason = useLine((line) => line.closeReason);

  // Signed out elsewhere, or the session has run out: the line is told first.
  useEffect(() => {
    const isOver = closeReason === "signed_out" || closeReason === "token_expired";
    if (state === "signed-out") onSignedOut("Your session has ended. Please sign in again.");
    else if (state === "ended" && isOver) onSignedOut(endWords(closeReason));
  }, [state, closeReason, onSignedOut]);

  const signOut = async () => {
    if (isLeaving) return;
    setLeaving(true);
    fail(null);
    try {
      await api.signOut();
    } catch (failure) {
      const isOut = failure instanceof ApiError && failure.status === 401;
      setLeaving(false);
      if (!isOut) return fail(failure);
    }
    onSignedOut(endWords("signed_out"));
  };

  return (
    <div className="home">
      <header className="header">
        <h1 className="header-brand" tabIndex={-1} data-first-focus>
          <Brand />
        </h1>
        <div className="account" data-testid="account">
          <span className="account-name">{account.name}</span>
          {account.email !== null && <span className="account-email muted">{account.email}</span>}
        </div>
        <AccountButton account={account} onDeleted={() => onSignedOut("Your account is deleted.")} />
        <button
          type="button"
          className="button small"
          data-testid="sign-out"
          aria-disabled={isLeaving}
          onClick={() => void signOut()}
        >
          {isLeaving ? "Signing out…" : "Sign out"}
        </button>
      </header>
      {error !== null && (
        <p className="note bad" role="alert" data-testid="sign-out-error">
          {wordsFor(error)} You may still be signed in.
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
