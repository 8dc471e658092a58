import { useEffect, useState } from "react";
import { Brand } from "../components/Brand";
import { TypeCard } from "./TypeCard";
import type { DeclaredType } from "./types";

const DOCUMENT = "catalogue.json"; // beside this page, wherever the application is mounted

export function CataloguePage() {
  const [types, setTypes] = useState<readonly DeclaredType[] | null>(null);
  const [failure, setFailure] = useState<string | null>(null);
  useEffect(() => {
    load().then(setTypes, (error: unknown) => setFailure(String(error)));
  }, []);
  return (
    <div className="catalogue">
      <header className="catalogue-header">
        <a className="catalogue-brand" href="../">
          <Brand />
        </a>
        <nav aria-label="Descriptions">
          <a className="link" href="catalogue.json">JSON</a>
          <a className="link" href="asyncapi.json">AsyncAPI</a>
          <a className="link" href="docs">REST API</a>
        </nav>
      </header>
      <main>
        <h1>Events</h1>
        <p className="catalogue-lead muted">
          The declared types. An event of one of them is refused when its data or its topic does not fit. Types that are
          not declared can be published too. <code>allim types</code> prints these as TypeScript.
        </p>
        {failure !== null && (
          <p className="note bad" role="alert">
            The catalogue could not be loaded. {failure}
          </p>
        )}
        {types !== null && <Types types={types} />}
      </main>
    </div>
  );
}

async function load(): Promise<readonly DeclaredType[]> {
  const answer = await fetch(DOCUMENT, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`The answer was ${answer.status}.`);
  return ((await answer.json()) as { types: readonly DeclaredType[] }).types;
}

function Types({ types }: { types: readonly DeclaredType[] }) {
  const published = types.filter((type) => !type.control);
  const control = types.filter((type) => type.control);
  return (
    <div className="catalogue-columns">
      <nav className="catalogue-index" aria-label="Types">
        <Index title="Published" types={published} />
        <Index title="On every stream" types={control} />
      </nav>
      <div className="catalogue-types">
        <h2>Published</h2>
        {published.map((type) => <TypeCard key={type.type} type={type} />)}
        <h2 className="catalogue-title">On every stream</h2>
        <p className="catalogue-about muted">allim itself sends these control events. They cannot be published.</p>
        {control.map((type) => <TypeCard key={type.type} type={type} />)}
      </div>
    </div>
  );
}

function Index({ title, types }: { title: string; types: readonly DeclaredType[] }) {
  return (
    <>
      <p className="catalogue-index-title muted">{title}</p>
      <ul>
        {types.map(({ type }) => (
          <li key={type}>
            <a href={`#${type}`}>{type}</a>
          </li>
        ))}
      </ul>
    </>
  );
}
