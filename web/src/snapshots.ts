/**
 * The list of snapshots as the page knows it, from REST and from events; pure.
 *
 * Both tell about the same rows and either may come first, so a row never goes
 * back from generated to pending.
 */
import type { Snapshot, SnapshotPage } from "./api";
import type { SnapshotGenerated, SnapshotProgress } from "./events";

export interface Snapshots {
  items: readonly Snapshot[];
  nextCursor: string | null;
  progress: Readonly<Record<string, SnapshotProgress>>;
  /** By snapshot: the replica that held the stream when the result came. */
  heardThrough: Readonly<Record<string, string>>;
}

export type Change =
  | { kind: "reloaded"; page: SnapshotPage; touched: ReadonlySet<string> }
  | { kind: "more"; page: SnapshotPage }
  | { kind: "one"; snapshot: Snapshot }
  | { kind: "progress"; event: SnapshotProgress; now: string }
  | { kind: "generated"; event: SnapshotGenerated; replica: string | null };

export const NO_SNAPSHOTS: Snapshots = { items: [], nextCursor: null, progress: {}, heardThrough: {} };

export function change(known: Snapshots, change: Change): Snapshots {
  switch (change.kind) {
    case "reloaded":
      return reloaded(known, change.page, change.touched);
    case "more":
      return { ...known, items: merged(known.items, change.page.items), nextCursor: change.page.nextCursor };
    case "one":
      return { ...known, items: merged(known.items, [change.snapshot]) };
    case "progress":
      return progressed(known, change.event, change.now);
    case "generated":
      return generated(known, change.event, change.replica);
  }
}

/** The page replaces what was known, except rows heard of since it was asked for. */
function reloaded(known: Snapshots, page: SnapshotPage, touched: ReadonlySet<string>): Snapshots {
  const listed = new Set(page.items.map(({ id }) => id));
  const kept = known.items.filter(({ id }) => listed.has(id) || touched.has(id));
  return { ...known, items: merged(kept, page.items), nextCursor: page.nextCursor };
}

function progressed(known: Snapshots, event: SnapshotProgress, now: string): Snapshots {
  const { snapshotId } = event;
  const progress = { ...known.progress, [snapshotId]: event };
  return { ...known, progress, items: merged([pending(snapshotId, now)], known.items) };
}

function generated(known: Snapshots, event: SnapshotGenerated, replica: string | null): Snapshots {
  const { snapshotId, snapshotCount, timestamp, serverId } = event;
  const before = known.items.find(({ id }) => id === snapshotId) ?? pending(snapshotId, timestamp);
  const snapshot: Snapshot = { ...before, status: "generated", generatedAt: timestamp, snapshotCount, serverId };
  const { [snapshotId]: _, ...progress } = known.progress;
  const heardThrough = replica === null ? known.heardThrough : { ...known.heardThrough, [snapshotId]: replica };
  return { ...known, progress, heardThrough, items: merged(known.items, [snapshot]) };
}

function pending(id: string, requestedAt: string): Snapshot {
  return {
    id,
    status: "pending",
    requestedAt,
    generatedAt: null,
    snapshotCount: null,
    serverId: null,
    sha256: null,
  };
}

function merged(known: readonly Snapshot[], told: readonly Snapshot[]): Snapshot[] {
  const byId = new Map(known.map((snapshot) => [snapshot.id, snapshot]));
  for (const snapshot of told) byId.set(snapshot.id, newer(byId.get(snapshot.id), snapshot));
  return [...byId.values()].sort((a, b) => Date.parse(b.requestedAt) - Date.parse(a.requestedAt));
}

function newer(known: Snapshot | undefined, told: Snapshot): Snapshot {
  if (!known || known.status === told.status) return { ...known, ...told };
  const [first, last] = known.status === "generated" ? [told, known] : [known, told];
  return { ...last, requestedAt: first.requestedAt };
}
