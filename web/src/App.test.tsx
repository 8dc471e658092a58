import { act, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import type { Root } from "react-dom/client";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { api, ApiError } from "./api";
import type { Account, Snapshot } from "./api";
import { App } from "./App";
import { pageLine } from "./events";
import { FakeEventSource } from "./events/fake-event-source";

const ADA: Account = { id: "1", email: "ada@example.org", name: "Ada", createdAt: "2026-01-01T00:00:00Z", hasPassword: true };
const BEN: Account = { ...ADA, id: "2", email: "ben@example.org", name: "Ben" };

let root: Root;
let place: HTMLElement;

const find = (testId: string) => place.querySelector<HTMLElement>(`[data-testid=${testId}]`);
const text = (testId: string) => find(testId)?.textContent;
const render = (notice: string | null = null) =>
  act(async () =>
    root.render(
      <StrictMode>
        <App notice={notice} />
      </StrictMode>,
    ),
  );
const sessionOf = (user: string) =>
  vi.mocked(fetch).mockImplementation(() => Promise.resolve(Response.json({ user, expiresInS: 9, lifetimeS: 9, renewalDue: false })));
const signInElsewhere = (account: Account) => {
  vi.mocked(api.account).mockResolvedValue(account);
  sessionOf(account.id);
};
const signedOut = () => vi.mocked(api.account).mockRejectedValue(new ApiError({ title: "Sign in first.", status: 401 }));

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("EventSource", FakeEventSource);
  vi.stubGlobal("IS_REACT_ACT_ENVIRONMENT", true);
  vi.stubGlobal("fetch", vi.fn());
  sessionOf("1");
  vi.spyOn(api, "account").mockResolvedValue(ADA);
  vi.spyOn(api, "providers").mockResolvedValue({ providers: [] });
  vi.spyOn(api, "snapshots").mockResolvedValue({ items: [], nextCursor: null });
  FakeEventSource.all = [];
  place = document.createElement("div");
  root = createRoot(place);
});

afterEach(async () => {
  await act(async () => root.unmount());
  pageLine.forget();
  vi.useRealTimers();
});

test("each provider the server has is a link with its name written out", async () => {
  signedOut();
  vi.mocked(api.providers).mockResolvedValue({ providers: ["google", "kakao", "naver", "other"] });
  await render();

  const links = [...place.querySelectorAll("[data-testid=providers] a")];
  expect(links.map((link) => [link.textContent, link.getAttribute("href")])).toEqual([
    ["Continue with Google", "/api/session/providers/google"],
    ["Continue with Kakao", "/api/session/providers/kakao"],
    ["Continue with Naver", "/api/session/providers/naver"],
    ["Continue with other", "/api/session/providers/other"],
  ]);
});

test.each([
  ["has none", () => Promise.resolve({ providers: [] })],
  ["does not answer", () => Promise.reject(new ApiError({ title: "no", status: 503 }))],
])("when the server %s, nothing but the form is there", async (_, providers) => {
  signedOut();
  vi.mocked(api.providers).mockImplementation(providers);
  await render();

  expect(find("signup-form")).not.toBeNull();
  expect(find("providers")).toBeNull();
});

test("where registration is closed there is the sign-in form alone", async () => {
  signedOut();
  vi.mocked(api.providers).mockResolvedValue({ providers: ["google"], registration: "closed" });
  await render();

  expect(find("signin-form")).not.toBeNull();
  expect(find("provider-google")).not.toBeNull();
  expect([find("signup-form"), find("show-signup")]).toEqual([null, null]);
});

test("how signing in went stands over the sign-in form", async () => {
  signedOut();
  await render("It was cancelled.");

  expect(find("notice")).toMatchObject({ textContent: "It was cancelled.", role: "status" });
  expect(find("signin-form")).not.toBeNull();
});

test("whoever is signed in is not told of it", async () => {
  await render("It was cancelled.");

  expect(find("notice")).toBeNull();
  expect(find("sign-out")).not.toBeNull();
});

test("an account without an email shows its name alone", async () => {
  vi.mocked(api.account).mockResolvedValue({ ...ADA, email: null });
  await render();

  expect(text("account")).toBe("Ada");
});

