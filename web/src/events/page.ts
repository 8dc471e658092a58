import { Line } from "./line";

async function whoAmI(): Promise<"signed-in" | "signed-out" | "unknown"> {
  const response = await fetch("/api/accounts/me", {
    headers: { Accept: "application/json" },
    // Without a limit a hung proxy would hold up every further try.
    signal: AbortSignal.timeout(10_000),
  });
  if (response.status === 401) return "signed-out";
  return response.ok ? "signed-in" : "unknown";
}

/** The page's one line. Over HTTP/1.1 a browser gives a host six connections in all. */
export const pageLine = new Line({ url: "/events", whoAmI });
