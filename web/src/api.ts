/** The REST calls of docs/protocol.md that the page makes; the session is the cookie. */
import { root } from "./root";

export interface Account {
  id: string;
  /** None, when the account came from a provider that told none. */
  email: string | null;
  name: string;
  createdAt: string;
  /** False for an account that signs in over a provider. */
  hasPassword: boolean;
}

export interface Session {
  id: string;
  createdAt: string;
  seenAt: string;
  expiresAt: string;
  address: string | null;
  agent: string | null;
  /** The session of this page. */
  current: boolean;
}

export interface Snapshot {
  id: string;
  status: "pending" | "generated";
  requestedAt: string;
  generatedAt: string | null;
  snapshotCount: number | null;
  serverId: string | null;
  sha256: string | null;
}

export interface SnapshotWithContent extends Snapshot {
  content: unknown;
}

export interface SnapshotPage {
  items: Snapshot[];
  nextCursor: string | null;
}

export interface FieldError {
  field: string;
  message: string;
}

/** RFC 9457. */
export interface Problem {
  type?: string;
  title: string;
  status: number;
  detail?: string;
  code?: string;
  errors?: FieldError[];
}

/** How long a call waits for its answer. */
export const TIMEOUT_S = 15;
const ME = "/api/accounts/me";
const SNAPSHOTS = "/api/accounts/me/snapshots";

export class ApiError extends Error {
  constructor(
    readonly problem: Problem,
    readonly retryAfter_s: number | null = null,
  ) {
    super(problem.detail ?? problem.title);
  }

  get status(): number {
    return this.problem.status;
  }

  /** No replica has answered; it says nothing about the call itself. */
  get isUnreached(): boolean {
    return [0, 502, 503, 504].includes(this.status);
  }

  /** The message for one field, or undefined. */
  of(field: string): string | undefined {
    return this.problem.errors?.find((error) => error.field === field)?.message;
  }

  /** Messages for fields the form does not have, so that none is lost. */
  besides(fields: readonly string[]): string[] {
    const others = this.problem.errors?.filter((error) => !fields.includes(error.field)) ?? [];
    return others.map((error) => `${error.field}: ${error.message}`);
  }
}

/** The providers to sign in over, and whether accounts can be made. */
export interface SignInWays {
  providers: readonly string[];
  registration?: "open" | "closed";
}

export const api = {
  signUp: (account: { email: string; name: string; password: string }) =>
    call<{ account: Account }>("POST", "/api/accounts", { body: account }),
  signIn: (credentials: { email: string; password: string }) =>
    call<{ account: Account }>("POST", "/api/session", { body: credentials }),
  providers: (signal?: AbortSignal) => call<SignInWays>("GET", "/api/session/providers", { signal }),
  signOut: () => call<void>("DELETE", "/api/session"),
  account: (signal?: AbortSignal) => call<Account>("GET", ME, { signal }),
  changePassword: (passwords: { currentPassword: string; newPassword: string }) =>
    call<void>("POST", `${ME}/password`, { body: passwords }),
  deleteAccount: (password: string | null) =>
    call<void>("POST", `${ME}/deletion`, { body: password === null ? {} : { password } }),
  sessions: (signal?: AbortSignal) => call<{ items: Session[] }>("GET", `${ME}/sessions`, { signal }),
  endSession: (id: string) => call<void>("DELETE", `${ME}/sessions/${encodeURIComponent(id)}`),
  requestSnapshot: () => call<Snapshot>("POST", SNAPSHOTS),
  snapshot: (id: string, signal?: AbortSignal) =>
    call<SnapshotWithContent>("GET", `${SNAPSHOTS}/${encodeURIComponent(id)}`, { signal }),
  snapshots: (limit: number, cursor: string | null, signal?: AbortSignal) => {
    const query = new URLSearchParams({ limit: String(limit), ...(cursor !== null && { cursor }) });
    return call<SnapshotPage>("GET", `${SNAPSHOTS}?${query}`, { signal });
  },
};

let shownUser: string | null = null;
let onAnotherUser = () => {};

/**
 * From now on each call names this user, and the server refuses it with
 * `other_user` if another one has signed in in this browser meanwhile: what is
 * pressed in a page of one account is never done in another. `null` names none.
 */
export function actAs(user: string | null, onAnother: () => void): void {
  shownUser = user;
  onAnotherUser = onAnother;
}

interface Options {
  body?: unknown;
  signal?: AbortSignal | undefined;
}

async function call<Answer>(method: string, path: string, options: Options = {}): Promise<Answer> {
  const response = await reach(method, path, options);
  if (!response.ok) {
    const problem = await problemOf(response);
    if (problem.code === "other_user") onAnotherUser();
    throw new ApiError(problem, retryAfter(response));
  }
  if (response.status === 204) return undefined as Answer;
  return (await response.json()) as Answer;
}

async function reach(method: string, path: string, { body, signal }: Options): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (shownUser !== null) headers["Allim-User"] = shownUser;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const timeout = AbortSignal.timeout(TIMEOUT_S * 1_000);
  try {
    return await fetch(root + path, {
      method,
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
  } catch (error) {
    // The caller's own abort is no problem to show.
    if (signal?.aborted) throw error;
    const title = timeout.aborted ? `allim has not answered within ${TIMEOUT_S} s.` : "allim cannot be reached right now.";
    throw new ApiError({ title, status: 0 });
  }
}

async function problemOf(response: Response): Promise<Problem> {
  const fallback = { title: `The server answered with status ${response.status}.`, status: response.status };
  // A proxy answers in HTML when no replica does.
  if (!response.headers.get("Content-Type")?.includes("json")) return fallback;
  const problem = (await response.json().catch(() => ({}))) as Partial<Problem>;
  return { ...fallback, ...problem };
}

function retryAfter(response: Response): number | null {
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  return Number.isFinite(seconds) ? seconds : null;
}

/** Where the browser goes to sign in over a provider; it comes back to the page. */
export function providerUrl(name: string): string {
  return `${root}/api/session/providers/${encodeURIComponent(name)}`;
}

/** What to tell somebody about a failed call. */
export function wordsFor(error: unknown): string {
  if (!(error instanceof ApiError)) return "Something went wrong in this page.";
  const again = error.retryAfter_s === null ? "" : ` Try again in ${Math.max(1, Math.ceil(error.retryAfter_s))} s.`;
  return error.message + again;
}
