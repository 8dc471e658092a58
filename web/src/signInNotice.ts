/** How signing in over a provider went, as the server tells it in the page's address: `?sign_in=failed`. */

const WORDS = new Map([
  ["cancelled", "You have not signed in: it was cancelled."],
  ["expired", "This sign-in took too long, or was begun in another browser. Please try again."],
  ["failed", "Signing in did not work. Please try again."],
  ["email_taken", "There is already an account with this email. Please sign in with its password."],
  ["closed", "Accounts are not made here. Please sign in with an account that exists."],
  ["unavailable", "This service cannot be reached right now. Try again later, or sign in with a password."],
]);

/** The words for it, or null; and removes it from the address bar, so that a reload does not repeat it. */
export function takeSignInNotice(): string | null {
  const url = new URL(window.location.href);
  const outcome = url.searchParams.get("sign_in");
  if (outcome === null) return null;
  url.searchParams.delete("sign_in");
  window.history.replaceState(window.history.state, "", url);
  return WORDS.get(outcome) ?? null;
}
