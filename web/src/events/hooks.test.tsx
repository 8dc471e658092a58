import { act, StrictMode, useState } from "react";
import type { ReactNode } from "react";
import { createRoot } from "react-dom/client";
import type { Root } from "react-dom/client";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { FakeEventSource } from "./fake-event-source";
import { useEvents, useLine } from "./hooks";
import { LINGER_MS } from "./line";
import { pageLine } from "./page";

let root: Root;
let place: HTMLElement;

async function render(node: ReactNode): Promise<void> {
  await act(async () => root.render(<StrictMode>{node}</StrictMode>));
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("EventSource", FakeEventSource);
  vi.stubGlobal("IS_REACT_ACT_ENVIRONMENT", true);
  FakeEventSource.all = [];
  place = document.createElement("div");
  root = createRoot(place);
});

afterEach(async () => {
  await act(async () => root.unmount());
  vi.advanceTimersByTime(LINGER_MS);
  expect(vi.getTimerCount()).toBe(0);
  expect(FakeEventSource.unclosed).toEqual([]);
  pageLine.forget();
  vi.useRealTimers();
});

function Listener({ heard }: { heard: (...frame: unknown[]) => void }) {
  useEvents(["snapshots.generated"], (type, data) => heard(type, data.snapshotId));
  return null;
}

test("many hooks share one stream", async () => {
  const heard = vi.fn();
  await render([1, 2, 3].map((n) => <Listener key={n} heard={heard} />));
  FakeEventSource.last.frame("snapshots.generated", { snapshotId: "x" });

  expect(FakeEventSource.all).toHaveLength(1);
  expect(heard.mock.calls).toEqual(Array(3).fill(["snapshots.generated", "x"]));
});

test("the handler is the latest closure, and rendering does not subscribe anew", async () => {
  const subscribe = vi.spyOn(pageLine, "subscribe");
  const seen: number[] = [];
  function Counter() {
    const [count, setCount] = useState(0);
    useEvents(["tick"], () => {
      seen.push(count);
      setCount(count + 1);
    });
    return null;
  }
  await render(<Counter />);
  const before = subscribe.mock.calls.length;
  for (let n = 0; n < 3; n += 1) await act(async () => FakeEventSource.last.frame("tick", n));

  expect(seen).toEqual([0, 1, 2]);
  expect(subscribe).toHaveBeenCalledTimes(before);
});

test("another list of types is followed on the same stream", async () => {
  const heard = vi.fn();
  const Types = ({ types }: { types: string[] }) => {
    useEvents(types, heard);
    return null;
  };
  await render(<Types types={["a"]} />);
  await render(<Types types={["b"]} />);
  FakeEventSource.last.frame("a", 1);
  FakeEventSource.last.frame("b", 2);

  expect(FakeEventSource.all).toHaveLength(1);
  expect(heard.mock.calls).toEqual([["b", 2]]);
});

test("an unmounted hook hears nothing and lets the stream go", async () => {
  const heard = vi.fn();
  await render(<Listener heard={heard} />);
  await render(null);
  FakeEventSource.last.frame("snapshots.generated", { snapshotId: "x" });
  expect(heard).not.toHaveBeenCalled();

  vi.advanceTimersByTime(LINGER_MS);
  expect(FakeEventSource.unclosed).toHaveLength(0);
});

test("useLine renders what it selects, and only when that changes", async () => {
  let renders = 0;
  function Replica() {
    renders += 1;
    return useLine((line) => line.replica);
  }
  await render(
    <>
      <Replica />
      <Listener heard={() => {}} />
    </>,
  );
  await act(async () => FakeEventSource.last.open({ replica: "app-2" }));
  expect(place.textContent).toBe("app-2");

  const before = renders;
  await act(async () => FakeEventSource.last.frame("heartbeat", {}));
  expect(renders).toBe(before);
});

test("useLine alone shows the line and opens none", async () => {
  const State = () => useLine().state;
  await render(<State />);

  expect(place.textContent).toBe("connecting");
  expect(FakeEventSource.all).toHaveLength(0);
});
