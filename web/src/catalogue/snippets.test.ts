import { expect, test } from "vitest";
import { curlFor, eventSourceFor, sampleTopic } from "./snippets";
import type { DeclaredType } from "./types";

const SHIPPED: DeclaredType = {
  type: "orders.shipped",
  topic: "orders:{orderId}",
  control: false,
  summary: "An order has left.",
  description: "",
  data: true,
  example: { note: "it's here" },
};

test("each place in a topic gets a sample", () => {
  expect(sampleTopic("orders:{orderId}.{line}")).toBe("orders:1.1");
  expect(sampleTopic("system")).toBe("system");
});

test("the command publishes the example, and a quote in it does not end the text", () => {
  expect(curlFor("https://a.example", SHIPPED)).toContain(
    `-d '{"topic":"orders:1","type":"orders.shipped","data":{"note":"it'\\''s here"}}'`,
  );
});

test("a stream asks for the topic unless it is on every stream", () => {
  expect(eventSourceFor("/notify", SHIPPED)).toContain('new EventSource("/notify/events?topics=orders%3A1")');
  expect(eventSourceFor("", { ...SHIPPED, topic: "user:{id}" })).toContain('new EventSource("/events")');
  expect(eventSourceFor("", { ...SHIPPED, topic: null })).toContain('new EventSource("/events")');
});
