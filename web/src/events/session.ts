/** What a page of allim's own origin asks for its line; the session is the cookie. */
import { root } from "../root";
import { Refusal } from "./refusal";

// Without a limit a hung proxy would hold up every further try.
const TIMEOUT_MS = 10_000;

/**
 * Whether a stream would be granted: `EventSource` hides the status it was
 * refused with, and HEAD is judged as GET is and opens nothing.
 */
export async function askForStream(): Promise<void> {
  await call("HEAD", "/events", 200);
}

export async function renewSession(): Promise<void> {
  await call("POST", "/api/session/renew", 200);
}

/** `GET /api/session`. */
export interface SessionLife {
  /** Who is signed in: not the user whom the page shows, if another account has signed in since. */
  user: string;
  expiresInS: number;
  lifetimeS: number;
  renewalDue: boolean;
}

export async function readSession(): Promise<SessionLife> {
  const response = await call("GET", "/api/session", 200);
  return (await response.json()) as SessionLife;
}

async function call(method: string, path: string, welcome: number): Promise<Response> {
  const response = await fetch(root + path, { method, signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (response.status !== welcome) throw Refusal.of(response);
  return response;
}
