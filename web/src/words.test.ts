import { expect, test } from "vitest";
import type { LineView } from "./events";
import { NO_STREAM } from "./events/view";
import { lineWords } from "./words";

const ended = (closeReason: LineView["closeReason"]) => lineWords({ ...NO_STREAM, state: "ended", closeReason });

test.each([
  ["kicked", "All sessions ended"],
  ["replaced", "Another window took over"],
  ["forbidden", "may not open"],
  ["signed_out", "signed out"],
  ["token_expired", "has expired"],
] as const)("the end by %s has words of its own", (reason, words) => {
  const { title, detail } = ended(reason);

  expect(`${title}. ${detail}`).toContain(words);
});

test.each([
  ["busy", "no further stream right now"],
  ["drain", "going out of service"],
  ["rotate", "lifetime"],
  [null, "connection was lost"],
] as const)("while the line is lost, %s is told", (closeReason, words) => {
  expect(lineWords({ ...NO_STREAM, state: "lost", closeReason }).detail).toContain(words);
});

test("an end for an unknown reason has words too", () => {
  expect(ended(null)).toEqual({ title: "Ended", detail: "The server has ended this stream." });
});
