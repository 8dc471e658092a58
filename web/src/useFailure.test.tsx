import { act } from "react";
import { createRoot } from "react-dom/client";
import type { Root } from "react-dom/client";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { ApiError } from "./api";
import { pageLine, useEvents } from "./events";
import { FakeEventSource } from "./events/fake-event-source";
import { SHOWN_MS, useFailure } from "./useFailure";

const UNREACHED = new ApiError({ title: "allim cannot be reached right now.", status: 0 });

let root: Root;
let error: unknown;
let fail: (error: unknown) => void;
const onOver = vi.fn();

function Caller() {
  [error, fail] = useFailure(onOver);
  useEvents(["heartbeat"], () => {});
  return null;
}

const pass = (ms: number) => act(async () => vi.advanceTimersByTimeAsync(ms));
const heartbeat = () => act(async () => FakeEventSource.last.frame("heartbeat", {}));

beforeEach(async () => {
  vi.useFakeTimers();
  vi.stubGlobal("EventSource", FakeEventSource);
  vi.stubGlobal("IS_REACT_ACT_ENVIRONMENT", true);
  onOver.mockReset();
  FakeEventSource.all = [];
  root = createRoot(document.createElement("div"));
  await act(async () => root.render(<Caller />));
  await heartbeat();
});

afterEach(async () => {
  await act(async () => root.unmount());
  pageLine.forget();
  vi.useRealTimers();
});

test.each([0, 502, 503, 504])("after status %d the error is over with the next frame, and not before", async (status) => {
  await act(async () => fail(new ApiError({ title: "No replica answers.", status }, status === 503 ? 2 : null)));
  await pass(60_000);
  expect(error).not.toBeNull();

  await heartbeat();
  await pass(0);
  expect(error).toBeNull();
  expect(onOver).toHaveBeenCalledOnce();
});

test("an error that is over at once is shown long enough to be read", async () => {
  await act(async () => fail(UNREACHED));
  await pass(100);
  await heartbeat();
  await pass(SHOWN_MS - 200);
  expect(error).toBe(UNREACHED);

  await pass(100);
  expect(error).toBeNull();
});

test("an error that says when to try again is over then", async () => {
  await act(async () => fail(new ApiError({ title: "Too many.", status: 429 }, 20)));
  await heartbeat();
  await pass(19_900);
  expect(error).not.toBeNull();

  await pass(100);
  expect(error).toBeNull();
});

test.each([400, 403, 500])("an error with status %d stays until the next try", async (status) => {
  const own = new ApiError({ title: "No.", status });
  await act(async () => fail(own));
  await heartbeat();
  await pass(600_000);
  expect(error).toBe(own);

  await act(async () => fail(null));
  expect(error).toBeNull();
  expect(onOver).not.toHaveBeenCalled();
});
