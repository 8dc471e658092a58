import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { FakeEventSource } from "./fake-event-source";
import { Line, LINGER_MS } from "./line";
import { Refusal } from "./refusal";

const ask = vi.fn<() => Promise<void>>();
const ticket = vi.fn<() => Promise<string>>();
const renew = vi.fn<() => Promise<void>>();
let line: Line;
let leaves: (() => void)[];

function subscribe(types: string[] = ["a"], handler: (...frame: unknown[]) => void = () => {}): () => void {
  const leave = line.subscribe(types, handler);
  leaves.push(leave);
  return leave;
}

function page(event: "visibilitychange" | "pageshow" | "online"): void {
  (event === "visibilitychange" ? document : window).dispatchEvent(new Event(event));
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("EventSource", FakeEventSource);
  FakeEventSource.all = [];
  ask.mockReset().mockResolvedValue();
  renew.mockReset().mockResolvedValue();
  leaves = [];
  line = new Line({ url: "/events", ask, renew, random: () => 0.5 });
});

afterEach(() => {
  for (const leave of leaves) leave();
  vi.advanceTimersByTime(LINGER_MS);
  expect(vi.getTimerCount()).toBe(0);
  expect(FakeEventSource.unclosed).toEqual([]);
  vi.useRealTimers();
});

describe("one stream for all", () => {
  test("the first subscriber opens it, the others share it", () => {
    expect(FakeEventSource.all).toHaveLength(0);

    subscribe(["a", "b"]);
    subscribe(["b"]);
    subscribe(["c"]);

    expect(FakeEventSource.all).toHaveLength(1);
    expect(FakeEventSource.last.url).toBe("/events");
    const { listened } = FakeEventSource.last;
    expect(listened).toEqual(expect.arrayContaining(["a", "b", "c", "stream.open", "heartbeat"]));
    expect(listened).toHaveLength(new Set(listened).size);
  });

  test("it closes a moment after the last one has left", () => {
    const first = subscribe();
    const second = subscribe();

    first();
    first();
    vi.advanceTimersByTime(LINGER_MS * 2);
    expect(FakeEventSource.unclosed).toHaveLength(1);

    second();
    vi.advanceTimersByTime(LINGER_MS - 1);
    expect(FakeEventSource.unclosed).toHaveLength(1);
    vi.advanceTimersByTime(1);
    expect(FakeEventSource.unclosed).toHaveLength(0);
  });

  test("whoever comes within that moment keeps the stream", () => {
    subscribe()();
    vi.advanceTimersByTime(LINGER_MS - 1);
    subscribe(["b"]);
    vi.advanceTimersByTime(LINGER_MS * 2);

    expect(FakeEventSource.all).toHaveLength(1);
    expect(FakeEventSource.last.listened).toContain("b");
    expect(FakeEventSource.unclosed).toHaveLength(1);
  });

  test("whoever comes later resumes where the line stood", () => {
    const leave = subscribe();
    FakeEventSource.last.open({}, "100-7");
    leave();
    vi.advanceTimersByTime(LINGER_MS);
    subscribe();

    expect(FakeEventSource.last.url).toBe("/events?last_event_id=100-7");
  });

  test("a forgotten line starts anew", () => {
    const leave = subscribe();
    FakeEventSource.last.open({}, "100-7");
    line.forget();
    leave();
    expect(line.view()).toMatchObject({ state: "connecting", lastEventId: null, replica: null });

    subscribe();

    expect(FakeEventSource.last.url).toBe("/events");
  });

  test("watching alone opens nothing", () => {
    line.watch(() => {})();

    expect(FakeEventSource.all).toHaveLength(0);
  });
});

