import { useId, useRef, useState } from "react";
import type { FormEvent } from "react";

interface TypeFormProps {
  known: readonly string[];
  isType: (text: string) => boolean;
  onAdd: (type: string) => void;
}

/** Lets the log hear one more event type. */
export function TypeForm({ known, isType, onAdd }: TypeFormProps) {
  const id = useId();
  const errorId = `${id}-error`;
  const input = useRef<HTMLInputElement>(null);
  const [type, setType] = useState("");
  const [error, setError] = useState<string | null>(null);

  const refusal = () => {
    if (type === "") return "Type the name of an event type.";
    if (!isType(type)) return "A type begins with a small letter; small letters, digits, “.”, “_” and “-” follow.";
    return known.includes(type) ? "This type is listened to already." : null;
  };

  const submit = (event: FormEvent) => {
    event.preventDefault();
    const why = refusal();
    setError(why);
    if (why !== null) return input.current?.focus();
    onAdd(type);
    setType("");
  };

  return (
    <form className="type-form" data-testid="type-form" onSubmit={submit}>
      <label htmlFor={id} className="muted">
        Also listen to
      </label>
      <input
        ref={input}
        id={id}
        name="type"
        value={type}
        placeholder="greetings.hello"
        autoComplete="off"
        autoCapitalize="off"
        spellCheck={false}
        aria-invalid={error !== null}
        aria-describedby={error === null ? undefined : errorId}
        onChange={(event) => {
          setType(event.target.value.trim());
          setError(null);
        }}
      />
      <button type="submit" className="button small">
        Add
      </button>
      {error && (
        <p id={errorId} className="field-error" role="alert" data-testid="error-type">
          {error}
        </p>
      )}
    </form>
  );
}
