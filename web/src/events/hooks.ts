import { useEffect, useLayoutEffect, useRef, useSyncExternalStore } from "react";
import type { Handler } from "./line";
import { pageLine } from "./page";
import type { LineView } from "./view";

/**
 * Calls `handler(type, data)` for every event of these types, over the page's one stream.
 *
 * The handler may be a new closure on every render and always is the latest;
 * only another list of types subscribes anew.
 */
export function useEvents<const Type extends string>(types: readonly Type[], handler: Handler<Type>): void {
  const latest = useRef(handler);
  useLayoutEffect(() => {
    latest.current = handler;
  });
  const key = types.join(" ");
  useEffect(() => {
    if (key === "") return;
    return pageLine.subscribe(key.split(" ") as Type[], (...frame) => latest.current(...frame));
  }, [key]);
}

/** The line, or what `select` takes from it; renders again only when that changes. */
export function useLine(): LineView;
export function useLine<Part extends LineView[keyof LineView]>(select: (line: LineView) => Part): Part;
export function useLine(select: (line: LineView) => unknown = (line) => line): unknown {
  return useSyncExternalStore(pageLine.watch, () => select(pageLine.view()));
}