describe("events", () => {
  test("a handler gets type and data of its own types only", () => {
    const handler = vi.fn();
    subscribe(["a"], handler);
    subscribe(["b"]);
    FakeEventSource.last.frame("a", { n: 1 });
    FakeEventSource.last.frame("b", { n: 2 });

    expect(handler.mock.calls).toEqual([["a", { n: 1 }]]);
  });

  test("while a handler runs, the line stands at its event", () => {
    const ids: (string | null)[] = [];
    subscribe(["a"], () => ids.push(line.view().lastEventId));
    FakeEventSource.last.frame("a", 1, "1-0");
    FakeEventSource.last.frame("a", 2, "2-0");
    FakeEventSource.last.frame("a", 3);

    expect(ids).toEqual(["1-0", "2-0", "2-0"]);
  });

  test("a type that joins an open stream is heard on it", () => {
    const handler = vi.fn();
    subscribe(["a"]);
    subscribe(["late"], handler);
    FakeEventSource.last.frame("late", 1);

    expect(handler).toHaveBeenCalledOnce();
  });

  test("a handler that left hears nothing more", () => {
    const handler = vi.fn();
    subscribe(["a"]);
    subscribe(["a"], handler)();
    FakeEventSource.last.frame("a", 1);

    expect(handler).not.toHaveBeenCalled();
  });

  test("a broken handler costs the others nothing", () => {
    const reported = vi.fn();
    vi.stubGlobal("reportError", reported);
    const handler = vi.fn();
    subscribe(["a"], () => {
      throw new Error("broken");
    });
    subscribe(["a"], handler);
    FakeEventSource.last.frame("a", 1);

    expect(handler).toHaveBeenCalledOnce();
    expect(reported).toHaveBeenCalledOnce();
  });

  test("data that is no JSON is reported and moves the last event ID", () => {
    const reported = vi.fn();
    vi.stubGlobal("reportError", reported);
    const handler = vi.fn();
    subscribe(["a"], handler);
    FakeEventSource.last.raw("a", "{", "3-0");

    expect(handler).not.toHaveBeenCalled();
    expect(reported).toHaveBeenCalledOnce();
    expect(line.view().lastEventId).toBe("3-0");
  });
});

describe("the view", () => {
  test("stream.open tells replica, stream and verdict", () => {
    const resets = [{ topic: "system", reason: "trimmed" }];
    subscribe();
    expect(line.view()).toMatchObject({ state: "connecting", resume: null });
    FakeEventSource.last.open({ replica: "app-3", stream: "s9", resume: "reset", replayed: 4, resets }, "5-0");

    expect(line.view()).toMatchObject({
      state: "open",
      resume: "reset",
      replayed: 4,
      resets,
      replica: "app-3",
      streamId: "s9",
      lastEventId: "5-0",
      lastFrameAt: Date.now(),
    });
  });

  test("a gap stays until the next stream opens", () => {
    subscribe();
    FakeEventSource.last.open();
    FakeEventSource.last.frame("stream.gap", { topics: ["system"], reason: "origin" });
    expect(line.view().gap).toEqual({ topics: ["system"], reason: "origin" });

    FakeEventSource.last.open();
    expect(line.view().gap).toBeNull();
  });

  test("watchers are told of every change, and the view is stable between them", () => {
    const watcher = vi.fn();
    const unwatch = line.watch(watcher);
    subscribe();
    watcher.mockClear();
    FakeEventSource.last.open();
    const view = line.view();

    expect(watcher).toHaveBeenCalledOnce();
    expect(line.view()).toBe(view);
    unwatch();
    FakeEventSource.last.frame("heartbeat", {});
    expect(watcher).toHaveBeenCalledOnce();
  });
});

