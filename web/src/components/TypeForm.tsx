import { useId, useState } from "react";
import type { FormEvent } from "react";

interface TypeFormProps {
  isValid: (type: string) => boolean;
  onAdd: (type: string) => void;
}

/** Lets the log hear one more event type. */
export function TypeForm({ isValid, onAdd }: TypeFormProps) {
  const id = useId();
  const [type, setType] = useState("");

  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (!isValid(type)) return;
    onAdd(type);
    setType("");
  };

  return (
    <form className="type-form" data-testid="type-form" onSubmit={submit}>
      <label htmlFor={id} className="muted">
        Also listen to
      </label>
      <input
        id={id}
        name="type"
        value={type}
        placeholder="greetings.hello"
        autoComplete="off"
        autoCapitalize="off"
        spellCheck={false}
        onChange={(event) => setType(event.target.value.trim())}
      />
      <button type="submit" className="button small" aria-disabled={!isValid(type)}>
        Add
      </button>
    </form>
  );
}
