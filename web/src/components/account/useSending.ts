import { useState } from "react";
import type { FormEvent } from "react";
import { ApiError } from "../../api";

/** A form's submission: once at a time, with what the server found wrong. */
export function useSending(send: () => Promise<void>) {
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    if (isBusy) return;
    setBusy(true);
    setError(null);
    await send().catch(setError);
    setBusy(false);
  };
  const of = (field: string) => (error instanceof ApiError ? error.of(field) : undefined);
  return { isBusy, error, of, submit: (event: FormEvent) => void submit(event) };
}
