/**
 * The line: what a page has to the backend, over as many streams as it takes.
 *
 * Owns the one `EventSource` and the decision when to open a new one. Native
 * `EventSource` comes back by itself from a lost connection; it gives up for
 * good on any status but 200, and it cannot see a connection that went silent.
 * Both are healed here, with the last event ID in the query, because only the
 * browser's own reconnect sends it as a header.
 */
import { fullJitterMs } from "./backoff";
import { LINE_TYPES, parseData } from "./frames";
import type { DataOf, StreamClose, StreamOpen } from "./frames";
import { NO_STREAM, readFrame, silenceLimitMs } from "./view";
import type { LineView } from "./view";

/** Distributes over the types, so that a handler which tests `type` also narrows `data`. */
type FrameOf<Type extends string> = Type extends string ? [type: Type, data: DataOf<Type>] : never;

/** While it runs, `view().lastEventId` is the id of the frame it was called for. */
export type Handler<Type extends string = string> = (...frame: FrameOf<Type>) => void;

export interface LineOptions {
  url: string;
  /** Asks who is signed in: `EventSource` hides the status it was refused with. */
  whoAmI: () => Promise<"signed-in" | "signed-out" | "unknown">;
  random?: () => number;
}

/** Long enough for a page to swap one component for another without a new stream. */
export const LINGER_MS = 1_000;

/** Until `stream.open` has told the true one. */
const DEFAULT_HEARTBEAT_S = 15;

type Timer = ReturnType<typeof setTimeout>;

export class Line {
  readonly #options: LineOptions;
  readonly #handlers = new Map<string, Set<Handler>>();
  readonly #watchers = new Set<() => void>();
  #view = NO_STREAM;
  #subscribers = 0;
  #source: EventSource | null = null;
  #listening = new Set<string>();
  #attempt = 0;
  #limitMs = silenceLimitMs(DEFAULT_HEARTBEAT_S);
  // Last sign of life, be it only the browser's own attempt to come back.
  // Wall clock: the monotonic one stands still while some machines sleep.
  #aliveAt = 0;
  #watchdog: Timer | undefined;
  #retry: Timer | undefined;
  #linger: Timer | undefined;

  constructor(options: LineOptions) {
    this.#options = options;
  }

  /** The same object until something changes. */
  view = (): LineView => this.#view;

  /** Calls `watcher` after every change of the view. Watching alone opens nothing. */
  watch = (watcher: () => void): (() => void) => {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  };

  /**
   * Calls `handler` for every event of these types. The first subscriber opens
   * the stream; it closes `LINGER_MS` after the last one has left.
   */
  subscribe<Type extends string>(types: readonly Type[], handler: Handler<Type>): () => void {
    // Own closure: the same function may be subscribed twice and leave once.
    const own: Handler = (...frame) => handler(...(frame as unknown as FrameOf<Type>));
    for (const type of types) this.#handlersOf(type).add(own);
    this.#join(types);
    let left = false;
    return () => {
      if (left) return;
      left = true;
      for (const type of types) this.#drop(type, own);
      this.#leave();
    };
  }

  /** Opens a new stream now, without waiting for the backoff; also after an end. */
  reopen = (): void => {
    if (this.#subscribers === 0) return;
    this.#attempt = 0;
    this.#open();
  };

  /** Closes the stream and forgets where it stood: the next one may be another account's. */
  forget = (): void => {
    this.#stop();
    this.#view = NO_STREAM;
    this.#show({});
  };

  // Subscribers

  #handlersOf(type: string): Set<Handler> {
    const handlers = this.#handlers.get(type) ?? new Set();
    this.#handlers.set(type, handlers);
    return handlers;
  }

