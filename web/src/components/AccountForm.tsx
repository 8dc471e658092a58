import { useEffect, useRef, useState } from "react";
import type { FormEvent } from "react";
import { ApiError, wordsFor } from "../api";
import type { Account } from "../api";
import { Field } from "./Field";

export type Typed = Record<FieldName, string>;
export type FieldName = "email" | "name" | "password";

interface FieldSpec {
  name: FieldName;
  label: string;
  type: "email" | "text" | "password";
  autoComplete: string;
}

interface AccountFormProps {
  id: string;
  fields: readonly FieldSpec[];
  action: string;
  busyAction: string;
  typed: Typed;
  onType: (name: FieldName, value: string) => void;
  send: () => Promise<{ account: Account }>;
  onSignedIn: (account: Account) => void;
}

export function AccountForm({ id, fields, action, busyAction, typed, onType, send, onSignedIn }: AccountFormProps) {
  const form = useRef<HTMLFormElement>(null);
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const refused = error instanceof ApiError ? error : null;

  // Where to go on typing.
  useEffect(() => {
    if (error) form.current?.querySelector<HTMLInputElement>("[aria-invalid=true]")?.focus();
  }, [error]);

  const submit = async (event: FormEvent) => {
    event.preventDefault();
    if (isBusy) return;
    setBusy(true);
    setError(null);
    try {
      const { account } = await send();
      onSignedIn(account);
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };

  return (
    <form ref={form} id={id} data-testid={id} onSubmit={(event) => void submit(event)}>
      {fields.map((field) => (
        <Field
          key={field.name}
          {...field}
          value={typed[field.name]}
          onChange={(event) => onType(field.name, event.target.value)}
          error={refused?.of(field.name)}
        />
      ))}
      <div role="alert">
        {error !== null && <FormError error={error} fields={fields.map(({ name }) => name)} />}
      </div>
      <button type="submit" className="button primary" aria-disabled={isBusy}>
        {isBusy ? busyAction : action}
      </button>
    </form>
  );
}

/** What no single field is to blame for. */
function FormError({ error, fields }: { error: unknown; fields: FieldName[] }) {
  const besides = error instanceof ApiError ? error.besides(fields) : [];
  const isShownBeside = error instanceof ApiError && fields.some((field) => error.of(field)) && besides.length === 0;
  if (isShownBeside) return null;
  return (
    <p className="note bad" data-testid="form-error">
      {besides.length > 0 ? besides.join(" ") : wordsFor(error)}
    </p>
  );
}
