/** A scripted EventSource: tests open it, feed it and break it by hand. */
export class FakeEventSource extends EventTarget {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSED = 2;
  static all: FakeEventSource[] = [];

  readonly listened: string[] = [];
  readyState = FakeEventSource.CONNECTING;
  onerror: (() => void) | null = null;
  #lastEventId = "";

  constructor(readonly url: string) {
    super();
    FakeEventSource.all.push(this);
  }

  static get last(): FakeEventSource {
    const last = this.all.at(-1);
    if (!last) throw new Error("no EventSource was opened");
    return last;
  }

  static get unclosed(): FakeEventSource[] {
    return this.all.filter((source) => source.readyState !== this.CLOSED);
  }

  override addEventListener(type: string, listener: EventListenerOrEventListenerObject): void {
    this.listened.push(type);
    super.addEventListener(type, listener);
  }

  close(): void {
    this.readyState = FakeEventSource.CLOSED;
  }

  frame(type: string, data: unknown, id = this.#lastEventId): void {
    this.raw(type, JSON.stringify(data), id);
  }

  raw(type: string, data: string, id = this.#lastEventId): void {
    this.readyState = FakeEventSource.OPEN;
    this.#lastEventId = id;
    this.dispatchEvent(new MessageEvent(type, { data, lastEventId: id }));
  }

  open(change: Record<string, unknown> = {}, id = "100-0"): void {
    const open = { stream: "s1", user: "1", replica: "app-1", resume: "new", replayed: 0, resets: [], heartbeat_s: 15 };
    this.frame("stream.open", { ...open, ...change }, id);
  }

  /** The connection was lost; the browser comes back by itself. */
  lose(): void {
    this.readyState = FakeEventSource.CONNECTING;
    this.onerror?.();
  }

  /** Any status but 200: the browser gives up. */
  refuse(): void {
    this.readyState = FakeEventSource.CLOSED;
    this.onerror?.();
  }
}
