import { useEffect, useState } from "react";
import { api, providerUrl } from "../api";

const NAMES = new Map([
  ["google", "Google"],
  ["kakao", "Kakao"],
  ["naver", "Naver"],
]);

/** Other ways to sign in, as many as the server has. Links: the browser leaves the page and comes back. */
export function ProviderLinks() {
  const providers = useProviders();
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

function useProviders(): readonly string[] {
  const [providers, setProviders] = useState<readonly string[]>([]);
  useEffect(() => {
    const leave = new AbortController();
    // Without an answer the form is still there, and is enough.
    api.providers(leave.signal).then(
      ({ providers }) => setProviders(providers),
      () => {},
    );
    return () => leave.abort();
  }, []);
  return providers;
}
