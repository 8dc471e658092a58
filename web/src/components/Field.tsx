import { useId } from "react";
import type { InputHTMLAttributes } from "react";

interface FieldProps extends InputHTMLAttributes<HTMLInputElement> {
  name: string;
  label: string;
  error: string | undefined;
}

/** A labelled input with the server's message beside it. */
export function Field({ label, error, ...input }: FieldProps) {
  const id = useId();
  const errorId = `${id}-error`;
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      <input {...input} id={id} required aria-invalid={error !== undefined} aria-describedby={error ? errorId : undefined} />
      {error && (
        <p id={errorId} className="field-error" data-testid={`error-${input.name}`}>
          {error}
        </p>
      )}
    </div>
  );
}