describe("coming back", () => {
  test("a lost connection is left to the browser", () => {
    subscribe();
    FakeEventSource.last.open();
    FakeEventSource.last.lose();

    expect(line.view().state).toBe("lost");
    vi.advanceTimersByTime(30_000);
    expect(FakeEventSource.all).toHaveLength(1);

    FakeEventSource.last.open({ resume: "complete", replayed: 2 }, "101-0");
    expect(line.view()).toMatchObject({ state: "open", resume: "complete", replayed: 2 });
  });

  test("a refused stream is reopened with the last event ID", async () => {
    subscribe();
    FakeEventSource.last.open();
    FakeEventSource.last.frame("a", 1, "200-1");
    FakeEventSource.last.refuse();
    expect(line.view()).toMatchObject({ state: "lost", nextTryAt: Date.now() + 500 });
    expect(ask).not.toHaveBeenCalled();

    await vi.advanceTimersByTimeAsync(500);

    expect(ask).toHaveBeenCalledOnce();
    expect(FakeEventSource.all).toHaveLength(2);
    expect(FakeEventSource.last.url).toBe("/events?last_event_id=200-1");
    expect(FakeEventSource.last.listened).toContain("a");
    expect(line.view()).toMatchObject({ state: "lost", nextTryAt: null });
  });

  test("the waits double up to the cap and start over once a stream is open", async () => {
    const waits: number[] = [];
    const refuse = async () => {
      FakeEventSource.last.refuse();
      const wait = (line.view().nextTryAt ?? 0) - Date.now();
      waits.push(wait);
      await vi.advanceTimersByTimeAsync(wait);
    };
    subscribe();
    for (let n = 0; n < 7; n += 1) await refuse();
    FakeEventSource.last.open();
    await refuse();

    expect(waits).toEqual([500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 500]);
  });

  test.each([
    [401, { state: "signed-out" }],
    [204, { state: "ended", closeReason: "kicked" }],
    [403, { state: "ended", closeReason: "forbidden" }],
  ])("a stream that would be refused with %i is not asked for again", async (status, ending) => {
    ask.mockRejectedValue(new Refusal(status));
    subscribe();
    FakeEventSource.last.refuse();
    await vi.advanceTimersByTimeAsync(600_000);
    page("visibilitychange");

    expect(line.view()).toMatchObject({ ...ending, nextTryAt: null });
    expect(FakeEventSource.all).toHaveLength(1);
    expect(ask).toHaveBeenCalledOnce();
  });

  test.each([429, 503])("after %i with Retry-After it asks again no sooner, however often the page is seen", async (status) => {
    ask.mockRejectedValueOnce(new Refusal(status, 20));
    subscribe();
    FakeEventSource.last.refuse();
    await vi.advanceTimersByTimeAsync(500);
    expect(line.view()).toMatchObject({ state: "lost", closeReason: "busy", nextTryAt: Date.now() + 20_000 + 1_000 });

    await vi.advanceTimersByTimeAsync(19_999);
    page("visibilitychange");
    expect(ask).toHaveBeenCalledOnce();
    expect(FakeEventSource.all).toHaveLength(1);

    await vi.advanceTimersByTimeAsync(1_001);
    expect(ask).toHaveBeenCalledTimes(2);
    expect(FakeEventSource.all).toHaveLength(2);
  });

  test("whoever presses the button does not wait for Retry-After", async () => {
    ask.mockRejectedValueOnce(new Refusal(429, 20));
    subscribe();
    FakeEventSource.last.refuse();
    await vi.advanceTimersByTimeAsync(500);
    line.reopen();

    expect(FakeEventSource.unclosed).toHaveLength(1);
  });

  test.each([429, 500])("a refusal with %i that names no time is tried at once: it has waited already", async (status) => {
    ask.mockRejectedValue(new Refusal(status));
    subscribe();
    FakeEventSource.last.refuse();
    await vi.advanceTimersByTimeAsync(500);

    expect(FakeEventSource.unclosed).toHaveLength(1);
  });

  test("a line that cannot ask tries again", async () => {
    line = new Line({ url: "/events", random: () => 0.5 });
    subscribe();
    FakeEventSource.last.refuse();
    await vi.advanceTimersByTimeAsync(500);

    expect(FakeEventSource.unclosed).toHaveLength(1);
  });

  test("a question that fails is no answer: it goes on trying", async () => {
    ask.mockRejectedValue(new TypeError("network"));
    subscribe();
    FakeEventSource.last.refuse();
    await vi.advanceTimersByTimeAsync(500);

    expect(FakeEventSource.unclosed).toHaveLength(1);
  });

  test("an answer that comes after everybody has left opens nothing", async () => {
    let answer = () => {};
    ask.mockReturnValue(new Promise((resolve) => (answer = resolve)));
    const leave = subscribe();
    FakeEventSource.last.refuse();
    await vi.advanceTimersByTimeAsync(500);
    leave();
    await vi.advanceTimersByTimeAsync(LINGER_MS);
    answer();
    await vi.advanceTimersByTimeAsync(0);

    expect(FakeEventSource.all).toHaveLength(1);
  });

  test("a try that is due can be made now", () => {
    subscribe();
    FakeEventSource.last.refuse();
    line.reopen();

    expect(FakeEventSource.all).toHaveLength(2);
    expect(line.view().nextTryAt).toBeNull();
  });
});

