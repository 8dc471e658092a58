/**
 * Keeps the session alive while a page of it is open or opened again.
 *
 * A stream is told a minute before its session expires. A page that is not
 * open in that minute would lose the session, however often it is used. So the
 * session is looked at when a page opens, is seen again, and when half of its
 * life is over, and renewed when the server says that this is due.
 */
import { readSession, renewSession } from "./session";
import type { SessionLife } from "./session";

export interface KeeperOptions {
  /** Called with the user who is signed in, each time the session was read. */
  onUser: (user: string) => void;
  read?: () => Promise<SessionLife>;
  renew?: () => Promise<void>;
  random?: () => number;
}

/** A page that is seen again and again asks at most once in this time. */
export const REST_MS = 30_000;

/** After a failure, and the most that a timer of a browser waits. */
const RETRY_MS = 5 * 60_000;
const MAX_WAIT_MS = 24 * 60 * 60_000;

const LOCK = "allim-session";

/** Returns what ends it. */
export function keepSession(options: KeeperOptions): () => void {
  const { onUser, read = readSession, renew = renewSession, random = Math.random } = options;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let askedAt = -Infinity;
  let left = false;

  const look = async (): Promise<void> => {
    clearTimeout(timer);
    askedAt = Date.now();
    const wait = await withLock(async () => {
      const session = await read();
      if (left) return MAX_WAIT_MS;
      onUser(session.user);
      if (session.renewalDue) await renew();
      return untilHalf(session, random());
    }).catch(() => RETRY_MS);
    // In a page that is not seen the timer is late, which does no harm.
    if (!left) timer = setTimeout(() => void look(), Math.min(wait, MAX_WAIT_MS));
  };

  const onSeen = (): void => {
    if (document.visibilityState !== "hidden" && Date.now() - askedAt >= REST_MS) void look();
  };

  document.addEventListener("visibilitychange", onSeen);
  window.addEventListener("pageshow", onSeen);
  void look();
  return () => {
    left = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", onSeen);
    window.removeEventListener("pageshow", onSeen);
  };
}

/** When to look again: after half of the life, each page at a moment of its own, and a minute apart at least. */
function untilHalf({ expiresInS, lifetimeS, renewalDue }: SessionLife, random: number): number {
  const left_s = renewalDue ? lifetimeS : expiresInS;
  return Math.max(60, left_s - lifetimeS / 2 + (random * lifetimeS) / 10) * 1_000;
}

/** One page at a time, so that the others find the session renewed. Browsers have locks on secure pages only. */
function withLock<Answer>(work: () => Promise<Answer>): Promise<Answer> {
  const locks = (navigator as { locks?: LockManager }).locks;
  return locks ? locks.request(LOCK, work) : work();
}
