import { expect, test } from "vitest";
import { rootOf } from "./root";

test.each([
  ["http://allim.example/", ""],
  ["http://allim.example/?sign_in=failed#top", ""],
  ["http://shop.example/notify/", "/notify"],
  ["http://shop.example/a/api/?sign_in=failed", "/a/api"],
])("the page at %s is under %j", (page, root) => {
  expect(rootOf(page)).toBe(root);
});
