/** What the page says about the line, in whole sentences; pure. */
import type { EndReason, LineView, TopicReset } from "./events";

export interface LineWords {
  title: string;
  detail: string;
}

export function lineWords(line: LineView): LineWords {
  switch (line.state) {
    case "connecting":
      return { title: "Connecting", detail: "Opening the stream." };
    case "open":
      return openWords(line);
    case "lost":
      return { title: "Reconnecting", detail: lostWords(line.closeReason) };
    case "ended":
      return { title: endTitle(line.closeReason), detail: endWords(line.closeReason) };
    case "signed-out":
      return { title: "Signed out", detail: "Sign in again to open a new stream." };
  }
}

function openWords({ resume, replayed }: LineView): LineWords {
  if (resume === "reset") return { title: "Open, after a reset", detail: "What was missed cannot be replayed in full. The list is loaded again." };
  if (resume === "new") return { title: "Open", detail: "A new stream. Events arrive as they happen." };
  if (replayed === 0) return { title: "Caught up", detail: "Back again. No event was missed." };
  return { title: "Caught up", detail: `Back again. ${replayed} missed ${replayed === 1 ? "event was" : "events were"} replayed.` };
}

function lostWords(reason: EndReason | null): string {
  if (reason === "drain") return "The replica is going out of service. The page connects again by itself.";
  if (reason === "rotate") return "The stream has reached its lifetime. The page opens a new one.";
  if (reason === "busy") return "The server takes no further stream right now. The page tries again by itself.";
  return "The connection was lost. Once it is back, missed events are replayed, as far as they are kept.";
}

function endTitle(reason: EndReason | null): string {
  if (reason === "replaced") return "Open elsewhere";
  if (reason === "kicked") return "All sessions ended";
  if (reason === "forbidden") return "Not permitted";
  return "Ended";
}

export function endWords(reason: EndReason | null): string {
  switch (reason) {
    case "signed_out":
      return "You are signed out.";
    case "token_expired":
      return "Your session has expired.";
    case "kicked":
      return "An operator has ended all sessions of this account, or it was deleted. This page does not come back by itself.";
    case "replaced":
      return "Another window took over: this account has as many streams open as it may have.";
    case "forbidden":
      return "This account may not open this stream.";
    default:
      return "The server has ended this stream.";
  }
}

const RESETS: Record<TopicReset["reason"], string> = {
  malformed: "the last event ID could not be read",
  ahead: "the last event ID is ahead of the history",
  origin: "the history has started anew",
  expired: "the history of that time has expired",
  trimmed: "more happened than the history keeps",
};

export function resetWords(reason: string): string {
  return reason in RESETS ? RESETS[reason as TopicReset["reason"]] : reason;
}

export function ageWords(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1_000));
  if (seconds < 1) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  return `${Math.floor(seconds / 60)} min ago`;
}

const TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const DAY_AND_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** The time of day; with the date when it was another day. */
export function timeWords(at: string | number, now = new Date()): string {
  const time = new Date(at);
  if (Number.isNaN(time.getTime())) return String(at);
  return (time.toDateString() === now.toDateString() ? TIME : DAY_AND_TIME).format(time);
}
