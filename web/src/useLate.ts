import { useEffect, useState } from "react";

/** Return true once `value` has been true for `after_ms`, so that a short wait shows no text. */
export function useLate(value: boolean, after_ms: number): boolean {
  const [isLate, setLate] = useState(false);
  useEffect(() => {
    if (!value) return;
    const timer = setTimeout(() => setLate(true), after_ms);
    return () => {
      clearTimeout(timer);
      setLate(false);
    };
  }, [value, after_ms]);
  return value && isLate;
}
