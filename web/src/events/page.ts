import { root } from "../root";
import { Line } from "./line";
import { askForStream, renewSession } from "./session";

/** The page's one line. Over HTTP/1.1 a browser gives a host six connections in all. */
export const pageLine = new Line({ url: `${root}/events`, ask: askForStream, renew: renewSession });
