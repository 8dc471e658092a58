import { expect, test } from "vitest";
import { fieldsOf } from "./fields";

test("members of objects, lists and definitions have rows of their own", () => {
  const rows = fieldsOf({
    type: "object",
    required: ["total", "lines"],
    properties: {
      total: { type: "number", minimum: 0, description: "In the currency's unit." },
      lines: { type: "array", items: { $ref: "#/$defs/Line" } },
      to: { type: "object", properties: { city: { type: "string" } } },
    },
    $defs: { Line: { type: "object", required: ["sku"], properties: { sku: { type: "string" } } } },
  });

  expect(rows.map(({ path, type, required, about }) => [path, type, required, about])).toEqual([
    ["total", "number, ≥ 0", true, "In the currency's unit."],
    ["lines", "list of object", true, ""],
    ["lines[].sku", "string", true, ""],
    ["to", "object", false, ""],
    ["to.city", "string", false, ""],
  ]);
});

test.each([
  [{ type: "integer", minimum: 1, maximum: 3 }, "whole number, ≥ 1, ≤ 3"],
  [{ type: "string", format: "date-time" }, "date-time"],
  [{ type: ["string", "null"] }, "string | null"],
  [{ anyOf: [{ type: "string" }, { type: "null" }] }, "string | null"],
  [{ enum: ["EUR", "KRW"] }, '"EUR" | "KRW"'],
  [{ const: 1 }, "1"],
  [{ type: "array", items: { type: "string" } }, "list of string"],
  [true, "any value"],
])("the type of %j is told in words", (schema, words) => {
  expect(fieldsOf({ properties: { x: schema } })[0]?.type).toBe(words);
});

test("a value that is no object is one row, and an empty object none", () => {
  expect(fieldsOf({ type: "string" }).map((row) => row.path)).toEqual(["data"]);
  expect(fieldsOf({ type: "object", properties: {}, additionalProperties: false })).toEqual([]);
});

test("a schema that leads to itself ends", () => {
  const tree = { type: "object", properties: { children: { type: "array", items: { $ref: "#" } } } };

  expect(fieldsOf(tree).length).toBeLessThan(10);
  expect(fieldsOf({ type: "array", items: { $ref: "#" } })[0]?.type).toMatch(/^list of list of .*…$/);
});
