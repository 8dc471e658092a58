import { act, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import type { Root } from "react-dom/client";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { api, ApiError } from "./api";
import type { Account } from "./api";
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
