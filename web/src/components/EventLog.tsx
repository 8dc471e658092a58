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

interface Heartbeats {
  count: number;
  at: number;
  id: string | null;
}

const KEPT = 50;
// EventSource hears named types only, so the log has to know their names.
const KNOWN_TYPES = [...LINE_TYPES, "snapshots.progress", "snapshots.generated"];

/** The raw frames as they came, newest first. Heartbeats are counted apart, so that they push no event out. */
export function EventLog() {
  const [entries, setEntries] = useState<readonly Entry[]>([]);
  const [heartbeats, setHeartbeats] = useState<Heartbeats | null>(null);
  const [isCleared, setCleared] = useState(false);
  const [types, setTypes] = useState<readonly string[]>(KNOWN_TYPES);
  const count = useRef(0);

  useEvents(types, (type, data) => {
    const at = Date.now();
    const { lastEventId: id } = pageLine.view();
    if (type === "heartbeat") return setHeartbeats((before) => ({ count: (before?.count ?? 0) + 1, at, id }));
    const entry = { key: (count.current += 1), at, type, id, data: JSON.stringify(data) };
    setEntries((before) => [entry, ...before].slice(0, KEPT));
  });

  const clear = () => {
    setEntries([]);
    setHeartbeats(null);
    setCleared(true);
  };

  return (
    <section className="card event-log" aria-labelledby="event-log-title">
      <div className="card-head">
        <h2 id="event-log-title">Events</h2>
        <button type="button" className="button small" data-testid="clear-log" onClick={clear}>
          Clear
        </button>
      </div>
      {heartbeats && <HeartbeatRow heartbeats={heartbeats} />}
      <div className="event-rows" tabIndex={0} role="log" aria-live="off" aria-label={`The last ${KEPT} events`}>
        <ol data-testid="event-log">
          {entries.map((entry) => (
            <EventRow key={entry.key} entry={entry} />
          ))}
        </ol>
        {entries.length === 0 && (
          <p className="muted empty">{isCleared ? "No event since the list was cleared." : "No event yet."}</p>
        )}
      </div>
      <TypeForm known={types} isType={isEventType} onAdd={(type) => setTypes((before) => [...before, type])} />
    </section>
  );
}

function HeartbeatRow({ heartbeats: { count, at, id } }: { heartbeats: Heartbeats }) {
  return (
    <p className="event-row heartbeats muted" data-testid="heartbeats" data-count={count}>
      <span className="event-type">
        {count} {count === 1 ? "heartbeat" : "heartbeats"}
      </span>
      <Time at={at} />
      <code className="event-id">{id ?? "no id"}</code>
    </p>
  );
}

const EventRow = memo(function EventRow({ entry: { at, type, id, data } }: { entry: Entry }) {
  return (
    <li className="event-row" data-testid="event-row" data-type={type} data-id={id ?? ""}>
      <span className="event-type">{type}</span>
      <Time at={at} />
      <code className="event-id muted">{id ?? "no id"}</code>
      <code className="event-data">{data}</code>
    </li>
  );
});

function Time({ at }: { at: number }) {
  return (
    <time className="muted" dateTime={new Date(at).toISOString()}>
      {timeWords(at)}
    </time>
  );
}
