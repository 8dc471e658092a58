import { afterEach, expect, test } from "vitest";
import { takeSignInNotice } from "./signInNotice";

const at = (path: string) => window.history.replaceState({ kept: true }, "", path);
const here = () => window.location.pathname + window.location.search + window.location.hash;

afterEach(() => at("/"));

test.each(["cancelled", "expired", "failed", "email_taken", "closed", "unavailable"])("%s is told once", (outcome) => {
  at(`/?sign_in=${outcome}`);

  expect(takeSignInNotice()).toMatch(/^[A-Z].+\.$/);
  expect(here()).toBe("/");
  expect(takeSignInNotice()).toBeNull();
});

test("the rest of the address stays", () => {
  at("/?a=1&sign_in=failed&b=2#c");
  takeSignInNotice();

  expect(here()).toBe("/?a=1&b=2#c");
  expect(window.history.state).toEqual({ kept: true });
});

test("a word nobody knows is taken away without a notice", () => {
  at("/?sign_in=%3Cb%3E");

  expect(takeSignInNotice()).toBeNull();
  expect(here()).toBe("/");
});
