/**
 * The line: what a page has to the backend, over as many streams as it takes.
 *
 * Owns the one `EventSource` and the decision when to open a new one. Native
 * `EventSource` comes back by itself from a lost connection; it gives up for
 * good on any status but 200, and it cannot see a connection that went silent.
 * Both are healed here, with the last event ID in the query, because only the
 * browser's own reconnect sends it as a header. It knows nothing of sessions:
 * what it asks the server for beside the stream is handed in.
 */
import { BASE_MS, fullJitterMs } from "./backoff";
import { LINE_TYPES, parseData, positionOf } from "./frames";
import type { DataOf, StreamClose, StreamExpiring, StreamOpen } from "./frames";
import { Refusal } from "./refusal";
import { NO_STREAM, readFrame, silenceLimitMs } from "./view";
import type { LineView } from "./view";

/** Distributes over the types, so that a handler which tests `type` also narrows `data`. */
type FrameOf<Type extends string> = Type extends string ? [type: Type, data: DataOf<Type>] : never;

/** While it runs, `view().lastEventId` is the id of the frame it was called for. */
export type Handler<Type extends string = string> = (...frame: FrameOf<Type>) => void;

/** What a line asks for throws a `Refusal` when the server says no; after any other error it tries again. */
export interface LineOptions {
  url: string;
  /** Asks whether a stream would be granted, once the browser has given up: `EventSource` hides the status. */
  ask?: () => Promise<void>;
  /** A fresh ticket for each new `EventSource`, for pages whose requests carry no session. */
  ticket?: () => Promise<string>;
  /** Renews the session, so that its streams go on; called some time before the session expires. */
  renew?: () => Promise<void>;
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
  // Runs from the moment a stream is wanted, so a ticket that never comes is seen as well.
  #watchdog: Timer | undefined;
  #retry: Timer | undefined;
  #retryNotBefore = 0;
  #renewal: Timer | undefined;
  #linger: Timer | undefined;
  // What was asked for in an earlier turn comes too late.
  #turn = 0;

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
    else if (this.#watchdog === undefined && this.#retry === undefined && this.#isWanted()) this.#open();
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
    this.#alive();
    const { ticket } = this.#options;
    if (ticket) this.#request(ticket, (fresh) => this.#connect({ ticket: fresh }), this.#onNoTicket);
    else this.#connect({});
    // A line that was lost stays so until a stream says otherwise.
    this.#show({ state: this.#view.state === "lost" ? "lost" : "connecting", nextTryAt: null });
  }

  #connect(query: { ticket?: string }): void {
    const source = new EventSource(this.#url(query));
    this.#source = source;
    this.#listening.clear();
    source.onerror = () => this.#onError(source);
    for (const type of LINE_TYPES) this.#listen(source, type);
    for (const type of this.#handlers.keys()) this.#listen(source, type);
  }

  #url(query: Record<string, string>): string {
    const { url } = this.#options;
    const { lastEventId } = this.#view;
    const text = String(new URLSearchParams({ ...query, ...(lastEventId !== null && { last_event_id: lastEventId }) }));
    return text === "" ? url : `${url}${url.includes("?") ? "&" : "?"}${text}`;
  }

