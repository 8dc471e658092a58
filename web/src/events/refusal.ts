/** What the server answers when it grants nothing, and what that means for a line; pure but for `Response`. */
import type { LineView } from "./view";

/** A header that asks for more is a mistake somewhere, and the page would look dead. */
const MAX_RETRY_AFTER_S = 300;

/** Thrown by what a line asks the server for; any other error means that nothing was learned. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    /** How long not to ask again; 0 when the server did not say. */
    readonly retryAfter_s = 0,
  ) {
    super(`refused with status ${status}`);
  }

  static of({ status, headers }: Response): Refusal {
    const text = headers.get("Retry-After") ?? "";
    return new Refusal(status, /^\d+$/.test(text) ? Math.min(Number(text), MAX_RETRY_AFTER_S) : 0);
  }

  /** How the line ends; undefined when asking again may help. */
  get ending(): Partial<LineView> | undefined {
    switch (this.status) {
      case 204:
        return { state: "ended", closeReason: "kicked" };
      case 401:
        return { state: "signed-out" };
      case 403:
        return { state: "ended", closeReason: "forbidden" };
      default:
        return undefined;
    }
  }
}
