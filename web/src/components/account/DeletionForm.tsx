import { useState } from "react";
import { api, ApiError, wordsFor } from "../../api";
import type { Account } from "../../api";
import { Field } from "../Field";
import { ProviderLinks, useSignInWays } from "../ProviderLinks";
import { useSending } from "./useSending";

interface DeletionProps {
  account: Account;
  onDeleted: () => void;
}

/** Asks twice: once by a button, and then for the password. */
export function DeletionForm(props: DeletionProps) {
  const [isAsked, setAsked] = useState(false);
  return (
    <>
      <p className="muted">
        Your snapshots, your sessions and the publish keys that you have made go with it. It cannot be undone.
      </p>
      {isAsked ? (
        <Confirmation {...props} onCancel={() => setAsked(false)} />
      ) : (
        <button type="button" className="button" data-testid="ask-deletion" onClick={() => setAsked(true)}>
          Delete account…
        </button>
      )}
    </>
  );
}

function Confirmation({ account, onDeleted, onCancel }: DeletionProps & { onCancel: () => void }) {
  const [password, setPassword] = useState("");
  const { isBusy, error, of, submit } = useSending(async () => {
    await api.deleteAccount(account.hasPassword ? password : null);
    onDeleted();
  });
  // Without a password the server wants a fresh sign-in, and says so.
  const mustSignIn = !account.hasPassword && error instanceof ApiError && error.status === 403;

  return (
    <form className="account-form" data-testid="deletion-form" onSubmit={submit}>
      {account.hasPassword && (
        <Field
          name="password"
          label="Password"
          type="password"
          autoComplete="current-password"
          value={password}
          error={of("password")}
          onChange={(event) => setPassword(event.target.value)}
        />
      )}
      <div role="alert">{error !== null && !of("password") && <p className="note bad">{wordsFor(error)}</p>}</div>
      {mustSignIn && <SignInLinks />}
      <div className="account-actions">
        <button type="submit" className="button danger" aria-disabled={isBusy}>
          Delete for good
        </button>
        <button type="button" className="button" onClick={onCancel}>
          Cancel
        </button>
      </div>
    </form>
  );
}

/** Only shown when it is needed, so that the server is not asked before. */
function SignInLinks() {
  return <ProviderLinks providers={useSignInWays().providers} />;
}