  #onNoTicket = (refusal: Refusal | null): void => {
    if (refusal?.ending) this.#end(refusal.ending);
    else this.#retryLater({ atLeast_s: refusal?.retryAfter_s ?? 0 });
  };

  #listen(source: EventSource, type: string): void {
    if (this.#listening.has(type)) return;
    this.#listening.add(type);
    source.addEventListener(type, (event: MessageEvent<string>) => this.#onFrame(source, event));
  }

  #stop(): void {
    clearTimeout(this.#watchdog);
    clearTimeout(this.#retry);
    clearTimeout(this.#renewal);
    this.#watchdog = this.#retry = this.#renewal = undefined;
    this.#source?.close();
    this.#source = null;
    this.#turn += 1;
  }

  /** Calls back within the same turn only: meanwhile the line may have been reopened, forgotten or left. */
  #request<Answer>(ask: () => Promise<Answer>, got: (answer: Answer) => void, failed: (why: Refusal | null) => void): void {
    const turn = this.#turn;
    void ask().then(
      (answer) => turn === this.#turn && got(answer),
      (error: unknown) => turn === this.#turn && failed(error instanceof Refusal ? error : null),
    );
  }

  #onFrame(source: EventSource, event: MessageEvent<string>): void {
    if (source !== this.#source) return;
    this.#alive();
    const { type } = event;
    const id = positionOf(event.lastEventId);
    const data = parseData(event.data);
    const said = data === undefined ? {} : readFrame(type, data);
    if (type === "stream.open" && data !== undefined) this.#onOpen(data as StreamOpen);
    if (type === "stream.expiring" && data !== undefined) this.#onExpiring(data as StreamExpiring);
    this.#show({ lastEventId: id || this.#view.lastEventId, lastFrameAt: this.#aliveAt, ...said });
    this.#dispatch(type, data, id);
    const close = type === "stream.close" ? (data as StreamClose | undefined) : undefined;
    // A handler may have closed or replaced the stream already.
    if (close?.reconnect === false && source === this.#source) this.#end({ state: "ended" });
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

  #end(ending: Partial<LineView>): void {
    this.#stop();
    this.#show({ ...ending, nextTryAt: null });
  }

  // The session

  #onExpiring({ expires_in_s }: StreamExpiring): void {
    if (this.#renewal === undefined) this.#renewBy(Date.now() + expires_in_s * 1_000);
  }

  // Not at once: every page of the session is told at the same moment, and any renewal serves them all.
  #renewBy(deadline: number, atLeast_ms = 0): void {
    const { renew, random = Math.random } = this.#options;
    const left = deadline - Date.now();
    const delay = Math.max(atLeast_ms, (random() * left) / 2);
    this.#renewal = undefined;
    // Too late: `stream.close` tells the end.
    if (!renew || delay > left) return;
    this.#renewal = setTimeout(() => {
      this.#request(
        renew,
        () => (this.#renewal = undefined),
        (refusal) => {
          if (refusal?.ending) this.#renewal = undefined;
          else this.#renewBy(deadline, Math.max(BASE_MS, (refusal?.retryAfter_s ?? 0) * 1_000));
        },
      );
    }, delay);
  }

  // Coming back

  #onError(source: EventSource): void {
    if (source !== this.#source) return;
    if (source.readyState === EventSource.CLOSED) return this.#retryLater({ askFirst: true });
    // CONNECTING: the browser comes back by itself and sends Last-Event-ID.
    this.#alive();
    this.#show({ state: "lost" });
  }

  #retryLater({ askFirst = false, atLeast_s = 0 }): void {
    this.#stop();
    this.#retryNotBefore = Date.now() + atLeast_s * 1_000;
    const nextTryAt = this.#retryNotBefore + fullJitterMs(this.#attempt, this.#options.random);
    this.#attempt += 1;
    // The question waits as well: every page of a lost replica may have it.
    this.#retry = setTimeout(() => this.#tryAgain(askFirst), nextTryAt - Date.now());
    this.#show({ state: "lost", nextTryAt, ...(atLeast_s > 0 && { closeReason: "busy" }) });
  }

  #tryAgain(askFirst: boolean): void {
    const { ask } = this.#options;
    if (askFirst && ask) this.#request(ask, () => this.#open(), this.#onRefusal);
    else this.#open();
  }

  #onRefusal = (refusal: Refusal | null): void => {
    if (refusal?.ending) this.#end(refusal.ending);
    else if (refusal?.retryAfter_s) this.#retryLater({ askFirst: true, atLeast_s: refusal.retryAfter_s });
    else this.#open();
  };

  #alive(): void {
    this.#aliveAt = Date.now();
    if (this.#watchdog === undefined) this.#watchFor(this.#limitMs);
  }

  // One timer that looks back when it fires, instead of a new one per frame.
  #watchFor(ms: number): void {
    this.#watchdog = setTimeout(() => {
      if (this.#isSilent()) this.#retryLater({});
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
    // The server has asked for patience; only somebody's own press of a button goes before it.
    if (Date.now() < this.#retryNotBefore) return;
    const gaveUp = this.#watchdog === undefined || this.#source?.readyState === EventSource.CLOSED;
    if (gaveUp || this.#isSilent()) this.reopen();
  };
}