describe("the watchdog", () => {
  test("40 s without any frame: a new stream, resumed", () => {
    subscribe();
    FakeEventSource.last.open({}, "300-0");
    vi.advanceTimersByTime(39_999);
    expect(line.view().state).toBe("open");

    vi.advanceTimersByTime(1);
    expect(line.view().state).toBe("lost");
    expect(FakeEventSource.unclosed).toHaveLength(0);
    vi.advanceTimersByTime(500);

    expect(FakeEventSource.last.url).toBe("/events?last_event_id=300-0");
    expect(ask).not.toHaveBeenCalled();
  });

  test("any frame is a sign of life", () => {
    subscribe(["a"]);
    FakeEventSource.last.open();
    for (const type of ["heartbeat", "a", "heartbeat"]) {
      vi.advanceTimersByTime(39_000);
      FakeEventSource.last.frame(type, {});
    }
    vi.advanceTimersByTime(39_999);

    expect(FakeEventSource.all).toHaveLength(1);
    expect(line.view().state).toBe("open");
  });

  test("the limit follows the heartbeat the stream has told", () => {
    subscribe();
    FakeEventSource.last.open({ heartbeat_s: 2 });
    vi.advanceTimersByTime(13_999);
    expect(line.view().state).toBe("open");

    vi.advanceTimersByTime(1);
    expect(line.view().state).toBe("lost");
  });

  test("a stream that never opens is given up as well", () => {
    subscribe();
    vi.advanceTimersByTime(40_000 + 500);

    expect(FakeEventSource.all).toHaveLength(2);
    expect(FakeEventSource.unclosed).toHaveLength(1);
  });
});

describe("the page", () => {
  test("a page that was frozen resumes as soon as it is seen, without waiting", () => {
    subscribe();
    FakeEventSource.last.open({}, "400-0");
    vi.setSystemTime(Date.now() + 120_000); // timers stood still meanwhile
    page("visibilitychange");

    expect(FakeEventSource.all).toHaveLength(2);
    expect(FakeEventSource.last.url).toBe("/events?last_event_id=400-0");
  });

  test("a page that is seen again in time keeps its stream", () => {
    subscribe();
    FakeEventSource.last.open();
    vi.advanceTimersByTime(20_000);
    page("visibilitychange");
    page("pageshow");

    expect(FakeEventSource.all).toHaveLength(1);
  });

  test.each(["pageshow", "online", "visibilitychange"] as const)("%s cuts the wait short", (event) => {
    subscribe();
    FakeEventSource.last.refuse();
    page(event);

    expect(FakeEventSource.all).toHaveLength(2);
  });

  test("nobody listens to the page after the last one has left", () => {
    const listening = new Set<string>();
    for (const target of [window, document]) {
      vi.spyOn(target, "addEventListener").mockImplementation((type: string) => void listening.add(type));
      vi.spyOn(target, "removeEventListener").mockImplementation((type: string) => void listening.delete(type));
    }
    const leave = subscribe();
    expect([...listening].sort()).toEqual(["online", "pageshow", "visibilitychange"]);

    leave();
    expect(listening.size).toBe(0);
  });
});

