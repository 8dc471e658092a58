export { fullJitterMs } from "./backoff";
export { isEventType, LINE_TYPES } from "./frames";
export type { DataOf, EventData, SnapshotGenerated, SnapshotProgress, TopicReset } from "./frames";
export { useEvents, useLine } from "./hooks";
export { Line } from "./line";
export type { Handler, LineOptions } from "./line";
export { pageLine } from "./page";
export { Refusal } from "./refusal";
export type { EndReason, LineState, LineView } from "./view";
