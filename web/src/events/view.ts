/** What the line looks like from outside, and what each frame changes in it; pure. */
import type { CloseReason, Resume, StreamClose, StreamGap, StreamOpen, TopicReset } from "./frames";

/** `forbidden` and `busy` stand in no `stream.close`: a new stream was refused, for good or for now. */
export type EndReason = CloseReason | "forbidden" | "busy";

export type LineState = "connecting" | "open" | "lost" | "ended" | "signed-out";

export interface LineView {
  readonly state: LineState;
  /** The verdict of the last stream; null until the first `stream.open`. */
  readonly resume: Resume | null;
  readonly replayed: number;
  readonly resets: readonly TopicReset[];
  readonly replica: string | null;
  readonly streamId: string | null;
  readonly lastEventId: string | null;
  /** Wall-clock ms of the last frame of any kind. */
  readonly lastFrameAt: number | null;
  /** The last gap told on the current stream. */
  readonly gap: StreamGap | null;
  /** Why there is no stream, when that could be told; null again once one is open. */
  readonly closeReason: EndReason | null;
  /** Wall-clock ms of the next try, while one is scheduled. */
  readonly nextTryAt: number | null;
}

export const NO_STREAM: LineView = {
  state: "connecting",
  resume: null,
  replayed: 0,
  resets: [],
  replica: null,
  streamId: null,
  lastEventId: null,
  lastFrameAt: null,
  gap: null,
  closeReason: null,
  nextTryAt: null,
};

/** What a frame of this type says about the line; nothing for domain events. */
export function readFrame(type: string, data: unknown): Partial<LineView> {
  switch (type) {
    case "stream.open":
      return readOpen(data as StreamOpen);
    case "stream.gap":
      return { gap: data as StreamGap };
    case "stream.close":
      return { closeReason: (data as StreamClose).reason };
    default:
      return {};
  }
}

function readOpen({ stream, replica, resume, replayed, resets }: StreamOpen): Partial<LineView> {
  return {
    state: "open",
    resume,
    replayed,
    resets,
    replica,
    streamId: stream,
    gap: null,
    closeReason: null,
    nextTryAt: null,
  };
}

/** Two heartbeats missed and ten seconds of grace: 40 s with the usual 15. */
export function silenceLimitMs(heartbeat_s: number): number {
  return (heartbeat_s * 2 + 10) * 1_000;
}