  #drop(type: string, handler: Handler): void {
    const handlers = this.#handlers.get(type);
    handlers?.delete(handler);
    if (handlers?.size === 0) this.#handlers.delete(type);
  }

  #join(types: readonly string[]): void {
    clearTimeout(this.#linger);
    this.#subscribers += 1;
    if (this.#subscribers === 1) this.#hearPage();
    if (this.#source) for (const type of types) this.#listen(this.#source, type);
    else if (this.#retry === undefined && this.#isWanted()) this.#open();
  }

  #leave(): void {
    this.#subscribers -= 1;
    if (this.#subscribers > 0) return;
    this.#unhearPage();
    this.#linger = setTimeout(() => {
      this.#stop();
      // The last event ID stays: whoever subscribes next resumes from here.
      this.#show({ ...NO_STREAM, lastEventId: this.#view.lastEventId });
    }, LINGER_MS);
  }

  #isWanted(): boolean {
    return this.#view.state !== "ended" && this.#view.state !== "signed-out";
  }

  #show(change: Partial<LineView>): void {
    this.#view = { ...this.#view, ...change };
    for (const watcher of [...this.#watchers]) watcher();
  }

  // The stream

  #open(): void {
    this.#stop();
    const source = new EventSource(this.#url());
    this.#source = source;
    this.#listening.clear();
    source.onerror = () => this.#onError(source);
    for (const type of LINE_TYPES) this.#listen(source, type);
    for (const type of this.#handlers.keys()) this.#listen(source, type);
    this.#alive();
    // A line that was lost stays so until a stream says otherwise.
    this.#show({ state: this.#view.state === "lost" ? "lost" : "connecting", nextTryAt: null });
  }

  #url(): string {
    const { url } = this.#options;
    const { lastEventId } = this.#view;
    if (lastEventId === null) return url;
    return `${url}${url.includes("?") ? "&" : "?"}last_event_id=${encodeURIComponent(lastEventId)}`;
  }

  #listen(source: EventSource, type: string): void {
    if (this.#listening.has(type)) return;
    this.#listening.add(type);
    source.addEventListener(type, (event: MessageEvent<string>) => this.#onFrame(source, event));
  }

  #stop(): void {
    clearTimeout(this.#watchdog);
    clearTimeout(this.#retry);
    this.#watchdog = this.#retry = undefined;
    this.#source?.close();
    this.#source = null;
  }

  #onFrame(source: EventSource, event: MessageEvent<string>): void {
    if (source !== this.#source) return;
    this.#alive();
    const { type, lastEventId: id } = event;
    const data = parseData(event.data);
    const said = data === undefined ? {} : readFrame(type, data);
    if (type === "stream.open" && data !== undefined) this.#onOpen(data as StreamOpen);
    this.#show({ lastEventId: id || this.#view.lastEventId, lastFrameAt: this.#aliveAt, ...said });
    this.#dispatch(type, data, id);
    const close = type === "stream.close" ? (data as StreamClose | undefined) : undefined;
    // A handler may have closed or replaced the stream already.
    if (close?.reconnect === false && source === this.#source) this.#end("ended");
  }

  #onOpen(open: StreamOpen): void {
    this.#attempt = 0;
    this.#limitMs = silenceLimitMs(open.heartbeat_s);
    clearTimeout(this.#watchdog);
    this.#watchFor(this.#limitMs);
  }

  #dispatch(type: string, data: unknown, id: string): void {
    if (data === undefined) return reportError(new SyntaxError(`${type} ${id}: data is not JSON`));
    for (const handler of [...(this.#handlers.get(type) ?? [])]) {
      try {
        handler(type, data);
      } catch (error) {
        // One broken handler must not cost the others their event.
        reportError(error);
      }
    }
  }

  #end(state: "ended" | "signed-out"): void {
    this.#stop();
    this.#show({ state, nextTryAt: null });
  }

  // Coming back

  #onError(source: EventSource): void {
    if (source !== this.#source) return;
    if (source.readyState === EventSource.CLOSED) return this.#retryLater({ askFirst: true });
    // CONNECTING: the browser comes back by itself and sends Last-Event-ID.
    this.#alive();
    this.#show({ state: "lost" });
  }

  #retryLater({ askFirst }: { askFirst: boolean }): void {
    this.#stop();
    const delayMs = fullJitterMs(this.#attempt, this.#options.random);
    this.#attempt += 1;
    // The question waits as well: every page of a lost replica may have it.
    const retry = setTimeout(() => void this.#tryAgain(retry, askFirst), delayMs);
    this.#retry = retry;
    this.#show({ state: "lost", nextTryAt: Date.now() + delayMs });
  }

  async #tryAgain(retry: Timer, askFirst: boolean): Promise<void> {
    const who = askFirst ? await this.#options.whoAmI().catch(() => "unknown" as const) : "unknown";
    // Meanwhile the line may have been reopened, forgotten or left.
    if (retry !== this.#retry) return;
    if (who === "signed-out") this.#end("signed-out");
    else this.#open();
  }

  #alive(): void {
    this.#aliveAt = Date.now();
    if (this.#watchdog === undefined) this.#watchFor(this.#limitMs);
  }

  // One timer that looks back when it fires, instead of a new one per frame.
  #watchFor(ms: number): void {
    this.#watchdog = setTimeout(() => {
      if (this.#isSilent()) this.#retryLater({ askFirst: false });
      else this.#watchFor(Math.min(this.#limitMs, this.#aliveAt + this.#limitMs - Date.now()));
    }, ms);
  }

  #isSilent(): boolean {
    return Date.now() - this.#aliveAt >= this.#limitMs;
  }

  // The page: in the background timers are throttled, in a frozen tab they stand still.

  #hearPage(): void {
    document.addEventListener("visibilitychange", this.#onPage);
    window.addEventListener("pageshow", this.#onPage);
    window.addEventListener("online", this.#onPage);
  }

  #unhearPage(): void {
    document.removeEventListener("visibilitychange", this.#onPage);
    window.removeEventListener("pageshow", this.#onPage);
    window.removeEventListener("online", this.#onPage);
  }

  #onPage = (): void => {
    if (document.visibilityState === "hidden" || !this.#isWanted()) return;
    const gaveUp = this.#source === null || this.#source.readyState === EventSource.CLOSED;
    if (gaveUp || this.#isSilent()) this.reopen();
  };
}
