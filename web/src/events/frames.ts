/** The frames of a stream as docs/protocol.md names them; pure, no browser. */

export type Resume = "new" | "complete" | "reset";

export interface TopicReset {
  topic: string;
  reason: "malformed" | "ahead" | "origin" | "expired" | "trimmed";
}

export interface StreamOpen {
  stream: string;
  /** Whose stream it is. */
  user: string;
  replica: string;
  resume: Resume;
  replayed: number;
  resets: TopicReset[];
  heartbeat_s: number;
}

export interface StreamGap {
  topics: string[];
  reason: "origin" | "trimmed";
}

export interface StreamExpiring {
  expires_in_s: number;
}

export type CloseReason = "drain" | "rotate" | "token_expired" | "kicked" | "signed_out" | "replaced";

export interface StreamClose {
  reason: CloseReason;
  reconnect: boolean;
}

export interface SnapshotProgress {
  snapshotId: string;
  step: number;
  of: number;
}

export interface SnapshotGenerated {
  snapshotId: string;
  snapshotCount: number;
  timestamp: string;
  serverId: string;
}

/** What `data` is, by event type. A page adds its own types by declaration merging. */
export interface EventData {
  "stream.open": StreamOpen;
  "stream.gap": StreamGap;
  "stream.expiring": StreamExpiring;
  "stream.close": StreamClose;
  heartbeat: Record<string, never>;
  "snapshots.progress": SnapshotProgress;
  "snapshots.generated": SnapshotGenerated;
}

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
