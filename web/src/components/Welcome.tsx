import { useState } from "react";
import { api } from "../api";
import type { Account } from "../api";
import { AccountForm } from "./AccountForm";
import type { FieldName, Typed } from "./AccountForm";
import { Brand } from "./Brand";
import { ProviderLinks, useSignInWays } from "./ProviderLinks";

interface WelcomeProps {
  notice: string | null;
  onSignedIn: (account: Account) => void;
}

const EMAIL = { name: "email", label: "Email", type: "email", autoComplete: "username" } as const;
const NAME = { name: "name", label: "Name", type: "text", autoComplete: "name" } as const;
const NEW_PASSWORD = { name: "password", label: "Password", type: "password", autoComplete: "new-password" } as const;
const PASSWORD = { ...NEW_PASSWORD, autoComplete: "current-password" } as const;

export function Welcome({ notice, onSignedIn }: WelcomeProps) {
  const { providers, registration } = useSignInWays();
  const [wantsNew, setNew] = useState(notice === null);
  const isOpen = registration !== "closed";
  const isNew = wantsNew && isOpen;
  // Kept here, so that switching between the forms loses nothing.
  const [typed, setTyped] = useState<Typed>({ email: "", name: "", password: "" });
  const form = {
    typed,
    onType: (name: FieldName, value: string) => setTyped((before) => ({ ...before, [name]: value })),
    onSignedIn,
  };
  const { email, name, password } = typed;
  return (
    <main className="welcome">
      <section className="welcome-words">
        <Brand />
        <h1>Know it when it happens.</h1>
        <p>
          Whichever replica does the work, the event reaches this page through the one that holds its stream. If the
          connection breaks, missed events are replayed from the history.
        </p>
        <div className="wire wire-still" data-state="open" aria-hidden="true">
          <span className="wire-end">this page</span>
          <span className="wire-line" />
          <span className="wire-end">any replica</span>
        </div>
      </section>
      <section className="card welcome-card" aria-labelledby="welcome-title">
        <h2 id="welcome-title" tabIndex={-1} data-first-focus>
          {isNew ? "Create an account" : "Sign in"}
        </h2>
        {notice && (
          <p className="note" role="status" data-testid="notice">
            {notice}
          </p>
        )}
        {isNew ? (
          <AccountForm
            key="signup"
            id="signup-form"
            fields={[EMAIL, NAME, NEW_PASSWORD]}
            action="Create account"
            busyAction="Creating…"
            send={() => api.signUp({ email, name, password })}
            {...form}
          />
        ) : (
          <AccountForm
            key="signin"
            id="signin-form"
            fields={[EMAIL, PASSWORD]}
            action="Sign in"
            busyAction="Signing in…"
            send={() => api.signIn({ email, password })}
            {...form}
          />
        )}
        <ProviderLinks providers={providers} />
        {isOpen && (
          <p className="welcome-switch">
            {isNew ? "You have an account?" : "No account yet?"}{" "}
            <button type="button" className="link" data-testid={isNew ? "show-signin" : "show-signup"} onClick={() => setNew(!isNew)}>
              {isNew ? "Sign in" : "Create one"}
            </button>
          </p>
        )}
      </section>
    </main>
  );
}
