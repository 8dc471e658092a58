import { expect, test, vi } from "vitest";
import { Refusal } from "./refusal";
import { askForStream, renewSession } from "./session";

function answer(status: number, headers: Record<string, string> = {}): void {
  vi.stubGlobal("fetch", vi.fn().mockResolvedValue(new Response(null, { status, headers })));
}

test("a stream is asked for without opening one", async () => {
  answer(200);
  await askForStream();

  expect(fetch).toHaveBeenCalledWith("/events", expect.objectContaining({ method: "HEAD" }));
});

test("a session is renewed by a POST without a body", async () => {
  answer(200);
  await renewSession();

  const [path, request] = vi.mocked(fetch).mock.lastCall ?? [];
  expect([path, request?.method, request?.body]).toEqual(["/api/session/renew", "POST", undefined]);
});

test.each([204, 401, 403, 429, 503])("any other status is a refusal: %i", async (status) => {
  answer(status);

  await expect(askForStream()).rejects.toMatchObject({ status, retryAfter_s: 0 });
  await expect(renewSession()).rejects.toBeInstanceOf(Refusal);
});

test.each([
  ["20", 20],
  ["86400", 300],
  ["-1", 0],
  ["soon", 0],
  ["Wed, 21 Oct 2026 07:28:00 GMT", 0],
])("Retry-After: %s is obeyed within reason", async (header, retryAfter_s) => {
  answer(429, { "Retry-After": header });

  await expect(askForStream()).rejects.toMatchObject({ status: 429, retryAfter_s });
});

test("a network that is away is no refusal", async () => {
  vi.stubGlobal("fetch", vi.fn().mockRejectedValue(new TypeError("Failed to fetch")));

  await expect(askForStream()).rejects.not.toBeInstanceOf(Refusal);
});
