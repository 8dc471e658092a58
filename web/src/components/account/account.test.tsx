import { act } from "react";
import { createRoot } from "react-dom/client";
import type { Root } from "react-dom/client";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { api, ApiError } from "../../api";
import type { Account, Session } from "../../api";
import { AccountButton } from "./AccountButton";

const ADA: Account = { id: "1", email: "ada@example.org", name: "Ada", createdAt: "2026-01-01T00:00:00Z", hasPassword: true };
const HERE: Session = {
  id: "here",
  createdAt: "2026-01-01T00:00:00Z",
  seenAt: "2026-01-02T00:00:00Z",
  expiresAt: "2026-01-03T00:00:00Z",
  address: "192.0.2.1",
  agent: "Firefox on Linux",
  current: true,
};
const THERE: Session = { ...HERE, id: "there", agent: null, address: null, current: false };

let root: Root;
let place: HTMLElement;
const onDeleted = vi.fn();

const find = (testId: string) => place.querySelector<HTMLElement>(`[data-testid=${testId}]`);
const click = (testId: string) => act(async () => find(testId)?.click());
const send = (testId: string) =>
  act(async () => void find(testId)?.dispatchEvent(new Event("submit", { bubbles: true, cancelable: true })));

async function type(name: string, value: string, form: string): Promise<void> {
  const input = find(form)?.querySelector<HTMLInputElement>(`input[name=${name}]`);
  await act(async () => {
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value")?.set?.call(input, value);
    input?.dispatchEvent(new Event("input", { bubbles: true }));
  });
}

async function open(account: Account = ADA): Promise<void> {
  await act(async () => root.render(<AccountButton account={account} onDeleted={onDeleted} />));
  await click("open-account");
}

beforeEach(() => {
  vi.stubGlobal("IS_REACT_ACT_ENVIRONMENT", true);
  vi.spyOn(api, "sessions").mockResolvedValue({ items: [HERE, THERE] });
  vi.spyOn(api, "providers").mockResolvedValue({ providers: ["google"] });
  onDeleted.mockReset();
  place = document.body.appendChild(document.createElement("div"));
  root = createRoot(place);
});

afterEach(async () => {
  await act(async () => root.unmount());
  place.remove();
});

test("the sessions are listed, and the page's own has no button to end it", async () => {
  await open();

  const rows = [...place.querySelectorAll("[data-testid=session-row]")];
  expect(rows.map((row) => row.querySelector("div > span")?.textContent)).toEqual(["Firefox on Linux", "Unknown device"]);
  expect(rows.map((row) => row.querySelector("[data-testid=end-session]") !== null)).toEqual([false, true]);
  expect(rows[0]?.textContent).toContain("from 192.0.2.1");
});

test("a session is ended by its button, and the list is read again", async () => {
  const end = vi.spyOn(api, "endSession").mockResolvedValue(undefined);
  await open();
  vi.mocked(api.sessions).mockResolvedValue({ items: [HERE] });
  await click("end-session");

  expect(end).toHaveBeenCalledExactlyOnceWith("there");
  expect(place.querySelectorAll("[data-testid=session-row]").length).toBe(1);
});

test("a session that cannot be ended says why and stays", async () => {
  vi.spyOn(api, "endSession").mockRejectedValue(new ApiError({ title: "no", status: 503, detail: "It does not answer." }));
  await open();
  await click("end-session");

  expect(find("account-dialog")?.textContent).toContain("It does not answer.");
  expect(find("end-session")).not.toBeNull();
});

test("a wrong password is told beside its field; a right one changes it and the sessions are read again", async () => {
  const change = vi.spyOn(api, "changePassword");
  const errors = [{ field: "currentPassword", message: "is wrong" }];
  change.mockRejectedValueOnce(new ApiError({ title: "no", status: 403, errors })).mockResolvedValue(undefined);
  await open();
  await type("currentPassword", "old", "password-form");
  await type("newPassword", "new and long", "password-form");
  await send("password-form");
  expect(find("error-currentPassword")?.textContent).toBe("is wrong");
  expect(find("password-changed")?.textContent).toBe("");

  await send("password-form");
  expect(change).toHaveBeenLastCalledWith({ currentPassword: "old", newPassword: "new and long" });
  expect(find("error-currentPassword")).toBeNull();
  expect(find("password-changed")?.textContent).toContain("changed");
  expect(api.sessions).toHaveBeenCalledTimes(2);
});

test("an account is deleted after a second question, with its password", async () => {
  const remove = vi.spyOn(api, "deleteAccount").mockResolvedValue(undefined);
  await open();
  expect(find("deletion-form")).toBeNull();
  await click("ask-deletion");
  await type("password", "secret words", "deletion-form");
  await send("deletion-form");

  expect(remove).toHaveBeenCalledExactlyOnceWith("secret words");
  expect(onDeleted).toHaveBeenCalledOnce();
});

test("an account of a provider has no password to change, and is led to a fresh sign-in before it is deleted", async () => {
  const remove = vi.spyOn(api, "deleteAccount").mockRejectedValue(new ApiError({ title: "no", status: 403, detail: "Sign in again." }));
  await open({ ...ADA, hasPassword: false });
  expect(find("password-form")).toBeNull();
  expect(find("no-password")).not.toBeNull();
  await click("ask-deletion");
  await send("deletion-form");

  expect(remove).toHaveBeenCalledExactlyOnceWith(null);
  expect(find("deletion-form")?.textContent).toContain("Sign in again.");
  expect(find("provider-google")).not.toBeNull();
  expect(onDeleted).not.toHaveBeenCalled();
});

test("the dialog closes, and opens empty", async () => {
  await open();
  await type("currentPassword", "old", "password-form");
  await click("close-account");
  expect(find("account-dialog")).toBeNull();

  await click("open-account");
  expect(find("password-form")?.querySelector<HTMLInputElement>("input")?.value).toBe("");
});
