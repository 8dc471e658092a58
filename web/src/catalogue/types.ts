/** `/api/catalogue.json`, as docs/events.md describes it. */

export type Schema = boolean | { readonly [keyword: string]: unknown };

export interface DeclaredType {
  readonly type: string;
  /** The form of its topics; null for a control event. */
  readonly topic: string | null;
  readonly control: boolean;
  readonly summary: string;
  readonly description: string;
  readonly data: Schema;
  readonly example: unknown;
}
