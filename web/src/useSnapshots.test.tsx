import { act } from "react";
import { createRoot } from "react-dom/client";
import type { Root } from "react-dom/client";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { api, ApiError } from "./api";
import type { Snapshot, SnapshotPage } from "./api";
import { pageLine } from "./events";
import { FakeEventSource } from "./events/fake-event-source";
import { SHOWN_MS } from "./useFailure";
import { useSnapshots } from "./useSnapshots";

const LISTED: Snapshot = {
  id: "a",
  status: "pending",
  requestedAt: "2026-01-01T00:00:00Z",
  generatedAt: null,
  snapshotCount: null,
  serverId: null,
  sha256: null,
};
const RESULT = { snapshotId: "a", snapshotCount: 1, timestamp: "2026-01-01T00:00:01Z", serverId: "app-2" };

let root: Root;
let seen: ReturnType<typeof useSnapshots>;
const announce = vi.fn();

function List() {
  seen = useSnapshots(announce);
  return null;
}

beforeEach(async () => {
  vi.useFakeTimers();
  vi.stubGlobal("EventSource", FakeEventSource);
  vi.stubGlobal("IS_REACT_ACT_ENVIRONMENT", true);
  vi.spyOn(api, "snapshots").mockResolvedValue({ items: [LISTED], nextCursor: null });
  vi.spyOn(api, "snapshot").mockRejectedValue(new Error("not in this test"));
  announce.mockReset();
  FakeEventSource.all = [];
  root = createRoot(document.createElement("div"));
  await act(async () => root.render(<List />));
});

afterEach(async () => {
  await act(async () => root.unmount());
  pageLine.forget();
  vi.useRealTimers();
});

test("the list is loaded once the stream is open, not before", async () => {
  expect(api.snapshots).not.toHaveBeenCalled();

  await act(async () => FakeEventSource.last.open());

  expect(seen.items).toEqual([LISTED]);
  expect(seen.loading).toBeNull();
});

test("a list without a stream is loaded after a moment", async () => {
  await act(async () => vi.advanceTimersByTimeAsync(2_000));

  expect(seen.items).toEqual([LISTED]);
});

test("a complete verdict needs no reload; a reset and a gap do", async () => {
  await act(async () => FakeEventSource.last.open());
  await act(async () => FakeEventSource.last.open({ resume: "complete" }));
  expect(api.snapshots).toHaveBeenCalledTimes(1);

  await act(async () => FakeEventSource.last.open({ resume: "reset" }));
  expect(api.snapshots).toHaveBeenCalledTimes(2);

  await act(async () => FakeEventSource.last.frame("stream.gap", { topics: ["user:1"], reason: "trimmed" }));
  expect(api.snapshots).toHaveBeenCalledTimes(3);
});

test("a result that comes while the list is loading survives the older list", async () => {
  let deliver: (page: SnapshotPage) => void = () => {};
  vi.mocked(api.snapshots).mockReturnValue(new Promise((resolve) => (deliver = resolve)));
  await act(async () => FakeEventSource.last.open({ replica: "app-1" }));
  await act(async () => FakeEventSource.last.frame("snapshots.generated", RESULT));
  await act(async () => deliver({ items: [LISTED], nextCursor: null }));

  expect(seen.items).toMatchObject([{ id: "a", status: "generated", serverId: "app-2" }]);
  expect(seen.heardThrough).toEqual({ a: "app-1" });
  expect(announce).toHaveBeenCalledOnce();
});

test("a reload reads as many pages as were shown", async () => {
  const page = (n: number, nextCursor: string | null): SnapshotPage => ({
    items: [{ ...LISTED, id: `s${n}`, requestedAt: `2026-01-01T00:00:0${9 - n}Z` }],
    nextCursor,
  });
  vi.mocked(api.snapshots).mockImplementation(async (_, cursor) => (cursor === null ? page(1, "2") : page(2, null)));
  await act(async () => FakeEventSource.last.open());
  await act(async () => seen.more());
  expect(seen.items).toHaveLength(2);

  await act(async () => FakeEventSource.last.open({ resume: "reset" }));
  expect(seen.items.map(({ id }) => id)).toEqual(["s1", "s2"]);
});

test("a list that cannot be loaded says so and is loaded with the next stream", async () => {
  vi.mocked(api.snapshots).mockRejectedValueOnce(new Error("no"));
  await act(async () => FakeEventSource.last.open());
  expect(seen.error).not.toBeNull();

  await act(async () => FakeEventSource.last.open({ resume: "complete" }));
  expect(seen).toMatchObject({ error: null, items: [LISTED] });
});

test("a list that could not be loaded again is loaded with the next sign of life, and its error is gone", async () => {
  const unreached = new ApiError({ title: "allim cannot be reached right now.", status: 0 });
  await act(async () => FakeEventSource.last.open());
  vi.mocked(api.snapshots).mockRejectedValueOnce(unreached);
  await act(async () => seen.reload());
  expect(seen.error).toBe(unreached);

  await act(async () => vi.advanceTimersByTimeAsync(SHOWN_MS));
  await act(async () => FakeEventSource.last.frame("heartbeat", {}));
  await act(async () => vi.advanceTimersByTimeAsync(0));
  expect(seen).toMatchObject({ error: null, items: [LISTED] });
  expect(api.snapshots).toHaveBeenCalledTimes(3);
});

test("a list that could not be loaded again is loaded with the next stream, though that is complete", async () => {
  await act(async () => FakeEventSource.last.open());
  vi.mocked(api.snapshots).mockRejectedValueOnce(new ApiError({ title: "no", status: 500 }));
  await act(async () => FakeEventSource.last.open({ resume: "reset" }));
  expect(seen.error).not.toBeNull();

  await act(async () => FakeEventSource.last.open({ resume: "complete" }));
  expect(seen.error).toBeNull();
});
