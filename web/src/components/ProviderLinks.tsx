import { useEffect, useState } from "react";
import { api, providerUrl } from "../api";
import type { SignInWays } from "../api";

const NAMES = new Map([
  ["google", "Google"],
  ["kakao", "Kakao"],
  ["naver", "Naver"],
]);

/** Other ways to sign in, as many as the server has. Links: the browser leaves the page and comes back. */
export function ProviderLinks({ providers }: { providers: readonly string[] }) {
  if (providers.length === 0) return null;
  return (
    <ul className="providers" aria-label="Other ways to sign in" data-testid="providers">
      {providers.map((name) => (
        <li key={name}>
          <a className="button" href={providerUrl(name)} data-testid={`provider-${name}`}>
            Continue with {NAMES.get(name) ?? name}
          </a>
        </li>
      ))}
    </ul>
  );
}

/** The ways to sign in that the server has. Until it answers: by password, in an account that can be made. */
export function useSignInWays(): SignInWays {
  const [ways, setWays] = useState<SignInWays>({ providers: [] });
  useEffect(() => {
    const leave = new AbortController();
    // Without an answer the form is still there, and is enough.
    api.providers(leave.signal).then(setWays, () => {});
    return () => leave.abort();
  }, []);
  return ways;
}
