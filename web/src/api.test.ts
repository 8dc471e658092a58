import { expect, test, vi } from "vitest";
import { api, ApiError, wordsFor } from "./api";

function answer(status: number, body: unknown, headers: Record<string, string> = {}): void {
  const response = new Response(JSON.stringify(body), { status, headers: { "Content-Type": "application/json", ...headers } });
  vi.stubGlobal("fetch", vi.fn().mockResolvedValue(response));
}

const failure = (call: Promise<unknown>): Promise<ApiError> =>
  call.then(
    () => Promise.reject(new Error("the call went well")),
    (error: ApiError) => error,
  );

test("a page is asked for with limit and cursor", async () => {
  answer(200, { items: [], nextCursor: null });
  await api.snapshots(10, "a b&c");

  expect(fetch).toHaveBeenCalledWith("/api/accounts/me/snapshots?limit=10&cursor=a+b%26c", expect.anything());
});

test("a body is JSON and says so", async () => {
  answer(200, { account: {} });
  await api.signIn({ email: "a@b.c", password: "x" });

  expect(fetch).toHaveBeenCalledWith(
    "/api/session",
    expect.objectContaining({
      method: "POST",
      body: '{"email":"a@b.c","password":"x"}',
      headers: { Accept: "application/json", "Content-Type": "application/json" },
    }),
  );
});

test("a problem names its fields; what belongs to none of the form is not lost", async () => {
  const errors = [
    { field: "password", message: "too short" },
    { field: "body", message: "too odd" },
  ];
  answer(422, { title: "Wrong", status: 422, errors }, { "Content-Type": "application/problem+json" });
  const error = await failure(api.signIn({ email: "", password: "" }));

  expect(error.status).toBe(422);
  expect(error.of("password")).toBe("too short");
  expect(error.of("email")).toBeUndefined();
  expect(error.besides(["email", "password"])).toEqual(["body: too odd"]);
});

test("a problem says when to come back", async () => {
  answer(503, { title: "Busy", status: 503, detail: "Not now." }, { "Retry-After": "2", "Content-Type": "application/problem+json" });

  expect(wordsFor(await failure(api.requestSnapshot()))).toBe("Not now. Try again in 2 s.");
});

test("an answer that is no problem document still has words", async () => {
  const page = new Response("<html>", { status: 502, headers: { "Content-Type": "text/html" } });
  vi.stubGlobal("fetch", vi.fn().mockResolvedValue(page));

  expect(wordsFor(await failure(api.signOut()))).toBe("The server answered with status 502.");
});

test("a network that is away is told as such, the caller's own abort is not", async () => {
  vi.stubGlobal("fetch", vi.fn().mockRejectedValue(new TypeError("Failed to fetch")));
  expect(wordsFor(await failure(api.account()))).toBe("allim cannot be reached right now.");

  const abort = AbortSignal.abort();
  expect(await failure(api.account(abort))).toBeInstanceOf(TypeError);
});
