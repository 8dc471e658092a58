import { useCallback, useEffect, useRef, useState } from "react";
import { api, ApiError, wordsFor } from "./api";
import type { Account } from "./api";
import { Brand } from "./components/Brand";
import { Home } from "./components/Home";
import { Welcome } from "./components/Welcome";
import { fullJitterMs, pageLine } from "./events";
import { watchAccount } from "./shownAccount";

type Who =
  | { is: "unknown"; error: string | null }
  | { is: "signed-out"; notice: string | null }
  | { is: "signed-in"; account: Account };

interface AppProps {
  /** To show to whoever is not signed in. */
  notice: string | null;
}

export function App({ notice }: AppProps) {
  const [who, setWho] = useState<Who>({ is: "unknown", error: null });
  const [looks, setLooks] = useState(0);
  const shown = who.is === "signed-in" ? who.account.id : null;

  const lookAgain = useCallback(() => {
    pageLine.forget();
    setWho({ is: "unknown", error: null });
    setLooks((before) => before + 1);
  }, []);

  useEffect(() => watchAccount(shown, lookAgain), [shown, lookAgain]);

  useEffect(() => {
    const leave = new AbortController();
    void findAccount(leave.signal, notice, setWho);
    return () => leave.abort();
  }, [notice, looks]);

  const signOut = useCallback((notice: string | null) => {
    // The next account must not resume where this one stood.
    pageLine.forget();
    setWho({ is: "signed-out", notice });
  }, []);

  useFocusAfterChange(who.is);

  if (who.is === "signed-in") return <Home account={who.account} onSignedOut={signOut} />;
  if (who.is === "signed-out") {
    return <Welcome notice={who.notice} onSignedIn={(account) => setWho({ is: "signed-in", account })} />;
  }
  return (
    <main className="waiting">
      <h1 className="header-brand">
        <Brand />
      </h1>
      <p role="status">
        {who.error ?? "Loading…"} {who.error && <span className="muted">The page keeps trying.</span>}
      </p>
    </main>
  );
}

/** Moves the focus into the new page, because the element that had it is gone. The first load does not move it. */
function useFocusAfterChange(shown: Who["is"]): void {
  const before = useRef(shown);
  useEffect(() => {
    const isChange = before.current !== shown && before.current !== "unknown";
    before.current = shown;
    if (isChange) document.querySelector<HTMLElement>("[data-first-focus]")?.focus();
  }, [shown]);
}

async function findAccount(signal: AbortSignal, notice: string | null, tell: (who: Who) => void): Promise<void> {
  for (let attempt = 0; !signal.aborted; attempt += 1) {
    let atLeast_ms = 0;
    try {
      const account = await api.account(signal);
      return tell({ is: "signed-in", account });
    } catch (error) {
      if (signal.aborted) return;
      // 404: the session is good, but its account is not here. Signing in replaces it; nothing else would help.
      if (error instanceof ApiError && [401, 404].includes(error.status)) return tell({ is: "signed-out", notice });
      tell({ is: "unknown", error: error instanceof ApiError ? error.message : wordsFor(error) });
      if (error instanceof ApiError) atLeast_ms = (error.retryAfter_s ?? 0) * 1_000;
    }
    await new Promise((resolve) => setTimeout(resolve, atLeast_ms + fullJitterMs(attempt)));
  }
}