test("a page that was replaced says so, and comes back by its button", async () => {
  await render();
  await act(async () => FakeEventSource.last.open({}, "100-7"));
  await act(async () => FakeEventSource.last.frame("stream.close", { reason: "replaced", reconnect: false }));
  expect(text("line-state")).toContain("Another window took over");
  expect(text("reopen")).toBe("Continue here");

  await act(async () => find("reopen")?.click());
  expect(FakeEventSource.last.url).toBe("/events?last_event_id=100-7");
  await act(async () => FakeEventSource.last.open({ resume: "complete" }));
  expect(find("line-state")?.dataset.state).toBe("open");
  expect(find("reopen")).toBeNull();
});

test("a page whose user was kicked says so and stays signed in", async () => {
  await render();
  await act(async () => FakeEventSource.last.open());
  await act(async () => FakeEventSource.last.frame("stream.close", { reason: "kicked", reconnect: false }));

  expect(text("line-state")).toContain("All sessions ended");
  expect(text("reopen")).toBe("Try again");
  expect(find("sign-out")).not.toBeNull();
});

test.each([
  ["signed_out", "You are signed out."],
  ["token_expired", "Your session has expired."],
])("%s leads to the sign-in form", async (reason, words) => {
  await render();
  await act(async () => FakeEventSource.last.open());
  await act(async () => FakeEventSource.last.frame("stream.close", { reason, reconnect: false }));

  expect(text("notice")).toBe(words);
  expect(FakeEventSource.unclosed).toEqual([]);
});

test("a stream of another user than the one shown leads to that one's page, and nothing more is heard", async () => {
  await render();
  const first = FakeEventSource.last;
  signInElsewhere(BEN);

  await act(async () => {
    first.open({ user: "2" });
    first.frame("snapshots.generated", { snapshotId: "bens", snapshotCount: 1, timestamp: "2026-01-01T00:00:00Z", serverId: "a" });
  });

  expect(text("account")).toBe("Benben@example.org");
  expect(FakeEventSource.last).not.toBe(first);
  expect(FakeEventSource.last.url).toBe("/events");
  expect(place.textContent).not.toContain("bens");
});

test("a page that is seen again after another user has signed in shows that one", async () => {
  await render();
  signInElsewhere(BEN);
  vi.setSystemTime(Date.now() + 60_000);
  await act(async () => document.dispatchEvent(new Event("visibilitychange")));

  expect(text("account")).toBe("Benben@example.org");
});

test("a page that has found another account tells the others", async () => {
  await render();
  signInElsewhere(BEN);
  const other = new BroadcastChannel("allim-account");
  other.postMessage("1");
  other.postMessage("2");
  vi.useRealTimers();
  await vi.waitFor(async () => {
    await act(async () => {});
    expect(text("account")).toBe("Benben@example.org");
  });
  other.close();
});

test("a call that is refused because another user has signed in shows that one's page", async () => {
  await render();
  signInElsewhere(BEN);
  const problem = { title: "Conflict", status: 409, code: "other_user" };
  const headers = { "Content-Type": "application/problem+json" };
  vi.mocked(fetch).mockResolvedValueOnce(Response.json(problem, { status: 409, headers }));

  await act(async () => find("sign-out")?.click());

  const [path, request] = vi.mocked(fetch).mock.calls.find(([, { method } = {}]) => method === "DELETE") ?? [];
  expect([path, request?.headers]).toEqual(["/api/session", { Accept: "application/json", "Allim-User": "1" }]);
  expect(text("account")).toBe("Benben@example.org");
});

test("whoever has a session without an account can sign in", async () => {
  vi.mocked(api.account).mockRejectedValue(new ApiError({ title: "There is no account.", status: 404 }));
  await render();

  expect(find("show-signup") ?? find("show-signin")).not.toBeNull();
});

test("a page that came too often waits as long as it was told to", async () => {
  vi.mocked(api.account).mockRejectedValue(new ApiError({ title: "Too many requests", status: 429 }, 20));
  await render();
  const calls = vi.mocked(api.account).mock.calls.length;
  await act(async () => vi.advanceTimersByTime(19_000));

  expect(vi.mocked(api.account).mock.calls.length).toBe(calls);
});

const SNAPSHOT: Snapshot = {
  id: "s1",
  status: "generated",
  requestedAt: "2026-01-01T00:00:00Z",
  generatedAt: "2026-01-01T00:00:01Z",
  snapshotCount: 1,
  serverId: "app-1",
  sha256: null,
};

