// Made by `allim types`. Changes are lost when it is made anew.

/** Data of `snapshots.progress`. A step of a snapshot's generation is done. */
export type SnapshotsProgress = {
  snapshotId: string;
  step: number;
  /** The number of steps. */
  of: number;
};

/** Data of `snapshots.generated`. A snapshot is generated and can be read. */
export type SnapshotsGenerated = {
  snapshotId: string;
  /** The account's snapshots so far, with this one. */
  snapshotCount: number;
  timestamp: string;
  /** The replica that generated it. */
  serverId: string;
};

/** Data of `stream.open`. The stream is open. The first event of every stream. */
export type StreamOpen = {
  /** Names this stream in the logs. */
  stream: string;
  /** The user of the stream: the `sub` of the token or ticket. */
  user: string;
  /** The replica that holds it. */
  replica: string;
  resume: "new" | "complete" | "reset";
  /** Entries that history holds after the last event ID. */
  replayed: number;
  /** One for each topic that is not complete. */
  resets: StreamOpenTopicReset[];
  /** Seconds between two heartbeats. */
  heartbeat_s: number;
};

/** A topic whose events are not complete, and why. */
export type StreamOpenTopicReset = {
  topic: string;
  reason: "malformed" | "ahead" | "origin" | "expired" | "trimmed";
};

/** Data of `heartbeat`. The stream is alive. */
export type Heartbeat = { [name: string]: never };

/** Data of `stream.gap`. Events of these topics are lost to this open stream. */
export type StreamGap = {
  topics: string[];
  reason: "origin" | "trimmed";
};

/** Data of `stream.expiring`. The stream's token expires soon. */
export type StreamExpiring = {
  expires_in_s: number;
};

/** Data of `stream.close`. The stream ends. It is the last event, if the end can be told. */
export type StreamClose = {
  reason: "drain" | "rotate" | "token_expired" | "kicked" | "signed_out" | "replaced";
  reconnect: boolean;
};

/** The data of each event, by its type. */
export interface Events {
  /** A step of a snapshot's generation is done. */
  "snapshots.progress": SnapshotsProgress;
  /** A snapshot is generated and can be read. */
  "snapshots.generated": SnapshotsGenerated;
  /** The stream is open. The first event of every stream. */
  "stream.open": StreamOpen;
  /** The stream is alive. */
  "heartbeat": Heartbeat;
  /** Events of these topics are lost to this open stream. */
  "stream.gap": StreamGap;
  /** The stream's token expires soon. */
  "stream.expiring": StreamExpiring;
  /** The stream ends. It is the last event, if the end can be told. */
  "stream.close": StreamClose;
}

/** The form of each type's topics. */
export interface Topics {
  /** A step of a snapshot's generation is done. */
  "snapshots.progress": `user:${string}`;
  /** A snapshot is generated and can be read. */
  "snapshots.generated": `user:${string}`;
}

/** The events that allim itself sends on every stream. */
export type ControlType = "stream.open" | "heartbeat" | "stream.gap" | "stream.expiring" | "stream.close";