describe("stream.close", () => {
  test.each(["kicked", "replaced", "signed_out", "token_expired"])("%s ends the line for good", async (reason) => {
    subscribe();
    FakeEventSource.last.open();
    FakeEventSource.last.frame("stream.close", { reason, reconnect: false });
    await vi.advanceTimersByTimeAsync(600_000);
    page("pageshow");
    subscribe(["b"]);

    expect(line.view()).toMatchObject({ state: "ended", closeReason: reason });
    expect(FakeEventSource.all).toHaveLength(1);
    expect(FakeEventSource.unclosed).toHaveLength(0);
  });

  test("an ended line can be reopened by hand", () => {
    subscribe();
    FakeEventSource.last.open();
    FakeEventSource.last.frame("stream.close", { reason: "kicked", reconnect: false });
    line.reopen();
    expect(line.view().state).toBe("connecting");

    FakeEventSource.last.open();
    expect(line.view()).toMatchObject({ state: "open", closeReason: null });
  });

  test("reconnect true is noted and left to the browser", () => {
    subscribe();
    FakeEventSource.last.open();
    FakeEventSource.last.frame("stream.close", { reason: "rotate", reconnect: true });
    FakeEventSource.last.lose();

    expect(line.view()).toMatchObject({ state: "lost", closeReason: "rotate" });
    expect(FakeEventSource.unclosed).toHaveLength(1);
  });

  test("a handler may forget the line while it is told of its end", () => {
    subscribe(["stream.close"], () => line.forget());
    FakeEventSource.last.open();
    FakeEventSource.last.frame("stream.close", { reason: "signed_out", reconnect: false });

    expect(line.view().state).toBe("connecting");
  });
});

describe("tickets", () => {
  beforeEach(() => {
    let count = 0;
    ticket.mockReset().mockImplementation(async () => `t${(count += 1)}`);
    line = new Line({ url: "https://api.example/events?topics=news", ticket, random: () => 0.5 });
  });

  const settle = () => vi.advanceTimersByTimeAsync(0);

  test("a stream is opened with a ticket, one whatever is subscribed meanwhile", async () => {
    subscribe(["a"]);
    subscribe(["b"]);
    page("visibilitychange");
    expect(FakeEventSource.all).toHaveLength(0);
    expect(line.view().state).toBe("connecting");
    await settle();

    expect(FakeEventSource.all.map(({ url }) => url)).toEqual(["https://api.example/events?topics=news&ticket=t1"]);
    expect(FakeEventSource.last.listened).toEqual(expect.arrayContaining(["a", "b"]));
  });

  test("a lost connection is left to the browser, which has ticket and proof", async () => {
    subscribe();
    await settle();
    FakeEventSource.last.open({}, "100-7~proof");
    FakeEventSource.last.lose();
    await vi.advanceTimersByTimeAsync(30_000);

    expect(FakeEventSource.all).toHaveLength(1);
    expect(ticket).toHaveBeenCalledOnce();
  });

  test("a new EventSource has a new ticket, and the position without its proof", async () => {
    subscribe();
    await settle();
    FakeEventSource.last.open({}, "100-7~proof");
    FakeEventSource.last.refuse();
    await vi.advanceTimersByTimeAsync(500);

    expect(FakeEventSource.last.url).toBe("https://api.example/events?topics=news&ticket=t2&last_event_id=100-7");
    expect(line.view().lastEventId).toBe("100-7");
  });

  test.each([
    [401, { state: "signed-out" }],
    [403, { state: "ended", closeReason: "forbidden" }],
  ])("a ticket refused with %i ends the line", async (status, ending) => {
    ticket.mockRejectedValue(new Refusal(status));
    subscribe();
    await vi.advanceTimersByTimeAsync(600_000);

    expect(line.view()).toMatchObject(ending);
    expect(ticket).toHaveBeenCalledOnce();
    expect(FakeEventSource.all).toHaveLength(0);
  });

  test.each([
    ["the network is away", new TypeError("network"), 500],
    ["there are too many", new Refusal(429, 7), 7_500],
  ])("when %s, the ticket is asked for again", async (_, error, wait) => {
    ticket.mockRejectedValueOnce(error);
    subscribe();
    await settle();
    expect(line.view()).toMatchObject({ state: "lost", nextTryAt: Date.now() + wait });

    await vi.advanceTimersByTimeAsync(wait - 1);
    expect(ticket).toHaveBeenCalledOnce();
    await vi.advanceTimersByTimeAsync(1);
    expect(FakeEventSource.all).toHaveLength(1);
  });

  test("a ticket that never comes is given up like a silent stream", async () => {
    ticket.mockReturnValueOnce(new Promise(() => {}));
    subscribe();
    await vi.advanceTimersByTimeAsync(40_000 + 500);

    expect(ticket).toHaveBeenCalledTimes(2);
    expect(FakeEventSource.all).toHaveLength(1);
  });

  test("a ticket that comes after everybody has left opens nothing", async () => {
    let deliver: (ticket: string) => void = () => {};
    ticket.mockReturnValueOnce(new Promise((resolve) => (deliver = resolve)));
    subscribe()();
    await vi.advanceTimersByTimeAsync(LINGER_MS);
    deliver("late");
    await settle();

    expect(FakeEventSource.all).toHaveLength(0);
  });
});

