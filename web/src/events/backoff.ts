export const BASE_MS = 1_000;
export const CAP_MS = 30_000;

/**
 * A delay anywhere between nothing and `BASE_MS * 2^attempt`, at most `CAP_MS`.
 *
 * Full jitter: with a fixed share in the delay, pages that lost their replica
 * together would also come back together.
 */
export function fullJitterMs(attempt: number, random: () => number = Math.random): number {
  return random() * Math.min(CAP_MS, BASE_MS * 2 ** attempt);
}
