/** The fields of a JSON Schema as rows of a table; pure, no browser. */
import type { Schema } from "./types";

export interface FieldRow {
  /** `total`, `lines[].sku`; the whole value is `data`. */
  readonly path: string;
  readonly type: string;
  readonly required: boolean;
  readonly about: string;
}

type Keywords = { readonly [keyword: string]: unknown };

const DEFINITION = "#/$defs/";
const MOST_LEVELS = 6;

const LIMITS: readonly (readonly [keyword: string, words: (value: unknown) => string])[] = [
  ["minimum", (value) => `≥ ${value}`],
  ["exclusiveMinimum", (value) => `> ${value}`],
  ["maximum", (value) => `≤ ${value}`],
  ["exclusiveMaximum", (value) => `< ${value}`],
  ["minLength", (value) => `characters ≥ ${value}`],
  ["maxLength", (value) => `characters ≤ ${value}`],
  ["minItems", (value) => `items ≥ ${value}`],
  ["maxItems", (value) => `items ≤ ${value}`],
  ["pattern", (value) => `matches ${value}`],
];

/** The rows of a schema: one for each member, and for each member of these. A value without members is one row. */
export function fieldsOf(schema: Schema): FieldRow[] {
  const rows = membersOf(schema, schema, "", 0);
  if (rows.length > 0 || isEmptyObject(resolved(schema, schema))) return rows;
  return [{ path: "data", type: typeOf(schema, schema), required: true, about: aboutOf(schema) }];
}

function membersOf(schema: Schema, root: Schema, under: string, level: number): FieldRow[] {
  const own = resolved(schema, root);
  if (level > MOST_LEVELS) return [];
  const required = Array.isArray(own.required) ? own.required : [];
  return Object.entries(schemasIn(own.properties)).flatMap(([name, member]) => {
    const path = under === "" ? name : `${under}.${name}`;
    const about = aboutOf(member) || aboutOf(resolved(member, root));
    const row = { path, type: typeOf(member, root), required: required.includes(name), about };
    return [row, ...inside(member, root, path, level + 1)];
  });
}

/** The members of a value: of an object's own, or of a list's items. */
function inside(schema: Schema, root: Schema, path: string, level: number): FieldRow[] {
  const own = resolved(schema, root);
  const items = own.items;
  if (items !== undefined) return membersOf(items as Schema, root, `${path}[]`, level);
  return membersOf(own, root, path, level);
}

function typeOf(schema: Schema, root: Schema, level = 0): string {
  if (level > MOST_LEVELS) return "…";
  const own = resolved(schema, root);
  if ("const" in own) return JSON.stringify(own.const);
  if (Array.isArray(own.enum)) return own.enum.map((value) => JSON.stringify(value)).join(" | ");
  const forms = [own.anyOf, own.oneOf].flatMap((each) => (Array.isArray(each) ? (each as Schema[]) : []));
  if (forms.length > 0) return forms.map((each) => typeOf(each, root, level + 1)).join(" | ");
  const kinds = typeof own.type === "string" ? [own.type] : Array.isArray(own.type) ? own.type : [];
  const words = kinds.map((kind) => kindOf(String(kind), own, root, level)).join(" | ") || "any value";
  return [words, ...limitsOf(own)].join(", ");
}

function kindOf(kind: string, own: Keywords, root: Schema, level: number): string {
  if (kind === "integer") return "whole number";
  if (kind === "string" && typeof own.format === "string") return own.format;
  if (kind === "array" && own.items !== undefined) return `list of ${typeOf(own.items as Schema, root, level + 1)}`;
  return kind === "array" ? "list" : kind;
}

function limitsOf(own: Keywords): string[] {
  return LIMITS.filter(([keyword]) => keyword in own).map(([keyword, words]) => words(own[keyword]));
}

function aboutOf(schema: Schema): string {
  return typeof schema === "object" && typeof schema.description === "string" ? schema.description : "";
}

function isEmptyObject(own: Keywords): boolean {
  return own.type === "object" && own.additionalProperties === false;
}

/** The schema that a reference leads to, or the schema itself. */
function resolved(schema: Schema, root: Schema): Keywords {
  const own = typeof schema === "object" ? schema : {};
  if (typeof own.$ref !== "string" || typeof root !== "object") return own;
  if (own.$ref === "#") return root;
  const found = schemasIn(root.$defs)[own.$ref.replace(DEFINITION, "")];
  return typeof found === "object" ? { ...found, ...own, $ref: undefined } : own;
}

function schemasIn(value: unknown): Record<string, Schema> {
  return typeof value === "object" && value !== null ? (value as Record<string, Schema>) : {};
}
