import { useEffect, useLayoutEffect, useRef, useState } from "react";
import { ApiError } from "./api";
import { useLine } from "./events";

/** Long enough to be read. */
export const SHOWN_MS = 5_000;

/**
 * Return the error of the last try while it is still true, and a function that sets it (null after success).
 *
 * "allim cannot be reached" is over when a frame comes, and "try again in 20 s" is over after 20 s. The error is then
 * removed and `onOver` is called. Any other error stays until the next try.
 */
export function useFailure(onOver?: () => void): [error: unknown, fail: (error: unknown) => void] {
  const [failure, setFailure] = useState<{ error: unknown; at: number } | null>(null);
  const heardAt = useLine((line) => line.lastFrameAt);
  const latest = useRef(onOver);
  useLayoutEffect(() => {
    latest.current = onOver;
  });
  const overAt = failure === null ? null : endOf(failure.error, failure.at, heardAt);

  useEffect(() => {
    if (overAt === null) return;
    const timer = setTimeout(() => {
      setFailure(null);
      latest.current?.();
    }, overAt - Date.now());
    return () => clearTimeout(timer);
  }, [overAt]);

  const fail = useRef((error: unknown) => setFailure(error === null ? null : { error, at: Date.now() }));
  return [failure?.error ?? null, fail.current];
}

/** Return when the error is no longer true, in wall-clock ms; null while that is unknown. */
function endOf(error: unknown, at: number, heardAt: number | null): number | null {
  if (!(error instanceof ApiError)) return null;
  const isHeardAgain = heardAt !== null && heardAt > at;
  if (error.isUnreached) return isHeardAgain ? at + SHOWN_MS : null;
  if (error.retryAfter_s === null) return null;
  return at + Math.max(SHOWN_MS, error.retryAfter_s * 1_000);
}
