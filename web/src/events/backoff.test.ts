import { expect, test } from "vitest";
import { fullJitterMs } from "./backoff";

test("the delay is anywhere between nothing and the doubled base", () => {
  expect(fullJitterMs(0, () => 0)).toBe(0);
  expect(fullJitterMs(0, () => 0.999)).toBeLessThan(1_000);
  expect(fullJitterMs(3, () => 0.5)).toBe(4_000);
});

test("the delay stays under the cap, however many tries there were", () => {
  for (const attempt of [5, 10, 1_000, 5_000]) {
    expect(fullJitterMs(attempt, () => 0.999)).toBeLessThan(30_000);
    expect(fullJitterMs(attempt, () => 0.5)).toBe(15_000);
  }
});

test("without a given chance it uses its own", () => {
  const delays = Array.from({ length: 200 }, () => fullJitterMs(2));

  expect(delays.every((ms) => ms >= 0 && ms < 4_000)).toBe(true);
  expect(new Set(delays).size).toBeGreaterThan(100);
});
