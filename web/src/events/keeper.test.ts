import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { keepSession, REST_MS } from "./keeper";
import { Refusal } from "./refusal";

const DAY_S = 86_400;
const LIFE = { user: "1", expiresInS: DAY_S, lifetimeS: DAY_S, renewalDue: false };

const read = vi.fn();
const renew = vi.fn();
const onUser = vi.fn();
let end: () => void;

const start = () => (end = keepSession({ onUser, read, renew, random: () => 0 }));
const settle = () => vi.advanceTimersByTimeAsync(0);
const see = async (event: Event = new Event("visibilitychange")) => {
  (event.type === "pageshow" ? window : document).dispatchEvent(event);
  await settle();
};

beforeEach(() => {
  vi.useFakeTimers();
  read.mockReset().mockResolvedValue(LIFE);
  renew.mockReset().mockResolvedValue(undefined);
  onUser.mockReset();
});

afterEach(() => {
  end();
  vi.useRealTimers();
});

test("a page that opens tells whose session it is, and renews none that is young", async () => {
  start();
  await settle();

  expect(onUser).toHaveBeenCalledExactlyOnceWith("1");
  expect(renew).not.toHaveBeenCalled();
});

test.each(["visibilitychange", "pageshow"])("a session past its half is renewed at %s", async (type) => {
  start();
  await settle();
  read.mockResolvedValue({ ...LIFE, expiresInS: DAY_S / 2 - 1, renewalDue: true });
  vi.setSystemTime(Date.now() + REST_MS);
  await see(new Event(type));

  expect(renew).toHaveBeenCalledOnce();
});

test("a page that nobody sees does not ask", async () => {
  start();
  await settle();
  vi.spyOn(document, "visibilityState", "get").mockReturnValue("hidden");
  vi.setSystemTime(Date.now() + REST_MS);
  await see();

  expect(read).toHaveBeenCalledOnce();
});

test("a page that is seen again and again asks once in half a minute", async () => {
  start();
  for (let times = 0; times < 10; times += 1) await see();

  expect(read).toHaveBeenCalledOnce();
});

test("a page that stays open asks when half of the life is over, and again half a life after the renewal", async () => {
  start();
  await vi.advanceTimersByTimeAsync((DAY_S / 2 - 1) * 1_000);
  expect(read).toHaveBeenCalledOnce();
  read.mockResolvedValue({ ...LIFE, expiresInS: DAY_S / 2, renewalDue: true });
  await vi.advanceTimersByTimeAsync(1_000);
  expect(renew).toHaveBeenCalledOnce();
  await vi.advanceTimersByTimeAsync((DAY_S / 2 - 1) * 1_000);
  expect(renew).toHaveBeenCalledOnce();
  await vi.advanceTimersByTimeAsync(1_000);
  expect(renew).toHaveBeenCalledTimes(2);
});

test("what fails is tried again after five minutes", async () => {
  read.mockRejectedValueOnce(new Refusal(503));
  start();
  await vi.advanceTimersByTimeAsync(5 * 60_000);

  expect(read).toHaveBeenCalledTimes(2);
});

test("pages that look at the same time do so one after the other where the browser has locks", async () => {
  let turn: Promise<unknown> = Promise.resolve();
  const request = vi.fn((_: string, work: () => Promise<unknown>) => (turn = turn.then(work)));
  vi.stubGlobal("navigator", { locks: { request } });
  read.mockResolvedValueOnce({ ...LIFE, renewalDue: true });
  const other = keepSession({ onUser, read, renew, random: () => 0 });
  start();
  await settle();

  expect(request).toHaveBeenCalledTimes(2);
  expect(renew).toHaveBeenCalledOnce();
  other();
});

test("after its end it asks nothing and tells nothing", async () => {
  start();
  end();
  await vi.advanceTimersByTimeAsync(2 * DAY_S * 1_000);

  expect(onUser).not.toHaveBeenCalled();
  expect(read).toHaveBeenCalledOnce();
});
