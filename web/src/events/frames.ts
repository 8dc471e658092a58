/** The frames of a stream as docs/protocol.md names them; pure, no browser. */

import type { Events, SnapshotsGenerated, SnapshotsProgress, StreamClose, StreamGap, StreamExpiring, StreamOpen } from "./types";

export type { StreamClose, StreamExpiring, StreamGap, StreamOpen };
export type { SnapshotsGenerated as SnapshotGenerated, SnapshotsProgress as SnapshotProgress };
export type Resume = StreamOpen["resume"];
export type TopicReset = StreamOpen["resets"][number];
export type CloseReason = StreamClose["reason"];

/**
 * What `data` is, by event type: the types of the catalogue, in `types.ts`, which `allim types` makes. A page adds its
 * own types by declaration merging.
 */
export interface EventData extends Events {}

export type DataOf<Type extends string> = Type extends keyof EventData ? EventData[Type] : unknown;

/** Frames the line reads for itself, whether or not anybody else listens. */
export const LINE_TYPES = ["stream.open", "heartbeat", "stream.gap", "stream.expiring", "stream.close"] as const;

const TYPE_PATTERN = /^[a-z][a-z0-9_.-]{0,127}$/;

export function isEventType(text: string): boolean {
  return TYPE_PATTERN.test(text);
}

/**
 * The position in an id. A stream opened with a ticket has `<position>~<proof>`,
 * and the proof goes back to the server in the browser's own header only, never
 * in a URL.
 */
export function positionOf(id: string): string {
  return id.split("~", 1)[0] ?? "";
}

/** The JSON of a `data:` line, or `undefined` when it is none. */
export function parseData(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