test("a result says through which replica it was heard, also after the stream has moved, and nothing when it was not", async () => {
  vi.mocked(api.snapshots).mockResolvedValue({ items: [SNAPSHOT], nextCursor: null });
  vi.spyOn(api, "snapshot").mockRejectedValue(new Error("not in this test"));
  await render();
  await act(async () => FakeEventSource.last.open({ replica: "app-1" }));
  expect(text("worker")).toBe("app-1");
  expect(find("worker-compared")).toBeNull();

  const heard = { snapshotCount: 2, timestamp: "2026-01-01T00:00:02Z", serverId: "app-1" };
  await act(async () => FakeEventSource.last.frame("snapshots.generated", { ...heard, snapshotId: "s2" }));
  await act(async () => FakeEventSource.last.lose());
  expect(place.textContent).not.toContain("holds this stream");

  await act(async () => FakeEventSource.last.open({ replica: "app-2", resume: "complete" }));
  await act(async () => FakeEventSource.last.frame("snapshots.generated", { ...heard, snapshotId: "s3" }));
  const words = [...place.querySelectorAll("[data-testid=worker-compared]")].map((chip) => chip.textContent);
  expect(words.sort()).toEqual(["heard through app-2", "heard through the same"]);
  expect(place.textContent).not.toContain("holds this stream");
});

test("a replica and a stream that are lost are called the last ones", async () => {
  const labels = () => [...place.querySelectorAll(".facts dt")].map((label) => label.textContent);
  await render();
  await act(async () => FakeEventSource.last.open());
  expect(labels()).toEqual(["Replica", "Last heard", "Last event ID", "Stream"]);

  await act(async () => FakeEventSource.last.lose());
  expect(labels()).toEqual(["Last replica", "Last heard", "Last event ID", "Last stream"]);
});

test("heartbeats are counted apart and push no event out of the log", async () => {
  await render();
  await act(async () => FakeEventSource.last.open());
  await act(async () => {
    for (let n = 0; n < 100; n += 1) FakeEventSource.last.frame("heartbeat", {}, `200-${n}`);
  });

  const types = [...place.querySelectorAll<HTMLElement>("[data-testid=event-row]")].map((row) => row.dataset.type);
  expect(types).toEqual(["stream.open"]);
  expect(find("heartbeats")?.textContent).toContain("100 heartbeats");
  expect(find("heartbeats")?.textContent).toContain("200-99");
});

test("a list that was cleared is not called one that has heard nothing", async () => {
  await render();
  expect(place.textContent).toContain("No event yet.");

  await act(async () => FakeEventSource.last.open());
  await act(async () => find("clear-log")?.click());
  expect(place.textContent).toContain("No event since the list was cleared.");
});

test.each([
  ["", "Type the name"],
  ["Orders", "begins with a small letter"],
  ["heartbeat", "listened to already"],
])("the event type %j is refused with the reason beside it", async (type, reason) => {
  await render();
  const form = find("type-form") as HTMLFormElement;
  const input = form.querySelector("input") as HTMLInputElement;
  await act(async () => {
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value")?.set?.call(input, type);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  await act(async () => form.requestSubmit());

  expect(text("error-type")).toContain(reason);
  expect(input.getAttribute("aria-invalid")).toBe("true");
  expect(input.getAttribute("aria-describedby")).toBe(find("error-type")?.id);
});

test("a list that loads says so in its button", async () => {
  vi.mocked(api.snapshots).mockResolvedValueOnce({ items: [SNAPSHOT], nextCursor: "2" });
  await render();
  await act(async () => FakeEventSource.last.open());
  expect(text("load-more")).toBe("Load more");

  vi.mocked(api.snapshots).mockReturnValue(new Promise(() => {}));
  await act(async () => FakeEventSource.last.open({ resume: "reset" }));
  expect(find("load-more")?.textContent).toBe("Loading…");
  expect(find("load-more")?.getAttribute("aria-disabled")).toBe("true");
});

test("a sign-out that takes long says so", async () => {
  vi.spyOn(api, "signOut").mockReturnValue(new Promise(() => {}));
  await render();
  await act(async () => find("sign-out")?.click());
  await act(async () => find("sign-out")?.click());

  expect(find("sign-out")?.textContent).toBe("Signing out…");
  expect(find("sign-out")?.getAttribute("aria-disabled")).toBe("true");
  expect(api.signOut).toHaveBeenCalledOnce();
});
