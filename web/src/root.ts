/** The path under which allim is served: "" at the root of its host, "/notify" where it is mounted there. */
export const root = rootOf(document.baseURI);

/** For the address of the page itself, which is served at the root with a slash behind it. */
export function rootOf(page: string): string {
  return new URL(".", page).pathname.slice(0, -1);
}
