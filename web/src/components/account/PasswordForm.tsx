import { useState } from "react";
import { api, wordsFor } from "../../api";
import { Field } from "../Field";
import { useSending } from "./useSending";

const EMPTY = { currentPassword: "", newPassword: "" };

export function PasswordForm({ onChanged }: { onChanged: () => void }) {
  const [typed, setTyped] = useState(EMPTY);
  const [isChanged, setChanged] = useState(false);
  const { isBusy, error, of, submit } = useSending(async () => {
    setChanged(false);
    await api.changePassword(typed);
    setTyped(EMPTY);
    setChanged(true);
    onChanged();
  });
  const field = (name: keyof typeof EMPTY) => ({
    name,
    type: "password",
    value: typed[name],
    error: of(name),
    onChange: (event: { target: HTMLInputElement }) => setTyped({ ...typed, [name]: event.target.value }),
  });
  const isShownBeside = of("currentPassword") ?? of("newPassword");

  return (
    <form className="account-form" data-testid="password-form" onSubmit={submit}>
      <Field label="Current password" autoComplete="current-password" {...field("currentPassword")} />
      <Field label="New password" autoComplete="new-password" {...field("newPassword")} />
      <p className="muted">All other sessions end.</p>
      <div role="alert">{error !== null && !isShownBeside && <p className="note bad">{wordsFor(error)}</p>}</div>
      <div role="status" data-testid="password-changed">
        {isChanged && <p className="note">Your password is changed, and all other sessions have ended.</p>}
      </div>
      <button type="submit" className="button" aria-disabled={isBusy}>
        Change password
      </button>
    </form>
  );
}
