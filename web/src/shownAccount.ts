/** Notices that the browser is signed in to another account than the one that this page shows. */
import { actAs } from "./api";
import { keepSession, pageLine } from "./events";

const CHANNEL = "allim-account";

/**
 * Calls `onAnother` once another user is signed in: told by a page that has
 * found its account, by the stream, by the session that is looked at when the
 * page is seen, or by a call that was refused. Keeps the session meanwhile.
 */
export function watchAccount(shown: string | null, onAnother: () => void): () => void {
  const onUser = (user: string) => {
    if (user !== shown) onAnother();
  };
  const channel = new BroadcastChannel(CHANNEL);
  channel.onmessage = ({ data }: MessageEvent<string>) => onUser(data);
  actAs(shown, onAnother);
  const ends = [() => channel.close()];
  if (shown !== null) {
    channel.postMessage(shown);
    ends.push(pageLine.subscribe(["stream.open"], (_, { user }) => onUser(user)));
    ends.push(keepSession({ onUser }));
  }
  return () => ends.forEach((end) => end());
}
