import { expect, test } from "vitest";
import type { Snapshot } from "./api";
import { change, NO_SNAPSHOTS } from "./snapshots";
import type { Change, Snapshots } from "./snapshots";

const after = (...changes: Change[]): Snapshots => changes.reduce(change, NO_SNAPSHOTS);

function pending(id: string, minute: number): Snapshot {
  const requestedAt = `2026-01-01T00:${String(minute).padStart(2, "0")}:00Z`;
  return { id, status: "pending", requestedAt, generatedAt: null, snapshotCount: null, serverId: null, sha256: null };
}

function reloaded(items: Snapshot[], touched: string[] = []): Change {
  return { kind: "reloaded", page: { items, nextCursor: "c" }, touched: new Set(touched) };
}

function generated(snapshotId: string): Change {
  const event = { snapshotId, snapshotCount: 1, timestamp: "2026-01-01T00:09:00Z", serverId: "app-2" };
  return { kind: "generated", event, replica: "app-1" };
}

test("the list is newest first, whatever came first", () => {
  const known = after(
    { kind: "one", snapshot: pending("b", 2) },
    { kind: "one", snapshot: pending("c", 3) },
    { kind: "more", page: { items: [pending("a", 1)], nextCursor: null } },
  );

  expect(known.items.map(({ id }) => id)).toEqual(["c", "b", "a"]);
  expect(known.nextCursor).toBeNull();
});

test("a result names its worker and the replica it was heard through", () => {
  const known = after({ kind: "one", snapshot: pending("a", 1) }, generated("a"));

  expect(known.items).toEqual([
    { ...pending("a", 1), status: "generated", generatedAt: "2026-01-01T00:09:00Z", snapshotCount: 1, serverId: "app-2" },
  ]);
  expect(known.heardThrough).toEqual({ a: "app-1" });
});

test.each<[string, Change]>([
  ["a list", reloaded([pending("a", 1)])],
  ["the answer to the request", { kind: "one", snapshot: pending("a", 1) }],
])("%s that is older than the event does not undo the result", (_, older) => {
  const [snapshot] = after(generated("a"), older).items;

  expect(snapshot).toMatchObject({ status: "generated", serverId: "app-2", requestedAt: pending("a", 1).requestedAt });
});

test("details from REST complete the result", () => {
  const full: Snapshot = { ...pending("a", 1), status: "generated", serverId: "app-2", snapshotCount: 1, sha256: "ff" };

  expect(after(generated("a"), { kind: "one", snapshot: full }).items[0]?.sha256).toBe("ff");
});

test("progress is kept until the result", () => {
  const event = { snapshotId: "a", step: 1, of: 4 };
  const progress: Change = { kind: "progress", event, now: "2026-01-01T00:05:00Z" };

  expect(after(progress)).toMatchObject({ items: [{ id: "a", status: "pending" }], progress: { a: event } });
  expect(after(progress, generated("a")).progress).toEqual({});
});

test("progress does not change a row that is known better", () => {
  const event = { snapshotId: "a", step: 1, of: 4 };
  const known = after({ kind: "one", snapshot: pending("a", 1) }, { kind: "progress", event, now: "2030-01-01T00:00:00Z" });

  expect(known.items).toEqual([pending("a", 1)]);
});

test("a reload drops what is gone and keeps what was heard of meanwhile", () => {
  const known = after(
    { kind: "one", snapshot: pending("gone", 1) },
    { kind: "one", snapshot: pending("new", 3) },
    reloaded([pending("listed", 2)], ["new"]),
  );

  expect(known.items.map(({ id }) => id)).toEqual(["new", "listed"]);
  expect(known.nextCursor).toBe("c");
});
