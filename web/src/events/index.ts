export { fullJitterMs } from "./backoff";
export { isEventType } from "./frames";
export type { CloseReason, DataOf, EventData, SnapshotGenerated, SnapshotProgress, TopicReset } from "./frames";
export { useEvents, useLine } from "./hooks";
export type { Handler } from "./line";
export { pageLine } from "./page";
export type { LineState, LineView } from "./view";
