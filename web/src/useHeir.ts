import { useLayoutEffect, useRef } from "react";
import type { RefObject } from "react";

/** Return a ref for a control that may be removed while it has the focus; the focus then moves to `heir`. */
export function useHeir<Control extends HTMLElement>(heir: RefObject<HTMLElement | null>): RefObject<Control | null> {
  const control = useRef<Control>(null);
  useLayoutEffect(() => {
    const own = control.current;
    return () => {
      if (own !== null && document.activeElement === own) heir.current?.focus();
    };
  }, [heir]);
  return control;
}
