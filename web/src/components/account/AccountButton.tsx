import { useEffect, useRef, useState } from "react";
import type { Account } from "../../api";
import { DeletionForm } from "./DeletionForm";
import { PasswordForm } from "./PasswordForm";
import { SessionList } from "./SessionList";

interface AccountProps {
  account: Account;
  onDeleted: () => void;
}

/** Opens the dialog in which an account is looked after. */
export function AccountButton(props: AccountProps) {
  const [isOpen, setOpen] = useState(false);
  return (
    <>
      <button type="button" className="button small" data-testid="open-account" onClick={() => setOpen(true)}>
        Account
      </button>
      {isOpen && <AccountDialog {...props} onClose={() => setOpen(false)} />}
    </>
  );
}

function AccountDialog({ account, onDeleted, onClose }: AccountProps & { onClose: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  // A changed password has ended sessions.
  const [changes, setChanges] = useState(0);

  useEffect(() => dialog.current?.showModal(), []);

  return (
    <dialog ref={dialog} className="account-dialog" aria-labelledby="account-title" data-testid="account-dialog" onClose={onClose}>
      <div className="card-head">
        <h2 id="account-title">Account</h2>
        <button type="button" className="button small" data-testid="close-account" onClick={() => dialog.current?.close()}>
          Close
        </button>
      </div>
      <section aria-labelledby="sessions-title">
        <h3 id="sessions-title">Sessions</h3>
        <SessionList key={changes} />
      </section>
      <section aria-labelledby="password-title">
        <h3 id="password-title">Password</h3>
        {account.hasPassword ? (
          <PasswordForm onChanged={() => setChanges((before) => before + 1)} />
        ) : (
          <p className="muted" data-testid="no-password">
            You sign in over a provider. This account has no password here.
          </p>
        )}
      </section>
      <section aria-labelledby="deletion-title">
        <h3 id="deletion-title">Delete this account</h3>
        <DeletionForm account={account} onDeleted={onDeleted} />
      </section>
    </dialog>
  );
}
