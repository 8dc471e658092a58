import { memo, useRef, useState } from "react";
import { isEventType, LINE_TYPES, pageLine, useEvents } from "../events";
import { timeWords } from "../words";
import { TypeForm } from "./TypeForm";

interface Entry {
  key: number;
  at: number;
  type: string;
  id: string | null;
  data: string;
}

const KEPT = 50;
// EventSource hears named types only, so the log has to know their names.
const KNOWN_TYPES = [...LINE_TYPES, "snapshots.progress", "snapshots.generated"];

/** The raw frames as they came, newest first. */
export function EventLog() {
  const [entries, setEntries] = useState<readonly Entry[]>([]);
  const [types, setTypes] = useState<readonly string[]>(KNOWN_TYPES);
  const [withHeartbeats, setWithHeartbeats] = useState(true);
  const count = useRef(0);

  useEvents(types, (type, data) => {
    if (type === "heartbeat" && !withHeartbeats) return;
    const { lastEventId: id } = pageLine.view();
    const entry = { key: (count.current += 1), at: Date.now(), type, id, data: JSON.stringify(data) };
    setEntries((before) => [entry, ...before].slice(0, KEPT));
  });

  return (
    <section className="card event-log" aria-labelledby="event-log-title">
      <div className="card-head">
        <h2 id="event-log-title">Events</h2>
        <label className="check">
          <input
            type="checkbox"
            data-testid="show-heartbeats"
            checked={withHeartbeats}
            onChange={(event) => setWithHeartbeats(event.target.checked)}
          />
          Heartbeats
        </label>
        <button type="button" className="button small" data-testid="clear-log" onClick={() => setEntries([])}>
          Clear
        </button>
      </div>
      <ol className="event-rows" data-testid="event-log" tabIndex={0} role="log" aria-live="off" aria-label={`The last ${KEPT} events`}>
        {entries.map((entry) => (
          <EventRow key={entry.key} entry={entry} />
        ))}
      </ol>
      {entries.length === 0 && <p className="muted empty">Nothing heard yet.</p>}
      <TypeForm
        isValid={(type) => isEventType(type) && !types.includes(type)}
        onAdd={(type) => setTypes((before) => [...before, type])}
      />
    </section>
  );
}

const EventRow = memo(function EventRow({ entry: { at, type, id, data } }: { entry: Entry }) {
  return (
    <li className="event-row" data-testid="event-row" data-type={type} data-id={id ?? ""}>
      <span className="event-type">{type}</span>
      <time className="muted" dateTime={new Date(at).toISOString()}>
        {timeWords(at)}
      </time>
      <code className="event-id muted">{id ?? "no id"}</code>
      <code className="event-data">{data}</code>
    </li>
  );
});
