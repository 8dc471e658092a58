/** Commands and code that publish and read an event; pure, no browser. `root` is where allim is served. */
import type { DeclaredType } from "./types";

/** A topic of the form, with a sample in each place: `orders:{orderId}` becomes `orders:1`. */
export function sampleTopic(form: string): string {
  return form.replace(/\{\w+\}/g, "1");
}

export function curlFor(root: string, type: DeclaredType): string {
  const event = { topic: sampleTopic(type.topic ?? ""), type: type.type, data: type.example };
  const body = JSON.stringify(event).replaceAll("'", "'\\''");
  return `curl ${root}/api/publish \\
  -H "Authorization: Bearer $ALLIM_PUBLISH_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${body}'`;
}

export function eventSourceFor(root: string, type: DeclaredType): string {
  const own = type.topic === null || type.topic === "system" || type.topic.startsWith("user:");
  const query = own ? "" : `?topics=${encodeURIComponent(sampleTopic(type.topic ?? ""))}`;
  return `const source = new EventSource("${root}/events${query}");
source.addEventListener(${JSON.stringify(type.type)}, (event) => {
  const data = JSON.parse(event.data);
});`;
}
