import { rootOf } from "../root";
import { fieldsOf } from "./fields";
import type { FieldRow } from "./fields";
import { curlFor, eventSourceFor } from "./snippets";
import type { DeclaredType } from "./types";

// This page is served below /api/.
const root = rootOf(new URL("..", document.baseURI).href);

export function TypeCard({ type }: { type: DeclaredType }) {
  const rows = fieldsOf(type.data);
  return (
    <section className="card type-card" id={type.type} aria-labelledby={`${type.type}-title`} data-testid="type-card">
      <div className="type-head">
        <h3 id={`${type.type}-title`}>{type.type}</h3>
        {type.topic !== null && (
          <span className="type-topic">
            <span className="visually-hidden">Topic </span>
            {type.topic}
          </span>
        )}
      </div>
      <p>
        <Words text={type.summary} />
      </p>
      {type.description !== "" && (
        <p className="muted">
          <Words text={type.description} />
        </p>
      )}
      {rows.length > 0 ? <Fields rows={rows} /> : <p className="muted">The data is an empty object.</p>}
      <Code title="Example" text={JSON.stringify(type.example, null, 2)} />
      <details>
        <summary>{type.control ? "Read it" : "Publish and read it"}</summary>
        {!type.control && <Code title="curl" text={curlFor(location.origin + root, type)} />}
        <Code title="EventSource" text={eventSourceFor(root, type)} />
      </details>
    </section>
  );
}

function Fields({ rows }: { rows: readonly FieldRow[] }) {
  return (
    <div className="type-fields" tabIndex={0} role="group" aria-label="Fields of the data">
      <table>
        <thead>
          <tr>
            <th scope="col">Field</th>
            <th scope="col">Type</th>
            <th scope="col">Meaning</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(({ path, type, required, about }) => (
            <tr key={path}>
              <th scope="row">
                <code>{path}</code>
                {!required && <span className="type-optional muted"> optional</span>}
              </th>
              <td>{type}</td>
              <td>
                <Words text={about} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Code({ title, text }: { title: string; text: string }) {
  return (
    <figure className="type-code">
      <figcaption className="muted">{title}</figcaption>
      <pre tabIndex={0}>{text}</pre>
    </figure>
  );
}

/** A text whose parts between backticks are code. */
function Words({ text }: { text: string }) {
  return text.split("`").map((part, index) => (index % 2 === 1 ? <code key={index}>{part}</code> : part));
}