describe("renewal", () => {
  beforeEach(() => {
    subscribe();
    FakeEventSource.last.open();
  });

  const expiring = (expires_in_s = 60) => FakeEventSource.last.frame("stream.expiring", { expires_in_s });
  /** Time passes, and the stream is alive. */
  const pass = async (ms: number) => {
    await vi.advanceTimersByTimeAsync(ms);
    FakeEventSource.last.frame("heartbeat", {});
  };

  test("the session is renewed well before it expires, once, and the stream stays", async () => {
    expiring();
    expiring();
    await pass(14_999);
    expect(renew).not.toHaveBeenCalled();

    await pass(1);
    await pass(30_000);
    await pass(30_000);
    expect(renew).toHaveBeenCalledOnce();
    expect(FakeEventSource.all).toHaveLength(1);
    expect(line.view().state).toBe("open");
  });

  test("the renewed session expires as well", async () => {
    expiring();
    await pass(15_000);
    expiring();
    await pass(15_000);

    expect(renew).toHaveBeenCalledTimes(2);
  });

  test("while it fails it is tried again, up to the end", async () => {
    renew.mockRejectedValueOnce(new TypeError("network")).mockRejectedValueOnce(new Refusal(503, 30));
    expiring();
    await pass(15_000); // of the 45 s left a quarter
    await pass(11_250);
    expect(renew).toHaveBeenCalledTimes(2);

    await pass(29_999);
    expect(renew).toHaveBeenCalledTimes(2);
    await pass(1);
    expect(renew).toHaveBeenCalledTimes(3);
  });

  test("nothing is tried after the end", async () => {
    renew.mockRejectedValue(new TypeError("network"));
    expiring(4);
    await pass(4_000);
    const tries = renew.mock.calls.length;
    await pass(30_000);

    expect(tries).toBeGreaterThan(1);
    expect(renew).toHaveBeenCalledTimes(tries);
  });

  test("a session past its maximum is let go", async () => {
    renew.mockRejectedValue(new Refusal(401));
    expiring();
    await pass(15_000);
    await pass(30_000);
    expect(renew).toHaveBeenCalledOnce();

    FakeEventSource.last.frame("stream.close", { reason: "token_expired", reconnect: false });
    expect(line.view()).toMatchObject({ state: "ended", closeReason: "token_expired" });
  });

  test("a line that is forgotten renews nothing", async () => {
    expiring();
    line.forget();
    await vi.advanceTimersByTimeAsync(60_000);

    expect(renew).not.toHaveBeenCalled();
  });
});
